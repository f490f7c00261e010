"""What a request may be, and answers in order: without teachers."""

import contextlib
import itertools
import threading
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.distill import Limits
from edl.distill.requests import in_order, read_feeds
from edl.errors import SourceError

IMAGES = np.arange(12, dtype="f4").reshape(4, 3)
LABELS = np.arange(4)


# --- feeds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_request_is_a_dict_or_a_sequence_whose_slots_are_named(kind):
    for feeds in (
        read_feeds({"img": IMAGES, "label": LABELS}, None),
        read_feeds(kind([IMAGES, LABELS]), ["img", "label"]),
    ):
        assert feeds.rows == 4
        assert feeds.named("img") is IMAGES
        assert feeds.named("label") is LABELS


def test_the_only_slot_needs_no_sequence():
    assert read_feeds(IMAGES, ["img"]).named("img") is IMAGES


def test_a_slot_without_a_name_is_left_out():
    assert list(read_feeds((IMAGES, LABELS), ["img", None]).arrays) == ["img"]


def test_whatever_numpy_takes_is_taken():
    feeds = read_feeds({"ids": [[1, 2], [3, 4]], "text": ["a", "b"]}, None)
    assert feeds.named("ids").tolist() == [[1, 2], [3, 4]]
    assert feeds.rows == 2


def test_a_tensor_is_a_view_of_its_memory_and_is_remembered():
    paddle = pytest.importorskip("paddle")
    tensor = paddle.arange(6, dtype="float32").reshape([2, 3])
    feeds = read_feeds({"img": tensor}, None)
    assert feeds.tensors
    assert np.shares_memory(feeds.named("img"), np.from_dlpack(tensor))
    assert not read_feeds({"img": IMAGES}, None).tensors


def test_rows_are_selected_from_every_feed():
    feeds = read_feeds({"img": IMAGES, "label": LABELS}, None)
    some = feeds.select(np.array([0, 3]))
    assert (some.rows, some.named("label").tolist()) == (2, [0, 3])
    assert np.shares_memory(feeds.select(slice(1, 3)).named("img"), IMAGES)


@pytest.mark.parametrize(
    ("value", "names", "words"),
    [
        ({}, None, "no feeds"),
        ({"img": 3.0}, None, r"'img' has no rows"),
        ({"img": IMAGES, "label": LABELS[:3]}, None, "'img' has 4, 'label' has 3"),
        ({"ids": [[1], [2, 3]]}, None, "'ids' cannot become an array"),
        ((IMAGES,), None, r"must be a dict .* not tuple.*feeds=\[\.\.\.\]"),
        ((IMAGES,), ["img", "label"], "has 1 slots, but feeds names 2"),
        ((IMAGES, LABELS, LABELS), ["img", "label"], "has 3 slots, but feeds names 2"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(value, names, words):
    with pytest.raises(SourceError, match=words):
        read_feeds(value, names)


def test_a_feed_that_is_missing_is_named_with_those_that_are_there():
    with pytest.raises(SourceError, match="no 'img'; it has 'image', 'label'"):
        read_feeds({"image": IMAGES, "label": LABELS}, None).named("img")


# --- answers in order ---------------------------------------------------------------------------


class Teacher:
    """Answers what is asked, when it is told to. ``asked``: numbers, in the order of asking."""

    def __init__(self):
        self.asked, self.futures = [], []

    def submit(self, number):
        self.asked.append(number)
        self.futures.append(Future())
        return self.futures[-1]

    def answer(self, number):
        self.futures[number].set_result({"number": np.array([self.asked[number]])})


class Busy(Teacher):
    """Answers in a thread of its own, at any time the one of those asked with the least key."""

    def __init__(self, keys):
        super().__init__()
        self._keys = keys
        self._waiting, self._changed = [], threading.Condition()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def submit(self, number):
        with self._changed:
            future = super().submit(number)
            self._waiting.append(number)
            self._changed.notify()
        return future

    def _work(self):
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                number = min(self._waiting, key=lambda number: self._keys[number])
                self._waiting.remove(number)
            if number == len(self._keys) - 1:
                return
            self.answer(number)

    def close(self):
        self.submit(len(self._keys) - 1)
        self._thread.join()


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=15),
    st.lists(st.booleans(), min_size=1, max_size=7),
    st.sampled_from([None, 0, 1, 3]),
)
def test_answers_come_in_the_order_of_the_items_whatever_the_order_of_answering(
    keys, wanted, ahead
):
    count, answers = len(keys) - 1, itertools.cycle(wanted)
    with contextlib.closing(Busy(keys)) as teacher:
        limits = Limits(high_batches=3)
        taken = []
        for answer in in_order(range(count), teacher.submit, lambda: next(answers), limits, ahead):
            taken += answer["number"].tolist()
            if ahead is not None:
                assert len(teacher.asked) - len(taken) <= ahead
        assert taken == teacher.asked == list(range(count))


def test_no_more_is_read_than_finished_answers_may_be():
    teacher = Teacher()

    def submit(number):
        future = teacher.submit(number)
        if number:
            teacher.answer(number)
        return future

    answers = in_order(range(1000), submit, lambda: True, Limits(high_batches=5))
    timer = threading.Timer(0.3, teacher.answer, [0])
    timer.start()
    next(answers)
    timer.join()
    assert len(teacher.asked) == 6
    next(answers)
    assert len(teacher.asked) <= 7


def test_nor_than_their_bytes_may_be():
    def submit(number):
        future = Future()
        if number:
            future.set_result({"logits": np.zeros(1000, "f4")})
        else:
            threading.Timer(0.3, future.set_result, [{"logits": np.zeros(1000, "f4")}]).start()
        read.append(number)
        return future

    read = []
    next(in_order(range(1000), submit, lambda: True, Limits(high_bytes=12_000)))
    assert len(read) == 4


def test_one_is_read_for_each_that_is_taken_if_teachers_are_faster():
    teacher = Teacher()

    def submit(number):
        future = teacher.submit(number)
        teacher.answer(number)
        return future

    answers = in_order(range(100), submit, lambda: True, Limits())
    for number in range(5):
        assert next(answers)["number"].tolist() == [number]
        assert len(teacher.asked) <= number + 2


def test_an_error_of_a_request_comes_in_its_turn_and_ends_it():
    teacher = Teacher()
    answers = in_order(range(10), teacher.submit, lambda: len(teacher.asked) < 4, Limits())

    def answer():
        teacher.futures[1].set_exception(SourceError("too dark"))
        teacher.answer(0)

    threading.Timer(0.2, answer).start()
    assert next(answers)["number"].tolist() == [0]
    with pytest.raises(SourceError, match="too dark"):
        next(answers)
    assert all(future.cancelled() for future in teacher.futures[2:])


def test_so_does_an_error_of_what_is_read():
    teacher = Teacher()

    def items():
        yield 0
        raise OSError("bad file")

    answers = in_order(items(), teacher.submit, lambda: True, Limits())
    threading.Timer(0.2, teacher.answer, [0]).start()
    assert next(answers)["number"].tolist() == [0]
    with pytest.raises(OSError, match="bad file"):
        next(answers)


def test_what_was_asked_is_cancelled_when_it_is_left():
    teacher = Teacher()
    answers = in_order(range(10), teacher.submit, lambda: len(teacher.asked) < 4, Limits())
    threading.Timer(0.2, teacher.answer, [0]).start()
    next(answers)
    answers.close()
    assert len(teacher.futures) > 1
    assert all(future.cancelled() for future in teacher.futures[1:])
