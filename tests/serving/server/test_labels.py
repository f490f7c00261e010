"""Sparse labels over the wire, from real servers."""

import concurrent.futures
import json
import os
import signal

import numpy as np
import pytest

from edl.errors import RequestRefused, TeacherFailed
from edl.serving import ServerOptions, TeacherClient, serve
from edl.serving.client.measure import read_counters
from edl.serving.model.predictor import PredictorOptions
from edl.serving.model.sparse import sparse_labels
from edl.serving.server.hosting import ServedTeacher
from edl.serving.wire import labels
from edl.serving.wire import protobuf as pb
from edl.serving.wire.labels import LabelForm
from edl.serving.wire.messages import encode_request
from edl.serving.worker.handles import processes
from tests.support.predictors import Tokens
from tests.support.processes import eventually, python_teacher
from tests.support.wire import connect, post, read_http, read_rpc, rpc

TABLE = Tokens()._table


@pytest.fixture(scope="module")
def teacher():
    """A teacher process of 1,000 classes."""
    with python_teacher("Tokens") as teacher:
        yield teacher


@pytest.fixture
def client(teacher):
    with TeacherClient(teacher.endpoint) as client:
        yield client


def request(rows, form, tokens=4, seed=0):
    """Feeds, and the parts that are to come back."""
    generator = np.random.default_rng(seed)
    feeds = {"ids": generator.integers(0, 100, (rows, tokens))}
    if form.samples:
        feeds[labels.SEED_FEED] = generator.integers(-(2**63), 2**63 - 1, rows)
    if form.target:
        feeds[labels.TARGET_FEED] = generator.integers(0, Tokens.classes, (rows, tokens))
    given = feeds.get(labels.SEED_FEED), feeds.get(labels.TARGET_FEED)
    return feeds, sparse_labels(TABLE[feeds["ids"]], form, *given)


def assert_answer(answer, parts, classes=Tokens.classes):
    assert list(answer) == [f"logits.{part}" for part in parts]
    got = {name.rpartition(".")[2]: array for name, array in answer.items()}
    for part, array in labels.as_parts(got, classes).items():
        np.testing.assert_array_equal(array, parts[part])


@pytest.mark.parametrize("form", [LabelForm(5), LabelForm(64, 2.0, 16, True), LabelForm(1000)])
def test_labels_come_in_place_of_logits(client, form):
    feeds, parts = request(3, form)
    assert_answer(client.infer(feeds, [labels.ask("logits", form)]), parts)


def test_the_server_says_that_it_makes_labels(client):
    assert labels.server_makes_labels(client.describe())


def test_the_whole_may_be_had_beside_them(client):
    feeds, parts = request(2, LabelForm(5))
    answer = client.infer(feeds, ["logits", "logits?top_k=5"])
    np.testing.assert_array_equal(answer.pop("logits"), TABLE[feeds["ids"]])
    assert_answer(answer, parts)


def test_whoever_asks_by_hand_gets_plain_ids(client):
    feeds, parts = request(2, LabelForm(5, samples=3))
    answer = client.infer(feeds, ["logits?top_k=5&samples=3"])
    for part in ("indices", "samples"):
        assert answer[f"logits.{part}"].dtype == np.int32
        np.testing.assert_array_equal(answer[f"logits.{part}"], parts[part])


def test_no_rows_have_labels_of_no_rows(client):
    feeds, _ = request(0, LabelForm(5, samples=2))
    answer = client.infer(feeds, ["logits?top_k=5&samples=2"])
    shapes = {name: array.shape for name, array in answer.items()}
    assert shapes["logits.values"] == (0, 0, 5)
    assert shapes["logits.samples"] == (0, 0, 2)


def test_requests_of_different_forms_are_computed_in_one_batch():
    forms = [
        *(LabelForm(5), LabelForm(5), LabelForm(9, 2.0, 3), None, LabelForm(4, samples=2)),
        *(LabelForm(9, 2.0, 3), LabelForm(1, target=True)),
    ]
    options = PredictorOptions(python="tests.support.predictors:Tokens")
    with ServedTeacher(processes(options, 1), ServerOptions()) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            engine = teacher._server.engine
            [pid] = engine.worker_pids
            os.kill(pid, signal.SIGSTOP)
            try:
                first = send(client, request(1, LabelForm(1))[0], "logits?top_k=1")
                eventually(lambda: engine._running)
                sent = []
                for number, form in enumerate(forms):
                    feeds, parts = request(number + 1, form or LabelForm(1), seed=number)
                    fetch = "logits" if form is None else labels.ask("logits", form)
                    sent.append((send(client, feeds, fetch), feeds, parts))
                eventually(lambda: len(engine._batcher) == len(forms))
            finally:
                os.kill(pid, signal.SIGCONT)
            first.result(60)
            for form, (future, feeds, parts) in zip(forms, sent):
                answer = future.result(60)
                if form is None:
                    np.testing.assert_array_equal(answer["logits"], TABLE[feeds["ids"]])
                else:
                    assert_answer(answer, parts)
        assert read_counters(teacher.endpoint)["edl_batch_rows_count"] == 2


def send(client, feeds, fetch):
    future = concurrent.futures.Future()
    client.submit(feeds, [fetch], future.set_result)
    return future


def test_a_request_whose_labels_cannot_be_made_harms_none_beside_it():
    specs = {"x": ((4,), "float32")}
    options = ServerOptions(max_wait=0.2)
    with serve(lambda x: x, specs, {"logits": specs["x"]}, options=options) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            good = {"x": np.ones((1, 4), "f4")}
            bad = {"x": np.full((1, 4), 1e5, "f4")}
            futures = [send(client, feeds, "logits?top_k=2") for feeds in (good, bad, good)]
            answers = [future.result(60) for future in futures]
    assert answers[0]["logits.values"].tolist() == answers[2]["logits.values"].tolist() == [[1, 1]]
    assert "labels of 'logits': logits around 100001 are beyond float16" in str(answers[1])


# --- what strangers may ask for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("fetches", "words"),
    [
        (["logits?top_k=1000000000"], "top_k must be from 1 to 65536"),
        (["logits?top_k=1001"], "top_k=1001 is more than the 1000 classes of 'logits'"),
        (["logits?top_k=5&temperature=nan"], "is none of top_k=N"),
        (["logits?top_k=5&top_k=6"], "'top_k' is said twice"),
        (["logits?"], "is none of top_k=N"),
        (["other?top_k=5"], "unknown fetch 'other'; this teacher's fetches: 'logits'"),
        (["logits?top_k=5", "logits?top_k=6"], "'logits.values' is asked for twice"),
        (["logits?top_k=5&samples=2"], "feed 'labels.seed' is missing; this teacher needs 'ids'"),
        (["logits?top_k=5&target"], "feed 'labels.target' is missing"),
        (["logits?" + "top_k=5&" * 100_000], "is said twice"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_words(client, fetches, words):
    feeds, _ = request(2, LabelForm(5))
    with pytest.raises(RequestRefused, match=words) as caught:
        client.infer(feeds, fetches)
    assert len(str(caught.value)) < 500


def test_more_than_an_answer_holds_is_refused_before_it_is_made(client):
    feeds, _ = request(1, LabelForm(1, samples=1), tokens=9000)
    with pytest.raises(TeacherFailed, match=r"labels of 'logits' would take 11.. MiB, and an ans"):
        client.infer(feeds, ["logits?top_k=1&samples=65536"])


@pytest.mark.parametrize(
    ("feed", "array", "words"),
    [
        (labels.SEED_FEED, np.zeros(3, np.int64), "feeds differ in their number of rows"),
        (labels.SEED_FEED, np.zeros(2, np.float32), "expected dtype int64, got float32"),
        (labels.SEED_FEED, np.zeros((2, 1), np.int64), "expected shape"),
        (labels.TARGET_FEED, np.zeros((2, 4), np.int64), "unknown feed 'labels.target'"),
    ],
)
def test_feeds_for_labels_are_checked(client, feed, array, words):
    feeds, _ = request(2, LabelForm(5, samples=2))
    with pytest.raises(RequestRefused, match=words):
        client.infer({**feeds, feed: array}, ["logits?top_k=5&samples=2"])


def test_targets_of_another_length_are_refused(client):
    feeds, _ = request(2, LabelForm(5, target=True))
    feeds[labels.TARGET_FEED] = feeds[labels.TARGET_FEED][:, :3]
    with pytest.raises(Exception, match=r"targets must have shape \[2, 4\], not \[2, 3\]"):
        client.infer(feeds, ["logits?top_k=5&target"])


def test_a_fetch_name_that_is_no_text_is_refused(teacher):
    feeds, _ = request(1, LabelForm(5))
    payload = b"".join(encode_request(feeds, [])) + pb.blob(2, b"logits?top_k=\xff\xfe")
    with connect(teacher) as sock:
        sock.sendall(rpc(payload))
        meta, _ = read_rpc(sock)
    assert meta.error_code
    assert "malformed request" in meta.error_text


# --- other ways in --------------------------------------------------------------------------


def test_json_has_plain_ids(teacher):
    feeds, parts = request(1, LabelForm(5, samples=2), tokens=3)
    tensors = [
        {"name": name, "int64_data": a.ravel().tolist(), "shape": a.shape, "elem_type": 0}
        for name, a in feeds.items()
    ]
    body = {"tensor": tensors, "fetch_var_names": ["logits?top_k=5&samples=2"]}
    with connect(teacher) as sock:
        sock.sendall(post(json.dumps(body).encode(), "application/json"))
        status, text = read_http(sock)
    assert status == 200, text
    tensors = {t["name"]: t for t in json.loads(text)["outputs"][0]["tensor"]}
    for part in ("indices", "samples"):
        assert tensors[f"logits.{part}"]["int_data"] == parts[part].ravel().tolist()


# --- many classes ---------------------------------------------------------------------------


def test_bytes_of_a_token_of_150_000_classes(monkeypatch):
    monkeypatch.setenv("EDL_TEST_CLASSES", "150000")
    sizes = {}
    with python_teacher("Tokens") as teacher, TeacherClient(teacher.endpoint) as client:
        for form in (LabelForm(64), LabelForm(8, samples=8)):
            feeds, _ = request(2, form, tokens=50)
            answer = send(client, feeds, labels.ask("logits", form)).result(60)
            sizes[form] = sum(array.nbytes for array in answer.values()) / 100
            parts = {name.rpartition(".")[2]: array for name, array in answer.items()}
            assert labels.as_parts(parts, 150_000)["indices"].max() > 1 << 16
    assert sizes == {LabelForm(64): 324, LabelForm(8, samples=8): 68}


@pytest.mark.slow
def test_a_sequence_whose_logits_are_more_than_a_frame_has_labels(monkeypatch):
    monkeypatch.setenv("EDL_TEST_CLASSES", "150000")
    feeds = {"ids": np.zeros((1, 2048), np.int64)}
    with python_teacher("Tokens") as teacher, TeacherClient(teacher.endpoint) as client:
        with pytest.raises(Exception, match="do not fit the output arena"):
            client.infer(feeds, ["logits"])
        answer = client.infer(feeds, ["logits?top_k=64"])
        assert answer["logits.values"].shape == (1, 2048, 64)
