"""Memory of arrays that nobody refers to any more, for those that come next.

Every batch of stored labels is arrays of the student's own, often of megabytes. Pieces so large an
allocator gives back to the system as soon as they are free, which then clears every page anew: that
takes longer than to fill them.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

#: Bytes of a piece that is kept: smaller ones an allocator keeps itself.
_SMALLEST, _LARGEST = 128 << 10, 64 << 20

#: How many are kept, and how many bytes together.
_MOST, _MOST_BYTES = 64, 128 << 20


class Memory:
    """Makes arrays. Takes no lock, so that memory may come back in any thread, at any moment."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=_MOST)  # the longest unused goes first

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        """Like numpy's. It is its user's alone for as long as there is any view of it."""
        of = np.dtype(dtype)
        nbytes = of.itemsize * math.prod(shape)
        if not _SMALLEST <= nbytes <= _LARGEST:
            return np.empty(shape, of)
        piece = self._take(nbytes)
        if piece is None:
            piece = np.empty(nbytes, np.uint8)
        return np.asarray(_Loan(piece, self, tuple(shape), of.str))

    def take_back(self, piece: np.ndarray) -> None:
        """Nobody uses it any more."""
        self._free.append(piece)
        while sum(map(len, tuple(self._free))) > _MOST_BYTES:
            with contextlib.suppress(IndexError):  # another thread has
                self._free.popleft()

    def _take(self, nbytes: int) -> Any:
        """A piece that is large enough, and not much larger; None if there is none. The last one to
        come back is the first to be used: some of it may be in a cache still.
        """
        for _ in range(len(self._free)):
            try:
                piece = self._free.pop()
            except IndexError:  # another thread has taken the last one
                return None
            if nbytes <= len(piece) <= 2 * nbytes:
                return piece
            self._free.appendleft(piece)
        return None


class _Loan:
    """What all views of one array refer to, so that its end is theirs."""

    def __init__(
        self, piece: np.ndarray, memory: Memory, shape: tuple[int, ...], dtype: str
    ) -> None:
        at = piece.__array_interface__["data"]
        self.__array_interface__ = {"data": at, "shape": shape, "typestr": dtype, "version": 3}
        self._piece, self._memory = piece, memory

    def __del__(self) -> None:
        self._memory.take_back(self._piece)
