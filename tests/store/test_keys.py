"""A row's digest: of all that it holds, and of nothing else."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.store.keys import Slot, digests

DTYPES = ["float32", "float16", "int64", "uint8", "bool", ">f4"]
images = arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(min_dims=1, max_dims=4))


def of(*slots, lengths=None):
    return digests([Slot(*slot) for slot in slots], lengths)


@given(images)
def test_a_row_has_the_same_digest_wherever_it_is(array):
    whole = of(("img", array))
    for row in range(len(array)):
        assert of(("img", array[row : row + 1].copy())) == [whole[row]]
    assert of(("img", array[::-1])) == whole[::-1]


@given(images, st.data())
def test_a_row_that_differs_in_one_byte_has_another(array, data):
    changed = np.ascontiguousarray(array).copy()
    octets = changed.reshape(-1).view(np.uint8)
    octets[data.draw(st.integers(0, len(octets) - 1))] ^= 1
    same = [a == b for a, b in zip(of(("img", array)), of(("img", changed)))]
    assert same.count(False) == 1


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5), st.integers(0, 4))
def test_how_wide_the_batch_is_makes_no_difference(rows, more):
    width = max(1, *map(len, rows))
    lengths = np.array([len(row) for row in rows])

    def filled(width, pad):
        return np.array([row + [pad] * (width - len(row)) for row in rows]).reshape(-1, width)

    narrow = of(("ids", filled(width, 0), True), lengths=lengths)
    wide = of(("ids", filled(width + more, 7), True), lengths=lengths)
    assert narrow == wide
    assert len(set(narrow)) == len({tuple(row) for row in rows})


@pytest.mark.parametrize(
    "other",
    [
        np.zeros((1, 2, 2), "float32"),
        np.zeros((1, 4, 1), "float32"),
        np.zeros((1, 4), "int32"),
        np.zeros((1, 2), "float64"),
        np.zeros((1, 5), "float32"),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_shape_and_dtype_count_although_the_bytes_are_the_same(other):
    assert of(("img", np.zeros((1, 4), "float32"))) != of(("img", other))


def test_a_scalar_is_not_a_row_of_one():
    assert of(("n", np.zeros(3, "int64"))) != of(("n", np.zeros((3, 1), "int64")))


def test_names_count_and_their_order_does_not():
    one, two = np.arange(4).reshape(2, 2), np.arange(4, 8).reshape(2, 2)
    assert of(("a", one), ("b", two)) == of(("b", two), ("a", one))
    assert of(("a", one), ("b", two)) != of(("a", two), ("b", one))
    assert of(("a", one)) != of(("b", one))


def test_bytes_do_not_move_from_one_slot_to_the_next():
    first = of(("a", np.array([[1, 2, 0]]), True), ("b", np.array([[3, 0, 0]]), True),
               lengths=np.array([2]))  # fmt: skip
    second = of(("a", np.array([[1, 0, 0]]), True), ("b", np.array([[2, 3, 0]]), True),
                lengths=np.array([1]))  # fmt: skip
    assert first != second


def test_texts_are_known_by_what_they_say():
    texts = np.array(["a", "long one"])
    assert of(("text", texts))[:1] == of(("text", texts[:1].astype("U1")))
    assert of(("text", texts)) == of(("text", texts.astype(object)))


def test_no_rows_have_no_digests():
    assert of(("img", np.zeros((0, 3, 2), "float32"))) == []
    assert len(set(of(("img", np.zeros((2, 0), "float32"))))) == 1
