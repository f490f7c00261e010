"""Narrower feeds and answers, at real servers; and clients that know nothing of either."""

import json

import numpy as np
import pytest

from edl.errors import RequestRefused
from edl.serving import ServerOptions, TeacherClient, serve
from edl.serving.wire import narrow
from tests.support.processes import python_teacher
from tests.support.wire import connect, post, read_http

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4)).astype(np.uint8)


@pytest.fixture(scope="module")
def teacher():
    """A teacher process that sums up float32 rows."""
    with python_teacher("Sums") as teacher:
        yield teacher


@pytest.fixture
def client(teacher):
    with TeacherClient(teacher.endpoint) as client:
        yield client


def sums(images):
    total = images.astype("f4").sum(1)
    return np.stack([total, 2 * total], 1)


def test_the_server_says_that_it_can(client):
    assert narrow.server_narrows(client.describe())


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16", "uint8"])
def test_a_feed_may_come_narrower(client, dtype):
    sent = narrow.narrowed(IMAGES, dtype)
    assert client.infer({"img": sent}, ["prob"])["prob"].tolist() == sums(IMAGES).tolist()


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "float16"), ("bfloat16", "uint16")])
def test_an_answer_may_be_asked_for_narrower(client, dtype, kind):
    exact = np.float32([[1, 2], [3, 1 / 3]])
    answer = client.infer({"img": exact}, [f"prob?dtype={dtype}"])
    assert list(answer) == ["prob"]
    assert answer["prob"].dtype == kind
    np.testing.assert_array_equal(answer["prob"], narrow.narrowed(sums(exact), kind))


def test_no_rows_are_answered_narrower_too(client):
    answer = client.infer({"img": IMAGES[:0]}, ["prob?dtype=float16"])
    assert (answer["prob"].shape, answer["prob"].dtype) == ((0, 2), np.float16)


def test_what_the_answer_cannot_hold_is_refused_by_row_and_harms_no_other(client):
    good, bad = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    bad[1, 0] = 65504
    words = r"'prob' in float16: row 1: float16 cannot hold the float32 value 131014.*bfloat16"
    with pytest.raises(RequestRefused, match=words):
        client.infer({"img": bad}, ["prob?dtype=float16"])
    assert client.infer({"img": good}, ["prob?dtype=float16"])["prob"].tolist() == [[4, 8]] * 2
    assert client.infer({"img": bad}, ["prob"])["prob"].tolist() == sums(bad).tolist()


@pytest.mark.parametrize(
    ("fetches", "words"),
    [
        (["prob?dtype=int8"], "the dtype must be one of float16, bfloat16"),
        (["prob", "prob?dtype=float16"], "'prob' is asked for twice"),
        (["nothing?dtype=float16"], "unknown fetch 'nothing'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(client, fetches, words):
    with pytest.raises(RequestRefused, match=words):
        client.infer({"img": IMAGES}, fetches)


def test_wide_and_narrow_requests_at_once_get_their_own_rows():
    options = ServerOptions(max_wait=0.05)
    feeds, fetches = {"x": ((4,), "float32")}, {"y": ((4,), "float32")}
    with serve(lambda x: x + 1, feeds, fetches, options=options) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            answers = {}
            for number in range(24):
                dtype = ("float32", "float16", "uint16", "uint8")[number % 4]
                fetch = ("y", "y?dtype=float16", "y?dtype=bfloat16")[number % 3]
                rows = np.full((1 + number % 5, 4), number, np.float32)
                sent = {
                    "x": narrow.narrowed(rows.astype("u1") if dtype == "uint8" else rows, dtype)
                }
                key = number, len(rows)
                client.submit(sent, [fetch], lambda answer, key=key: answers.update({key: answer}))
            client.infer({"x": np.zeros((1, 4), np.float32)})
            for number in range(24, 28):  # whoever is answered in any order
                client.infer({"x": np.full((1, 4), number, np.float32)})
    assert len(answers) == 24
    for (number, rows), answer in answers.items():
        got = narrow.widen(answer["y"], "float32")
        assert got.tolist() == [[number + 1] * 4] * rows


def test_what_would_take_too_much_memory_once_it_is_wide_is_refused():
    options = ServerOptions(input_bytes=64 << 20)
    with serve(lambda x: x[:, :1], {"x": ((-1,), "float64")}, {"y": ((1,), "float64")},
               options=options) as teacher:  # fmt: skip
        with TeacherClient(teacher.endpoint) as client:
            with pytest.raises(RequestRefused, match="more than 16 MiB as float64: send fewer"):
                client.infer({"x": np.zeros((1, 3 << 20), np.uint8)})
            assert client.infer({"x": np.ones((1, 1 << 20), np.uint8)})["y"].tolist() == [[1]]


def test_json_asks_for_it_too(teacher):
    body = {
        "tensor": [{"name": "img", "alias_name": "img", "elem_type": 1, "shape": [1, 2],
                    "float_data": [1, 0.5]}],
        "fetch_var_names": ["prob?dtype=float16"],
    }  # fmt: skip
    with connect(teacher) as sock:
        sock.sendall(post(json.dumps(body).encode(), "application/json"))
        status, answer = read_http(sock)
    assert status == 200, answer
    [tensor] = json.loads(answer)["outputs"][0]["tensor"]
    assert tensor["alias_name"] == "prob"
