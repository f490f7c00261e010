"""What the students of peers.py ask, and what must come back. Needs nothing but numpy.

The rows of a batch begin with their own numbers, and the answer of a model that does nothing is
the rows of a table with these numbers. So every answer shows whether it belongs to its batch,
and making it costs next to nothing: rows that follow one another are a view of the table.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

Answer = Sequence[np.ndarray]

#: What a batch begins with whose answers begin with its checksum, and that checksum's limit:
#: float16 has all integers below.
PROOF, CHECKSUMS = -1, 2048


class Work(Protocol):
    """Batches by number, and whether an answer is that batch's."""

    feed: str
    fetches: Sequence[str]

    def batch(self, number: int) -> np.ndarray: ...

    def matches(self, number: int, answer: Answer) -> bool: ...


@dataclass(frozen=True)
class Nothing:
    """Work for a model that does nothing.

    ``shape``: a batch's, rows first. ``kinds``: row shape and dtype of each fetch. ``variants``: so
    many different batches take turns.
    """

    feed: str
    shape: tuple[int, ...]
    dtype: str
    kinds: Mapping[str, tuple[tuple[int, ...], str]]
    variants: int

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def fetches(self) -> Sequence[str]:
        return list(self.kinds)

    @property
    def feed_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def answer_bytes(self) -> int:
        return sum(table[: self.rows].nbytes for table in self.tables)

    @cached_property
    def batches(self) -> list[np.ndarray]:
        generator = np.random.default_rng(0)
        numbers = np.arange(self.variants * self.rows).reshape(self.variants, self.rows)
        found = []
        for own in numbers:
            batch = generator.integers(0, 256, self.shape).astype(self.dtype)
            batch.reshape(self.rows, -1)[:, 0] = own
            found.append(batch)
        return found

    @cached_property
    def tables(self) -> list[np.ndarray]:
        """For each fetch: rows, each of which begins with its number."""
        count = self.variants * self.rows
        tables = []
        for shape, dtype in self.kinds.values():
            table = np.empty((count, *shape), dtype)
            table[:] = np.arange(np.prod(shape)).reshape(shape) % 1000
            table.reshape(count, -1)[:, 0] = np.arange(count)
            tables.append(table)
        return tables

    def batch(self, number: int) -> np.ndarray:
        return self.batches[number % self.variants]

    def proof(self) -> tuple[np.ndarray, Answer]:
        """A batch whose answer can only be known by who has received all of it; that answer."""
        batch = self.batches[0].copy()
        batch.flat[0] = PROOF
        return batch, self.answer(batch)

    def answer(self, batch: np.ndarray) -> Answer:
        """What the model says, of any number of rows from any batches."""
        numbers = batch.reshape(len(batch), -1)[:, 0].astype(np.intp)
        first, last = int(numbers[0]), int(numbers[-1])
        if first == PROOF:
            answer = [table[: len(batch)].copy() for table in self.tables]
            for array in answer:
                array.flat[0] = zlib.crc32(batch) % CHECKSUMS
            return answer
        follow = last - first == len(batch) - 1 and bool((np.diff(numbers) == 1).all())
        chosen = slice(first, last + 1) if follow else numbers
        return [table[chosen] for table in self.tables]

    def matches(self, number: int, answer: Answer) -> bool:
        first = number % self.variants * self.rows
        last = first + self.rows - 1
        return len(answer) == len(self.tables) and all(
            array.shape == table[: self.rows].shape
            and array.flat[0] == first
            and array[-1].flat[0] == last
            for array, table in zip(answer, self.tables)
        )

    def is_whole(self, number: int, answer: Answer) -> bool:
        """Whether it is that batch's answer to the last byte."""
        return self.matches(number, answer) and all(
            np.array_equal(array, table[first : first + self.rows])
            for first in [number % self.variants * self.rows]
            for array, table in zip(answer, self.tables)
        )

    def split(self, memory: memoryview) -> Answer:
        """The arrays that lie one behind the other in ``memory``, as views."""
        found, start = [], 0
        for table in self.tables:
            part = table[: self.rows]
            flat = np.frombuffer(memory[start : start + part.nbytes], part.dtype)
            found.append(flat.reshape(part.shape))
            start += part.nbytes
        return found


_ONE = {"prob": ((1000,), "float32")}

#: Work by name. The last one's answers are those of the 64 most likely classes.
NOTHING = {
    "3x224x224": Nothing("img", (32, 3, 224, 224), "float32", _ONE, 3),
    "1x28x28": Nothing("img", (32, 1, 28, 28), "float32", {"prob": ((10,), "float32")}, 7),
    "8x2048": Nothing(
        "ids",
        (8, 2048),
        "int64",
        {
            "values": ((2048, 64), "float16"),
            "indices": ((2048, 64), "int16"),
            "logsumexp": ((2048,), "float32"),
        },
        3,
    ),
    "row": Nothing("img", (1, 1, 2, 2), "float32", _ONE, 7),
}


class Recorded:
    """Work for a real model: ``answers`` are what it has said to ``batches`` before."""

    def __init__(
        self, feed: str, fetch: str, batches: Sequence[np.ndarray], answers: Sequence[np.ndarray]
    ) -> None:
        self.feed, self.fetches = feed, [fetch]
        self._batches, self._answers = batches, answers

    def batch(self, number: int) -> np.ndarray:
        return self._batches[number % len(self._batches)]

    def matches(self, number: int, answer: Answer) -> bool:
        if not self._answers:
            return True
        expected = self._answers[number % len(self._answers)]
        if answer[0].shape != expected.shape:
            return False
        # A GPU adds in another order, and in fewer bits, for another number of rows.
        near = 1e-2 * max(1.0, float(np.abs(expected).max()))
        return bool(np.abs(answer[0] - expected).max() < near)


#: Ids of a vocabulary, and the most of them in a row.
WORDS, LONGEST = 8000, 512


def images(rows: int, variants: int = 4) -> list[np.ndarray]:
    """Batches for a ResNet."""
    generator = np.random.default_rng(0)
    return [generator.random((rows, 3, 224, 224), dtype=np.float32) for _ in range(variants)]


def sentences(count: int) -> list[np.ndarray]:
    """(1, 16 to LONGEST) int64 ids from 1 on, each of its own length."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(16, LONGEST + 1, count)
    return [generator.integers(1, WORDS, (1, length)) for length in lengths]


def filled_up(rows: Sequence[np.ndarray], at_most: int) -> list[np.ndarray]:
    """Batches of so many rows, in order, each filled up with zeros to its longest row."""
    found = []
    for start in range(0, len(rows), at_most):
        part = rows[start : start + at_most]
        batch = np.zeros((len(part), max(row.shape[1] for row in part)), np.int64)
        for target, row in zip(batch, part):
            target[: row.shape[1]] = row[0]
        found.append(batch)
    return found
