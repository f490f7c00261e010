"""Memory of arrays that nobody refers to any more, for those that come next.

Every batch of stored labels is arrays of the student's own, often of megabytes. Pieces so large an
allocator gives back to the system as soon as they are free, which then clears every page anew: that
takes longer than to fill them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Bytes of a piece that is kept: smaller ones an allocator keeps itself.
_SMALLEST, _LARGEST = 128 << 10, 64 << 20

#: Bytes that are kept.
_MOST = 128 << 20


class Memory:
    """Makes arrays. Takes no lock, so that memory may come back in any thread, at any moment."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}  # pieces, by their bytes

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        """Like numpy's. It is its user's alone for as long as there is any view of it."""
        of = np.dtype(dtype)
        nbytes = of.itemsize * math.prod(shape)
        if not _SMALLEST <= nbytes <= _LARGEST:
            return np.empty(shape, of)
        step = 1 << (nbytes.bit_length() - 3)  # so that arrays of almost the same size share pieces
        size = -(-nbytes // step) * step
        try:
            piece = self._free[size].pop()  # the last one, of which some may be in a cache still
        except (KeyError, IndexError):
            piece = np.empty(size, np.uint8)
        return np.asarray(_Loan(piece, self, tuple(shape), of.str))

    def take_back(self, piece: np.ndarray) -> None:
        """Nobody uses it any more."""
        self._free.setdefault(len(piece), []).append(piece)
        if sum(size * len(pieces) for size, pieces in tuple(self._free.items())) > _MOST:
            self._free = {}


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
