"""Tasks that share a request."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.distill.joining import Prepared, feeds_of, joined, split
from edl.distill.lengths import Span
from edl.distill.state import Task
from edl.errors import WireError


def part(number, rows=2, alone=False, length=0, **feeds):
    task = Task(number, number, 0, 0, rows, alone=alone)
    feeds = feeds or {"img": np.full((rows, 3), number, "float32")}
    return Prepared(task, Span(rows, length, length), feeds, {})


def numbers(requests):
    return [[part.task.id for part in request] for request in requests]


def test_those_share_one_that_fit():
    parts = [part(number) for number in range(5)]
    assert numbers(joined(parts, 4)) == [[0, 1], [2, 3], [4]]
    assert numbers(joined(parts, 100)) == [[0, 1, 2, 3, 4]]
    assert numbers(joined(parts, 1)) == [[0], [1], [2], [3], [4]]


def test_one_that_is_larger_than_the_limit_goes_as_it_is():
    parts = [part(0), part(1, rows=9), part(2), part(3)]
    assert numbers(joined(parts, 4)) == [[0], [1], [2, 3]]


@pytest.mark.parametrize(
    "other",
    [
        part(1, alone=True),
        part(1, length=7, img=np.zeros((2, 3), "float32")),
        part(1, img=np.zeros((2, 4), "float32")),
        part(1, img=np.zeros((2, 3), "float16")),
        part(1, image=np.zeros((2, 3), "float32")),
        part(1, img=np.zeros((2, 3), "float32"), seed=np.zeros(2, "int64")),
    ],
    ids=["alone", "sequence", "shape", "dtype", "name", "more"],
)
def test_what_is_not_alike_goes_by_itself(other):
    assert numbers(joined([part(0), other, part(2)], 100)) == [[0], [1], [2]]


def test_nothing_is_copied_for_one():
    only = part(0)
    assert feeds_of([only])["img"] is only.feeds["img"]
    outputs = {"prob": np.zeros((2, 10))}
    assert split(outputs, [only])[0]["prob"] is outputs["prob"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 12))
def test_each_gets_the_answer_to_its_own_rows(sizes, most):
    parts = [part(number, rows) for number, rows in enumerate(sizes)]
    requests = joined(parts, most)
    assert [part for request in requests for part in request] == parts
    for request in requests:
        rows = sum(part.span.rows for part in request)
        assert rows <= most or len(request) == 1
        outputs = {"sum": feeds_of(request)["img"].sum(axis=1, keepdims=True)}
        for part_, answer in zip(request, split(outputs, request)):
            np.testing.assert_array_equal(answer["sum"], part_.feeds["img"].sum(1, keepdims=True))


@pytest.mark.parametrize("shape", [(3, 10), (5, 10), ()])
def test_an_answer_of_another_number_of_rows_is_refused_by_name(shape):
    with pytest.raises(WireError, match=r"'prob' has shape .* for 4 rows"):
        split({"prob": np.zeros(shape)}, [part(0), part(1)])


def test_who_keeps_a_large_answer_keeps_no_other_with_it():
    parts = [part(number) for number in range(3)]
    outputs = {"small": np.zeros((6, 10)), "large": np.zeros((6, 10_000))}
    answers = split(outputs, parts)
    assert all(answer["small"].base is outputs["small"] for answer in answers)
    assert all(answer["large"].base is None for answer in answers)
