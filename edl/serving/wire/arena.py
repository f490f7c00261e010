"""Shared memory between processes: a teacher's front process and its workers, and students on the
same machine.

An arena is one ``memfd`` that both sides map; offsets into it are what they tell each other.
One side allocates and frees. Pages cost memory only once they are written, and a memfd is not
bound by the size of ``/dev/shm`` (64 MiB in many containers).
"""

from __future__ import annotations

import bisect
import fcntl
import mmap
import os
from typing import Optional

import numpy as np

from edl.errors import WireError

#: Blocks start at multiples of this (a cache line).
ALIGNMENT = 64

#: Numbers of Linux's <linux/fcntl.h>; Python's module has no names for them.
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4
_F_SEAL_WRITE, _F_SEAL_FUTURE_WRITE = 8, 16
_FIXED_SIZE = _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW


def aligned(size: int) -> int:
    """``size``, rounded up to a multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Allocator:
    """First-fit allocation of ``size`` bytes: which ranges are free, nothing else."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[tuple[int, int]] = [(0, size)]  # (offset, size), sorted, never adjacent
        self._used: dict[int, int] = {}

    @property
    def used(self) -> int:
        """Bytes in allocated blocks."""
        return sum(self._used.values())

    def allocate(self, size: int) -> Optional[int]:
        """The offset of a new block of at least ``size`` bytes, or None if none fits now."""
        size = max(ALIGNMENT, aligned(size))
        for index, (offset, room) in enumerate(self._free):
            if room >= size:
                if room == size:
                    del self._free[index]
                else:
                    self._free[index] = (offset + size, room - size)
                self._used[offset] = size
                return offset
        return None

    def free(self, offset: int) -> None:
        """Give a block back. Raises KeyError if ``offset`` is not an allocated block."""
        size = self._used.pop(offset)
        index = bisect.bisect(self._free, (offset, 0))
        if index < len(self._free) and self._free[index][0] == offset + size:
            size += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == offset:
            before, room = self._free[index - 1]
            self._free[index - 1] = (before, room + size)
        else:
            self._free.insert(index, (offset, size))


class Arena:
    """A mapped arena, for whoever created it (``create``) or was handed its fd (``attach``)."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)
        self._view = memoryview(self._map)
        self._base = np.frombuffer(self._view, np.uint8).__array_interface__["data"][0]

    @classmethod
    def create(cls, size: int, name: str) -> Arena:
        """A new arena of ``size`` bytes; its fd survives exec only where it is passed on."""
        fd = os.memfd_create(name)
        os.ftruncate(fd, size)
        return cls(fd, size)

    @classmethod
    def create_fixed(cls, size: int, name: str) -> Arena:
        """A new arena for a process that trusts this one with nothing (see ``attach_fixed``)."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, _F_ADD_SEALS, _FIXED_SIZE)
            return cls(fd, size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """Map the arena behind an inherited fd."""
        return cls(fd, os.fstat(fd).st_size)

    @classmethod
    def attach_fixed(cls, fd: int, limit: int) -> Arena:
        """Map memory that a stranger has handed over, whose ``fd`` is this arena's from then on.

        Raises WireError, and leaves the fd alone, unless it is a memfd whose size is sealed (one
        that shrinks would kill who reads it), of ordinary pages (there may be none of the huge
        ones when they are first read), not empty and not larger than ``limit`` bytes.
        """
        try:
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
            size = os.fstat(fd).st_size
            ordinary = os.fstatvfs(fd).f_bsize == mmap.PAGESIZE
        except OSError:
            raise WireError("what was handed over is no memfd") from None
        if seals & _FIXED_SIZE != _FIXED_SIZE:
            raise WireError("the memory's size is not sealed (F_SEAL_SEAL, _SHRINK and _GROW)")
        if seals & (_F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE):
            raise WireError("the memory is sealed against writing, so no answers fit")
        if not ordinary:
            raise WireError("the memory is not of ordinary pages")
        if not 0 < size <= limit:
            raise WireError(f"{size} bytes of memory were handed over; at most {limit} are taken")
        try:
            return cls(fd, size)
        except (OSError, ValueError) as error:
            raise WireError(f"the memory that was handed over cannot be mapped: {error}") from None

    def view(self, offset: int, size: int) -> memoryview:
        """``size`` bytes at ``offset``, shared with the other side."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at {offset} are outside the arena of {self.size}")
        return self._view[offset : offset + size]

    def offset_of(self, array: np.ndarray) -> Optional[int]:
        """Where ``array``, if it has elements, lies here; None if that is elsewhere."""
        offset = array.__array_interface__["data"][0] - self._base
        return offset if array.nbytes and 0 <= offset < self.size else None

    def close(self) -> None:
        """Close the fd; the mapping goes when the last array that views it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
