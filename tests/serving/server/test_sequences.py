"""Rows that are sequences: those of different length share a batch, filled up and cut again."""

import concurrent.futures
import urllib.request

import numpy as np
import pytest

from edl.errors import ConfigError, RequestRefused
from edl.serving import Description, ServerOptions, TeacherClient, TensorSpec
from edl.serving.model.predictor import PredictorOptions
from edl.serving.server.batching import Batcher, batch_key, sequence_length
from edl.serving.server.hosting import ServedTeacher
from edl.serving.wire.description import with_pads
from edl.serving.worker.handles import WorkerThread, processes
from tests.support.predictors import Sequences
from tests.support.processes import edl

SPECS = Sequences.description.feeds


def in_a_thread(inputs):
    return [WorkerThread(Sequences(), inputs)]


def in_a_process(inputs):
    options = PredictorOptions(python="tests.support.predictors:Sequences")
    return processes(options)(inputs)


def ask_at_once(teacher, requests):
    """The answers to requests that wait for each other."""
    futures = [concurrent.futures.Future() for _ in requests]
    with TeacherClient(teacher.endpoint) as client:
        for feeds, future in zip(requests, futures):
            client.submit(feeds, [], future.set_result)
        return [future.result(60) for future in futures]


def rows(*shape):
    return {"ids": np.arange(np.prod(shape)).reshape(shape) + 100}


@pytest.mark.parametrize("make_workers", [in_a_thread, in_a_process])
def test_requests_of_different_length_share_a_batch_and_get_answers_of_their_own_length(
    make_workers,
):
    requests = [rows(1, 5), rows(3, 8), rows(2, 7)]
    for feeds in requests:
        feeds["mask"] = np.ones_like(feeds["ids"])
    with ServedTeacher(make_workers, ServerOptions(max_wait=20, max_batch_rows=6)) as teacher:
        answers = ask_at_once(teacher, requests)
        with urllib.request.urlopen(f"http://{teacher.endpoint}/metrics") as page:
            assert "edl_tokens_total 43.0" in page.read().decode(), "1 x 5 + 3 x 8 + 2 x 7"
    for feeds, answer in zip(requests, answers):
        length = feeds["ids"].shape[1]
        assert (answer["twice"] == 2 * feeds["ids"][:, :, None]).all()
        assert answer["twice"].shape == (*feeds["ids"].shape, 2)
        filled = [8 - length, 8 - length]
        assert answer["seen"].tolist() == [filled] * len(feeds["ids"]), "all were computed as 8"


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"ids": np.zeros((2, 5), int), "mask": np.zeros((2, 4), int)}, "ids: 5, mask: 4"),
        ({"mask": np.zeros((2, 4), int)}, "'ids' is missing; this teacher needs 'ids'$"),
    ],
)
def test_feeds_that_do_not_fit_each_other_are_refused_by_name(feeds, words):
    with ServedTeacher(in_a_thread, ServerOptions()) as teacher:
        with TeacherClient(teacher.endpoint) as client, pytest.raises(RequestRefused, match=words):
            client.infer(feeds)


def test_targets_must_be_as_long_as_the_rows():
    feeds = {**rows(2, 5), "labels.target": np.zeros((2, 4), int)}
    with ServedTeacher(in_a_thread, ServerOptions()) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            with pytest.raises(RequestRefused, match=r"ids: 5, labels.target: 4"):
                client.infer(feeds, ["twice?top_k=1&target"])


def test_an_optional_feed_can_be_left_out_and_is_said_apart_from_those_that_cannot():
    with ServedTeacher(in_a_thread, ServerOptions()) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            assert client.describe().feeds == SPECS
            assert client.infer(rows(1, 3))["seen"].tolist() == [[0, 0]]
    text = Sequences.description.to_json()
    assert Description.from_json(text).needed == {"ids": SPECS["ids"]}


def test_sequences_of_very_different_length_do_not_share_a_batch():
    def key(length):
        return batch_key(rows(1, length), ["twice"], SPECS)

    assert key(5) == key(8) != key(4)
    assert key(9) == key(16) != key(17)
    assert batch_key(rows(1, 5), [], {}) != batch_key(rows(1, 6), [], {}), "no sequences"


def test_a_row_has_as_many_tokens_as_its_sequences():
    feeds = {"ids": np.zeros((2, 5)), "image": np.zeros((2, 9))}
    assert sequence_length(feeds, {**SPECS, "image": TensorSpec((9,), "float32")}) == 5
    assert sequence_length({"image": feeds["image"]}, SPECS) == 0


def test_batches_are_cut_by_tokens_and_clients_share_them():
    batcher = Batcher(max_rows=100, max_tokens=64)
    for number in range(8):
        batcher.add(("long", number), 1, "k", "long", now=0.0, length=32)
    for number in range(16):
        batcher.add(("short", number), 1, "k", "short", now=0.0, length=16)
    sizes, shares = [], {"long": 0, "short": 0}
    while batch := batcher.take(0.0):
        longest = max(32 if name == "long" else 16 for name, _ in batch)
        assert len(batch) * longest <= 64
        sizes.append(len(batch))
        if sum(sizes) <= 12:
            for name, _ in batch:
                shares[name] += 32 if name == "long" else 16
    assert sum(sizes) == 24
    assert abs(shares["long"] - shares["short"]) <= 64


@pytest.mark.parametrize(
    ("shape", "dtype", "pad"),
    [
        ((3,), "int64", 0),
        ((), "int64", 0),
        ((-1,), "int64", 0.5),
        ((-1,), "uint8", 256),
        ((-1,), "float32", True),
        ((-1,), "float32", float("nan")),
        ((-1,), "str", 0),
        ((-1,), "int64", "0"),
    ],
)
def test_what_sequences_cannot_be_filled_up_with_is_no_description(shape, dtype, pad):
    with pytest.raises(ValueError, match=r"sequences of any length|cannot be filled up"):
        TensorSpec(shape, dtype, pad)


def test_sequences_can_be_said_of_a_description_that_does_not_know_of_them():
    plain = Description(
        {name: TensorSpec(spec.shape, spec.dtype) for name, spec in SPECS.items()},
        {"twice": TensorSpec((-1, 2), "float32"), "seen": TensorSpec((2,), "int64")},
    )
    said = with_pads(plain, {"ids": 7, "mask": 0, "twice": -1})
    assert (said.feeds["ids"].pad, said.feeds["mask"].pad) == (7, 0)
    assert (said.fetches["twice"].pad, said.fetches["seen"].pad) == (-1, None)
    assert said.fingerprint == plain.fingerprint, "it is the same model"
    with pytest.raises(ConfigError, match=r"no 'id' to be filled up; there are 'ids', 'mask', 'tw"):
        with_pads(plain, {"id": 7})
    with pytest.raises(ConfigError, match=r"'seen': rows of shape \[2\] are no sequences"):
        with_pads(plain, {"seen": 0})


@pytest.mark.parametrize("text", ["ids", "=3", "ids=", "ids=x"])
def test_what_is_no_pad_on_the_command_line_is_said(text):
    result = edl("teacher", "--python", "tests.support.predictors:Sequences", "--pad", text)
    assert result.returncode != 0
    assert f"--pad {text!r} is not NAME=NUMBER" in result.stderr
