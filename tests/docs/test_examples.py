"""The Python in what people read runs, from top to bottom, with real teachers and a real etcd.

Addresses in it stand for these. A block with a title is a file, see test_tutorial.
"""

import contextlib

import pytest

from tests.docs.pages import blocks, pages
from tests.support.processes import Teacher

pytest.importorskip("paddle")


def examples(page):
    return [block for block in blocks(page, "python") if not block.title]


PAGES = [page for page in pages() if any(not block.not_run for block in examples(page))]


@pytest.fixture(scope="module")
def addresses(etcd_server):
    """What is written in the pages, and what there is."""
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(
                Teacher("--python", "tests.docs.given:Predictor",
                        "--etcd", etcd_server.endpoint, "--service", service)
            )
            for service in ("resnet_teacher", "vit_teacher")
        )  # fmt: skip
        yield {
            "10.0.0.1:2379": etcd_server.endpoint,
            "10.0.0.2:9292": first.endpoint,
            "10.0.0.3:9292": second.endpoint,
        }


def test_there_are_pages_with_examples():
    assert {"README.md", "docs/index.md", "docs/how-to/wrap-a-loader.md"} <= set(PAGES)


def test_what_is_not_run_says_why_and_is_rare():
    reasons = [block.not_run for page in pages() for block in blocks(page) if block.not_run]
    assert all(len(reason) > 10 for reason in reasons)
    assert len(reasons) < 10


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, addresses, tmp_path, monkeypatch):
    from tests.docs.given import names

    monkeypatch.chdir(tmp_path)
    (tmp_path / "serving_client").mkdir()
    (tmp_path / "serving_client/serving_client_conf.prototxt").touch()
    namespace = names()
    for block in examples(page):
        if not block.not_run:
            code = block.code
            for written, real in addresses.items():
                code = code.replace(written, real)
            exec(compile("\n" * (block.line - 1) + code, page, "exec"), namespace)
