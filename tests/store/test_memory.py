"""Memory is used again once nobody refers to it, and never before."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edl.store.memory import Memory

SHAPE = (64, 1000)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array,
        lambda array: array[3:5],
        lambda array: array.T[1:],
        lambda array: array.view("uint8")[0],
        lambda array: memoryview(array[7]),
        lambda array: np.asarray(memoryview(array))[1:][:2],
        lambda array: np.from_dlpack(array[1]),
        iter,
    ],
)
def test_an_array_of_which_anything_is_left_is_nobody_elses(keep):
    memory = Memory()
    array = memory.empty(SHAPE, "float32")
    before, kept = address(array), keep(array)
    del array
    other = memory.empty(SHAPE, "float32")
    assert address(other) != before
    del kept
    assert address(memory.empty(SHAPE, "float32")) == before


def test_what_is_used_again_need_not_be_of_the_same_shape():
    memory = Memory()
    before = address(memory.empty(SHAPE, "float32"))
    array = memory.empty((640, 100), "float32")
    assert address(array) == before
    array[:] = 1
    assert array.shape == (640, 100)
    assert array.flags.writeable
    assert array.flags.c_contiguous
    del array
    assert address(memory.empty((64, 1010), "float32")) == before  # about as large
    assert address(memory.empty((64, 1300), "float32")) != before
    assert address(memory.empty((64, 512), "float32")) != before
    assert address(memory.empty((32, 2000), "float32")) == before


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5, 10)])
def test_small_arrays_are_numpys_own(shape):
    array = Memory().empty(shape, "int64")
    assert array.shape == shape
    assert array.flags.owndata


def test_no_more_than_some_of_it_is_kept():
    memory = Memory()
    arrays = [memory.empty((30 << 20,), "uint8") for _ in range(9)]
    while arrays:
        arrays.pop()
        kept = sum(len(piece) for pieces in memory._free.values() for piece in pieces)
        assert kept <= 128 << 20
    assert kept


def test_threads_never_get_the_same_memory():
    """Each array holds a number of its own for as long as it is there."""
    memory, wrong = Memory(), []

    def work(number):
        generator = np.random.default_rng(number)
        held = deque()
        for step in range(300):
            array = memory.empty((int(generator.integers(33, 66)), 1000), "float32")
            array[:] = number * 1000 + step
            held.append((number * 1000 + step, array[1:]))
            del array
            if len(held) > generator.integers(1, 6):
                value, view = held.popleft()
                if not (view == value).all():
                    wrong.append(value)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert not wrong
    assert any(memory._free.values())
