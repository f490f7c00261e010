"""Labels of fixed tokens: what is said of them, and whether two agree."""

import numpy as np
import pytest

from edl.serving import Description
from edl.serving.wire.selftest import (
    DESCRIBED,
    SelfTest,
    difference,
    fixed_tokens,
    said,
    typical,
)

TEST = SelfTest(((3, 5), (4, 6)), ((-0.5, -1.0), (-0.25, -2.0)))


def described(value):
    return said(Description.from_json(Description({}, {}, {DESCRIBED: value}).to_json()))


def of_last(ids, logs):
    return SelfTest((TEST.ids[0], ids), (TEST.logs[0], logs))


def test_a_description_holds_what_was_said():
    assert described(TEST.to_json()) == TEST


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"ids": [[1]], "logs": [[]]},
        {"ids": [[1]], "logs": [["x"]]},
        {"ids": [[1.5]], "logs": [[0.0]]},
        {"ids": [[True]], "logs": [[0.0]]},
        {"ids": [[1]], "logs": [[float("nan")]]},
        {"ids": [[1]], "logs": [[10**400]]},
        {"ids": [1], "logs": [0.0]},
        {"ids": [[1] * 100], "logs": [[0.0] * 100]},
        {"ids": [[]] * 100, "logs": [[]] * 100},
    ],
)
def test_what_is_no_self_test_is_none(value):
    assert described(value) is None


@pytest.mark.parametrize(
    "other",
    [
        of_last((4, 6), (-0.7, -1.6)),
        of_last((4, 7), (-0.25, -2.1)),
        of_last((4, 6, 9), (-0.25, -2.0, -2.1)),
    ],
)
def test_rounding_is_no_difference(other):
    assert difference(TEST, other) == difference(other, TEST) == ""


@pytest.mark.parametrize(
    "other",
    [
        of_last((4, 6), (-0.8, -2.0)),
        of_last((4, 7), (-0.25, -1.0)),
        of_last((5, 6), (-0.25, -2.0)),
        SelfTest(TEST.ids[:1], TEST.logs[:1]),
    ],
)
def test_other_labels_are_a_difference_from_both_sides(other):
    assert difference(TEST, other)
    assert difference(other, TEST)


def test_the_typical_one_is_that_of_most_whatever_their_order():
    near, broken = of_last((4, 6), (-0.3, -1.9)), of_last((5, 6), (-0.1, -3.0))
    assert typical([broken, TEST, near]) in (TEST, near)
    assert typical([broken, TEST, near]) == typical([near, TEST, broken])
    assert typical([]) is None


@pytest.mark.parametrize("classes", [1, 2, 100, 150_000])
def test_the_fixed_tokens_are_of_the_vocabulary(classes):
    tokens = fixed_tokens(classes)
    assert tokens.dtype == np.int64
    assert 0 <= tokens.min() <= tokens.max() < classes
