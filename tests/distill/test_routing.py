"""Rows that are shared out by a tag, and their answers in the rows' order."""

import threading
from concurrent.futures import Future, wait

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.distill.routing import Share, gather, join_shares, share_out
from edl.errors import ReaderError, SourceError

NAMES = ["math", "code", "law"]
TAGS = st.lists(st.sampled_from(NAMES), max_size=20)


def rows_of(share, count):
    return np.arange(count)[share.rows].tolist()


@given(TAGS)
def test_each_row_goes_to_the_teachers_of_its_tag_once_and_back_to_its_place(tags):
    shares = share_out(np.array(tags, dtype=str), NAMES, "domain")
    shared = [(row, share.name) for share in shares for row in rows_of(share, len(tags))]
    assert sorted(shared) == list(enumerate(tags))
    answers = [
        {"logits": np.array([[row, NAMES.index(share.name)] for row in rows], "f4").reshape(-1, 2)}
        for share in shares
        for rows in [rows_of(share, len(tags))]
    ]
    joined = join_shares(shares, answers, len(tags))["logits"]
    expected = [[row, NAMES.index(tag)] for row, tag in enumerate(tags)]
    assert joined.tolist() == expected
    assert joined.dtype == np.float32


@given(TAGS)
def test_no_teacher_is_asked_for_nothing(tags):
    shares = share_out(np.array(tags, dtype=str), NAMES, "domain")
    assert len({share.name for share in shares}) == len(shares)
    if tags:
        assert all(rows_of(share, len(tags)) for share in shares)
    else:
        assert len(shares) == 1, "only a teacher knows the shapes of its outputs"


def test_rows_that_lie_together_are_views():
    (first, second) = share_out(np.array(["code", "code", "math"]), NAMES, "domain")
    assert (first, second) == (Share("math", slice(2, 3)), Share("code", slice(0, 2)))


@pytest.mark.parametrize("tags", [[0, 1, 0], np.array([False, True, False]), [b"0", b"1", b"0"]])
def test_tags_may_be_numbers(tags):
    names = ["False", "True"] if np.asarray(tags).dtype == bool else ["0", "1"]
    shares = share_out(np.asarray(tags), names, "task")
    assert [rows_of(share, 3) for share in shares] == [[0, 2], [1]]


def test_an_unknown_tag_is_named_with_its_row_and_the_teachers():
    tags = np.array(["math", "cooking"])
    words = "'domain' of row 1 is 'cooking'; the teachers are named math, code, law"
    with pytest.raises(SourceError, match=words):
        share_out(tags, NAMES, "domain")
    with pytest.raises(SourceError, match="one tag a row"):
        share_out(np.array([["math"]]), NAMES, "domain")


@pytest.mark.parametrize("other", [np.zeros((1, 3), "f4"), np.zeros((1, 2), "f8")])
def test_answers_of_different_shapes_or_dtypes_are_refused_by_name(other):
    shares = [Share("math", slice(0, 1)), Share("code", slice(1, 2))]
    answers = [{"logits": np.zeros((1, 2), "f4")}, {"logits": other}]
    with pytest.raises(ReaderError, match=r"'logits' has rows of .* from math, .* from code"):
        join_shares(shares, answers, 2)


# --- futures ------------------------------------------------------------------------------------


@given(st.permutations(range(4)))
def test_the_whole_is_there_when_the_last_part_is(order):
    parts = [Future() for _ in order]
    whole = gather(parts, list)
    for number in order:
        assert not whole.done()
        parts[number].set_result(number)
    assert whole.result() == [0, 1, 2, 3]


def test_parts_may_be_there_before():
    parts = [Future(), Future()]
    for part in parts:
        part.set_result(1)
    assert gather(parts, sum).result() == 2


def test_the_first_error_is_that_of_the_whole_and_cancels_the_others():
    parts = [Future(), Future(), Future()]
    whole = gather(parts, list)
    parts[1].set_exception(ReaderError("too dark"))
    assert parts[0].cancelled()
    assert parts[2].cancelled()
    with pytest.raises(ReaderError, match="too dark"):
        whole.result(0)


def test_what_is_cancelled_as_a_whole_is_cancelled_in_every_part():
    parts = [Future(), Future()]
    whole = gather(parts, list)
    assert whole.cancel()
    assert all(part.cancelled() for part in parts)
    assert wait([whole], timeout=5).done == {whole}, "those who wait are told"


def test_an_error_in_joining_is_that_of_the_whole():
    part = Future()
    whole = gather([part], lambda answers: 1 // 0)
    part.set_result(1)
    assert isinstance(whole.exception(0), ZeroDivisionError)


def test_parts_that_are_done_at_the_same_moment_conclude_it_once():
    for _ in range(50):
        parts = [Future() for _ in range(8)]
        whole = gather(parts, sum)
        barrier = threading.Barrier(len(parts))

        def give(part, barrier=barrier):
            barrier.wait()
            part.set_result(1)

        threads = [threading.Thread(target=give, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        assert whole.result(10) == 8
        for thread in threads:
            thread.join()
