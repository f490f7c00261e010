"""Arrays as numpy's text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edl.errors import WireError
from edl.serving.wire.array_text import format_array, parse_array

KINDS = ("i8", "f4", "i4", "f8", "i2", "f2", "u2", "u1", "i1", "?")
arrays = st.sampled_from(KINDS).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
)


@given(arrays)
def test_repr_comes_back_with_its_dtype(array):
    parsed = parse_array(format_array(array))
    assert parsed.dtype == array.dtype
    np.testing.assert_array_equal(parsed, array)


@given(arrays)
def test_str_comes_back_with_its_values(array):
    with np.printoptions(threshold=10**9, floatmode="unique"):
        parsed = parse_array(str(array))
    np.testing.assert_array_equal(parsed.astype(array.dtype), array)


def test_what_paddle_servings_example_answers():
    assert parse_array("[[18.901152]]").tolist() == [[18.901152]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2]", np.array([1, 2])),
        ("[[1.5, nan], [inf, -2e3]]", np.array([[1.5, np.nan], [np.inf, -2000.0]])),
        ("array([], shape=(0, 3), dtype=float32)", np.empty((0, 3), "f4")),
        ("array([], dtype=int64)", np.empty(0, "i8")),
        ("[9007199254740993]", np.array([2**53 + 1])),
    ],
)
def test_other_ways_of_writing(text, value):
    parsed = parse_array(text)
    assert (parsed.dtype, parsed.shape) == (value.dtype, value.shape)
    np.testing.assert_array_equal(parsed, value)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "[", "]", "][", "[[1, 2], [3]]", "[1] [2]", "[1, x]", "[__import__('os')]",
     "array([1], dtype=object)", "[[1]", "[1]]", "[1, 2]], [[3", "[[[1], [2]], [[3]]]"],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(WireError, match="not an array"):
        parse_array(text)


@given(st.text("[]1 ,.e-naif()=x", max_size=30))
def test_any_text_is_an_array_or_a_wire_error(text):
    try:
        parse_array(text)
    except WireError:
        pass
