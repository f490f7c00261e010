"""Small batches share requests, and nobody can tell from what comes of them."""

import contextlib
import socket
from concurrent.futures import wait

import numpy as np
import pytest

from edl.discovery.embedded import free_port
from edl.distill import DistillReader, Limits, TeacherPool
from edl.errors import BatchRefused
from edl.serving import serve
from edl.serving.wire import frame
from edl.serving.wire.messages import encode_response
from tests.distill.test_bad_teachers import BadTeacher, respond, right
from tests.support.predictors import Sums
from tests.support.processes import eventually, python_teacher

COUNT, ROWS = 300, 4


def img(number, rows=ROWS):
    return np.full((rows, 3), number, "f4") + np.arange(rows, dtype="f4")[:, None]


def source():
    for number in range(COUNT):
        yield img(number), number


def check(batches):
    numbers = []
    for rows, number, prob in batches:
        np.testing.assert_array_equal(prob[:, 0], rows.sum(axis=1))
        numbers.append(number)
    assert numbers == list(range(COUNT))


class Scripted(BadTeacher):
    """Answers rightly, and notes how many rows each request has. Requests with a
    negative number are answered with ``code``.
    """

    def __init__(self, batch_rows=64, code=frame.EREQUEST, listener=None):
        self.rows = []
        self._code = code
        super().__init__(self._answer, listener, batch_rows)

    def _answer(self, conn, meta, feeds):
        self.rows.append(len(feeds["img"]))
        if (feeds["img"] < 0).any():
            respond(conn, meta, [], self._code, "negative")
        else:
            respond(conn, meta, encode_response({"prob": right(feeds)}))


@pytest.fixture
def scripted(request):
    teacher = Scripted(**getattr(request, "param", {}))
    yield teacher
    teacher.close()


def asked_at_once(**options):
    """Requests that all wait when their teacher comes: the rows that each has there, and stats."""
    port, limits = free_port(), Limits(min_window=32, max_window=32)
    address = f"127.0.0.1:{port}"
    with TeacherPool(["prob"], address, feeds=["img"], limits=limits, **options) as pool:
        futures = [pool.submit([img(number)]) for number in range(64)]
        teacher = Scripted(listener=socket.create_server(("127.0.0.1", port)))
        with contextlib.closing(teacher):
            for number, future in enumerate(futures):
                prob = future.result(30)["prob"]
                np.testing.assert_array_equal(prob[:, 0], img(number).sum(axis=1))
            return teacher.rows, pool.stats()


def test_they_share_requests_up_to_what_the_teacher_computes_together():
    rows, stats = asked_at_once()
    assert rows[0] == max(rows) == 64
    assert sum(rows) == stats["rows"] == 64 * ROWS
    assert (stats["resent"], stats["failed"]) == (0, 0)


def test_no_request_has_more_rows_than_the_student_allows():
    rows, _ = asked_at_once(teacher_batch_size=8)
    assert rows[0] == max(rows) == 8
    assert sum(rows) == 64 * ROWS


def test_a_readers_batches_come_in_order_however_many_share_a_request(scripted):
    with DistillReader(["img", "label"], ["prob"], source, scripted.endpoint) as reader:
        check(reader)
        stats = reader.stats()
    assert stats["rows"] == sum(scripted.rows) == COUNT * ROWS
    assert max(scripted.rows) <= 64


@pytest.mark.parametrize(
    "scripted", [{"batch_rows": said} for said in (None, 1, 0, -5, True, "64", 64.0)], indirect=True
)
def test_a_teacher_that_does_not_say_how_many_it_computes_gets_each_by_itself(scripted):
    with DistillReader(["img", "label"], ["prob"], source, scripted.endpoint) as reader:
        check(reader)
    assert set(scripted.rows) == {ROWS}


@pytest.mark.parametrize(
    "scripted", [{"code": code} for code in (frame.EREQUEST, frame.EINTERNAL)], indirect=True
)
def test_of_those_that_share_a_request_only_the_one_that_is_wrong_fails(scripted):
    with TeacherPool(["prob"], scripted.endpoint, feeds=["img"]) as pool:
        batches = [img(number if number % 50 != 30 else -9) for number in range(COUNT)]
        futures = [pool.submit(batch) for batch in batches]
        wait(futures, 30)
        for number, future in enumerate(futures):
            if number % 50 == 30:
                with pytest.raises(BatchRefused, match="negative"):
                    future.result(0)
            else:
                prob = future.result(0)["prob"]
                np.testing.assert_array_equal(prob[:, 0], batches[number].sum(axis=1))


class OneByOne(Scripted):
    """Says that it computes many rows together, but cannot."""

    def _answer(self, conn, meta, feeds):
        self.rows.append(len(feeds["img"]))
        respond(conn, meta, encode_response({"prob": right(feeds)[:ROWS]}))


def test_a_teacher_that_cannot_do_what_it_says_is_asked_one_by_one():
    teacher = OneByOne()
    with DistillReader(["img", "label"], ["prob"], source, teacher.endpoint) as reader:
        check(reader)
        stats = reader.stats()
    assert stats["lost_teachers"] == 0
    shared = [rows for rows in teacher.rows if rows > ROWS]
    assert stats["failed"] == len(shared) < len(teacher.rows) / 10
    teacher.close()


def failures_of(futures, wrong, words):
    """Waits for all; only the one that is ``wrong`` has failed, and says why."""
    wait(futures, 30)
    assert [n for n, future in enumerate(futures) if future.exception(0) is not None] == [wrong]
    assert words in str(futures[wrong].exception(0))


@pytest.mark.parametrize(
    ("word", "words"), [(7, "Python objects of type int"), ("\ud800", "text that is none")]
)
def test_one_that_cannot_travel_fails_alone(word, words):
    def lengths(word):
        return np.array([len(each) for each in word.tolist()], "int64")

    feeds, fetches = {"word": ((), "str")}, {"length": ((), "int64")}
    with (
        serve(lengths, feeds, fetches) as teacher,
        TeacherPool(["length"], teacher.endpoint, feeds=["word"]) as pool,
    ):
        batches = [np.array(["x" * number, "y"], object) for number in range(100)]
        batches[60][1] = word
        futures = [pool.submit([batch]) for batch in batches]
        failures_of(futures, 60, words)
        assert [f.result()["length"].tolist() for n, f in enumerate(futures) if n != 60] == [
            [number, 1] for number in range(100) if number != 60
        ]
        assert pool.stats()["lost_teachers"] == 0


def test_one_whose_labels_are_wrong_fails_alone():
    """Found at the student: of a program that makes labels itself, beyond what they can hold."""

    def labels(img):
        total = img.sum(axis=1)
        values = np.where(total < 0, np.inf, total)[:, None].repeat(2, axis=1).astype("float16")
        indices = np.tile(np.array([[1, 2]], "int32"), (len(img), 1))
        return values, indices, np.where(total < 0, 7e4, total).astype("float32")

    fetches = {
        "logits.values?top_k=2": ((2,), "float16"),
        "logits.indices?top_k=2": ((2,), "int32"),
        "logits.logsumexp?top_k=2": ((), "float32"),
    }
    with (
        serve(labels, {"img": ((-1,), "float32")}, fetches) as teacher,
        TeacherPool(["logits?top_k=2"], teacher.endpoint, feeds=["img"]) as pool,
    ):
        futures = [pool.submit([img(number if number != 60 else -9)]) for number in range(100)]
        failures_of(futures, 60, "beyond float16")
        assert pool.stats()["lost_teachers"] == 0


def test_one_that_kills_workers_fails_alone():
    """Of a real teacher: the others are computed by the process that comes after."""
    with python_teacher("Fragile") as teacher, TeacherPool(["prob"], teacher.endpoint) as pool:
        numbers = [*range(40), np.inf, *range(40, 80)]
        futures = [pool.submit({"img": img(number)}) for number in numbers]
        wait(futures, 60)
        with pytest.raises(BatchRefused, match="while computing this request"):
            futures[40].result(0)
        for number, future in zip(numbers, futures):
            if number != np.inf:
                expected = img(number).sum(axis=1)
                np.testing.assert_array_equal(future.result(0)["prob"][:, 0], expected)


def test_batches_of_different_kinds_find_their_answers(sums_teacher):
    def mixed():
        for number in range(COUNT):
            width, rows = 3 + number // 5 % 3, number % 7
            yield np.full((rows, width), number, "f4"), number

    with DistillReader(["img", "label"], ["prob"], mixed, sums_teacher.endpoint) as reader:
        check(reader)


def test_a_connection_that_ends_while_nothing_is_asked_is_noticed():
    source = [(img(0), 0)] * 3
    with python_teacher() as teacher:
        with DistillReader(["img", "label"], ["prob"], lambda: source, teacher.endpoint) as reader:
            batches = iter(reader)
            next(batches)
            eventually(lambda: reader.stats()["buffer"]["batches"] == 2)
            assert list(reader.stats()["teachers"]) == [teacher.endpoint]
            teacher.kill()
            eventually(lambda: not reader.stats()["teachers"])
            assert len(list(batches)) == 2
            assert (reader.stats()["resent"], reader.stats()["lost_teachers"]) == (0, 1)


def test_what_a_teacher_says_of_its_batches(sums_teacher):
    from edl.serving import TeacherClient

    with TeacherClient(sums_teacher.endpoint) as client:
        assert client.describe().extra["batch_rows"] == 64
        assert client.describe().feeds == Sums.description.feeds
