"""Shared memory: blocks never overlap, and everything comes back."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.serving.worker import control
from edl.serving.worker.arena import ALIGNMENT, Allocator, Arena

SIZE = 64 * ALIGNMENT


@given(st.lists(st.tuples(st.booleans(), st.integers(0, SIZE)), max_size=60))
def test_blocks_never_overlap_and_all_memory_comes_back(steps):
    allocator, blocks = Allocator(SIZE), {}
    for allocate, number in steps:
        if allocate or not blocks:
            offset = allocator.allocate(number)
            if offset is not None:
                assert offset % ALIGNMENT == 0
                assert offset + number <= SIZE
                for other, size in blocks.items():
                    assert offset + number <= other or other + size <= offset
                blocks[offset] = max(number, 1)
        else:
            offset = list(blocks)[number % len(blocks)]
            del blocks[offset]
            allocator.free(offset)
    for offset in blocks:
        allocator.free(offset)
    assert allocator.used == 0
    assert allocator.allocate(SIZE) == 0


def test_freeing_twice_is_an_error():
    allocator = Allocator(SIZE)
    offset = allocator.allocate(1)
    allocator.free(offset)
    with pytest.raises(KeyError):
        allocator.free(offset)


def test_another_process_sees_what_is_written():
    arena = Arena.create(1 << 20, "test")
    array = np.arange(5, dtype="f4")
    ref = control.tensor_ref(4096, array)
    control.resolve(arena, ref)[...] = array
    code = (
        "from edl.serving.worker import control; from edl.serving.worker.arena import Arena;"
        f"control.resolve(Arena.attach({arena.fd}), {ref!r})[...] *= 2"
    )
    subprocess.run([sys.executable, "-c", code], pass_fds=[arena.fd], check=True)
    assert control.resolve(arena, ref).tolist() == [0, 2, 4, 6, 8]
    os.close(arena.fd)


def test_a_view_outside_the_arena_is_refused():
    arena = Arena.create(1 << 12, "test")
    with pytest.raises(ValueError, match="outside"):
        arena.view(4000, 200)
    os.close(arena.fd)
