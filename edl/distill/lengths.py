"""Rows of different length: of each request only its longest row is sent, and answers are widened.

A batch's rows are filled up at their end to one width. A teacher that says which of its feeds are
sequences computes fewer tokens just as well, so nothing is sent beyond the longest row of a
request, and its answer is given the batch's width again. What is filled in there means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import numpy as np

from edl.errors import SourceError


@dataclass(frozen=True)
class Span:
    """What of some rows is sent: ``length`` tokens of each, of the ``width`` that they have in
    their batch. 0: rows are no sequences.
    """

    rows: int
    length: int = 0
    width: int = 0

    @property
    def trimmed(self) -> bool:
        """Whether less is sent than there is."""
        return self.length < self.width

    @property
    def work(self) -> int:
        """What it takes a teacher: tokens where rows are sequences, rows elsewhere."""
        return self.rows * max(1, self.length)


def row_lengths(array: np.ndarray, first: int = 0) -> np.ndarray:
    """Tokens of each row, integers (rows,): what ``array`` says if it is such itself, or the ones
    in each row of a mask (rows, tokens) of ones followed by zeros. ``first``: the number of its
    first row, for the error.

    Raises SourceError for a mask with zeros anywhere else, and for what is neither.
    """
    if array.ndim == 1 and array.dtype.kind in "iu":
        if array.size and array.min() < 0:
            raise SourceError(f"row {first + int(array.argmin())} has a length of {array.min()}")
        return array
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise SourceError(
            f"{array.dtype} of shape {array.shape} is neither a mask (rows, tokens) of ones and "
            "zeros, nor integers (rows,), the length of each"
        )
    lengths = np.count_nonzero(array, axis=1)
    wrong = (array != (np.arange(array.shape[1]) < lengths[:, np.newaxis])).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise SourceError(
            f"row {first + row} of the mask {_fault(array[row])}; only rows that are filled up at "
            'their end can be trimmed: let the tokenizer do that (padding_side="right"), or leave '
            "out lengths=, and whole rows are sent"
        )
    return lengths


def _fault(row: np.ndarray) -> str:
    """What is wrong with a row of a mask."""
    strange = row[(row != 0) & (row != 1)]
    if strange.size:
        return f"holds {strange[0]}"
    return "has a 1 behind a 0" if row[0] else "begins with 0 (padding in front)"


def fill_up(array: np.ndarray, width: int, pad: Union[int, float]) -> np.ndarray:
    """A copy of ``array`` (rows, tokens, ...), (rows, ``width``, ...), with ``pad`` behind what it
    holds.
    """
    length = array.shape[1]
    filled = np.empty((len(array), width, *array.shape[2:]), array.dtype)
    filled[:, :length] = array
    filled[:, length:] = pad
    return filled
