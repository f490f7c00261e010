"""What a row is known by: a hash of what it holds.

128 bits of XXH3 over the name, dtype, row shape and bytes of every slot: two rows that differ in
any of these have different digests, as far as a hash that is not made against attackers can promise
that (two of 10^12 rows share one with a chance of 1 in 10^15). Nothing else goes in: not the row's
position, nor its neighbours, nor how wide the batch is that sequences are filled up to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from edl.store._libraries import import_xxhash

#: Bytes of a digest.
DIGEST = 16


@dataclass(frozen=True)
class Slot:
    """One slot of some rows: ``array`` is (rows, ...). ``sequence``: the first dimension of its
    rows is their length, and what is behind that is not theirs.
    """

    name: str
    array: np.ndarray
    sequence: bool = False


def digests(slots: Sequence[Slot], lengths: Optional[np.ndarray] = None) -> list[bytes]:
    """The digest of each row. ``lengths``: (rows,) integers, of the rows of slots that are
    sequences; None: as long as they are wide. Slots count in the order of their names.
    """
    slots = sorted(slots, key=lambda slot: slot.name)
    heads = "".join(_head(slot) for slot in slots)
    start = import_xxhash().xxh3_128(heads.encode())
    hashes = [start.copy() for _ in range(len(slots[0].array))]
    for slot in slots:
        _add(slot, lengths, hashes)
    return [each.digest() for each in hashes]


def _head(slot: Slot) -> str:
    """What all rows share; unambiguous when such are joined."""
    dtype = "text" if _is_text(slot.array) else slot.array.dtype.str
    return f"{len(slot.name)} {slot.name} {dtype} {slot.array.ndim} {slot.array.shape[2:]};"


def _add(slot: Slot, lengths: Optional[np.ndarray], hashes: Sequence[Any]) -> None:
    """Add to the hash of each row the size of its first dimension, and what it holds."""
    array = slot.array
    if _is_text(array):  # whose width depends on that of its neighbours
        for each, row in zip(hashes, array):
            plain = row.tolist() if isinstance(row, (np.ndarray, np.generic)) else row
            octets = repr(plain).encode()
            each.update(len(octets).to_bytes(8, "little") + octets)
        return
    rows, width = len(array), array.shape[1] if array.ndim > 1 else 1
    held = as_octets(array).data
    stride = len(held) // rows if rows else 0
    if not slot.sequence or lengths is None or array.ndim < 2:
        size = width.to_bytes(8, "little")
        starts = range(0, rows * stride, stride) if stride else [0] * rows
        for each, start in zip(hashes, starts):
            each.update(size)
            each.update(held[start : start + stride])
        return
    token = stride // width if width else 0
    for row, (each, length) in enumerate(zip(hashes, lengths.tolist())):
        each.update(length.to_bytes(8, "little"))
        each.update(held[row * stride : row * stride + length * token])


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "OUS"


def as_octets(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, (n,) uint8: a view, if it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
