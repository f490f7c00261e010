"""Shared memory: blocks never overlap, and everything comes back."""

import fcntl
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.errors import WireError
from edl.serving.wire.arena import ALIGNMENT, Allocator, Arena
from edl.serving.worker import control

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
        "from edl.serving.worker import control; from edl.serving.wire.arena import Arena;"
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


@pytest.fixture
def fd():
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 16)
    yield fd
    os.close(fd)


def seal(fd, seals):
    """1: no more seals, 2: not to shrink, 4: not to grow, 16: nobody else may write."""
    fcntl.fcntl(fd, 1033, seals)  # F_ADD_SEALS


def test_memory_of_a_fixed_size_is_taken_from_a_stranger_and_shared_with_it():
    ours = Arena.create_fixed(1 << 16, "test")
    theirs = Arena.attach_fixed(os.dup(ours.fd), 1 << 16)
    theirs.view(64, 4)[:] = b"word"
    assert bytes(ours.view(64, 4)) == b"word"
    with pytest.raises(PermissionError):
        os.ftruncate(ours.fd, 64)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("seals", "said"),
    [
        (0, "size is not sealed"),
        (1 | 2, "size is not sealed"),  # may grow
        (1 | 4, "size is not sealed"),  # may shrink
        (2 | 4, "size is not sealed"),  # more seals may come
        (1 | 2 | 4 | 16, "sealed against writing"),
    ],
)
def test_memory_that_its_owner_could_take_away_is_not_taken(fd, seals, said):
    if seals:
        seal(fd, seals)
    with pytest.raises(WireError, match=said):
        Arena.attach_fixed(fd, 1 << 16)
    os.fstat(fd)  # is its owner's still


def test_memory_that_is_too_large_or_empty_is_not_taken(fd):
    seal(fd, 7)
    with pytest.raises(WireError, match="65536 bytes of memory were handed over; at most 65535"):
        Arena.attach_fixed(fd, (1 << 16) - 1)
    empty = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    seal(empty, 7)
    with pytest.raises(WireError, match="0 bytes of memory"):
        Arena.attach_fixed(empty, 1 << 16)
    os.close(empty)


def test_what_is_no_memfd_is_not_taken(tmp_path):
    (tmp_path / "file").write_bytes(bytes(4096))
    with open(tmp_path / "file", "r+b") as file, pytest.raises(WireError, match="no memfd"):
        Arena.attach_fixed(file.fileno(), 1 << 16)
    reads, writes = os.pipe()
    with pytest.raises(WireError, match="no memfd"):
        Arena.attach_fixed(reads, 1 << 16)
    os.close(reads)
    os.close(writes)


def test_memory_that_is_handed_over_to_be_read_only_is_not_taken(fd):
    seal(fd, 7)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    with pytest.raises(WireError, match="cannot be mapped"):
        Arena.attach_fixed(read_only, 1 << 16)
    os.close(read_only)


def test_huge_pages_of_which_there_may_be_none_are_not_taken():
    huge = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    try:
        os.ftruncate(huge, 2 << 20)
    except OSError:
        pytest.skip("this system has no huge pages at all")
    seal(huge, 7)
    with pytest.raises(WireError, match="not of ordinary pages"):
        Arena.attach_fixed(huge, 1 << 30)
    os.close(huge)


def test_a_forked_process_that_lets_go_of_an_arena_loses_nothing_else():
    size = 64 << 20
    arena = Arena.create_fixed(size, "edl-forked")
    child = os.fork()
    if not child:
        own = [mmap.mmap(-1, size) for _ in range(4)]  # one may lie where nothing else does
        del arena
        for each in own:
            each[size // 2] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    arena.close()
