"""Shared memory between the teacher's front process and its workers.

An arena is one ``memfd`` that both sides map; offsets into it are what they tell each other.
One side allocates and frees. Pages cost memory only once they are written, and a memfd is not
bound by the size of ``/dev/shm`` (64 MiB in many containers).
"""

from __future__ import annotations

import bisect
import mmap
import os
from typing import Optional

#: Blocks start at multiples of this (a cache line).
ALIGNMENT = 64


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
        size = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
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

    @classmethod
    def create(cls, size: int, name: str) -> Arena:
        """A new arena of ``size`` bytes; its fd survives exec only where it is passed on."""
        fd = os.memfd_create(name)
        os.ftruncate(fd, size)
        return cls(fd, size)

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """Map the arena behind an inherited fd."""
        return cls(fd, os.fstat(fd).st_size)

    def view(self, offset: int, size: int) -> memoryview:
        """``size`` bytes at ``offset``, shared with the other side."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at {offset} are outside the arena of {self.size}")
        return self._view[offset : offset + size]

    def close(self) -> None:
        """Close the fd; the mapping goes when the last array that views it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
