"""Links between what people read. Those inside docs/ are checked when the site is built."""

import re

import pytest

from tests.docs.pages import ROOT, pages

_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


@pytest.mark.parametrize("page", [page for page in pages() if not page.startswith("docs/")])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, _ in _LINK.findall(text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
