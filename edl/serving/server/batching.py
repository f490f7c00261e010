"""Which waiting requests are computed together, and in which order.

Requests can share a batch if they have the same feeds with the same dtypes and row shapes, and
want the same outputs. Where rows are sequences, those of about the same length share one, filled up
to the longest. Students share a teacher by rows (by tokens, where rows are sequences), not by how
much they queue: each request gets a start tag when it arrives, and the smallest tag is served first
(start-time fair queueing: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996). No clock and
no I/O: the caller passes the time in.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Optional, TypeVar

import numpy as np

from edl.serving.wire.description import TensorSpec

T = TypeVar("T")


@dataclass(order=True)
class Waiting(Generic[T]):
    """A request in the queue. ``start`` is its tag in virtual time, which counts rows or tokens.
    ``length``: tokens of a row; 0 where rows are no sequences.
    """

    start: float
    number: int
    item: T = field(compare=False)
    rows: int = field(compare=False)
    client: Hashable = field(compare=False)
    since: float = field(compare=False)
    length: int = field(compare=False, default=0)


@dataclass
class _Group(Generic[T]):
    """Requests that can share a batch: a heap, how many ``rows`` these have together, and the most
    tokens of any row.
    """

    heap: list[Waiting[T]] = field(default_factory=list)
    rows: int = 0
    longest: int = 0

    def push(self, waiting: Waiting[T]) -> None:
        heapq.heappush(self.heap, waiting)
        self.rows += waiting.rows
        self.longest = max(self.longest, waiting.length)

    def pop(self) -> Waiting[T]:
        """The first. Say ``settle`` after the last of several."""
        first = heapq.heappop(self.heap)
        self.rows -= first.rows
        return first

    def settle(self) -> None:
        """What is left may be of shorter rows."""
        if self.longest:
            self.longest = max((waiting.length for waiting in self.heap), default=0)


class Batcher(Generic[T]):
    """The queue of requests in front of the workers.

    ``max_rows``: a batch stays within it, unless one request alone is larger.
    ``max_wait``: seconds a request is held back for others to join it.
    ``max_queued``: requests beyond which those clients are refused that hold their share of it.
    ``max_tokens``: the same as ``max_rows`` for the tokens of a batch's rows, all filled up to the
    longest; None: any number. It limits nothing where rows are no sequences.
    """

    def __init__(
        self,
        max_rows: int,
        max_wait: float = 0.0,
        max_queued: int = 1024,
        max_tokens: Optional[int] = None,
    ) -> None:
        self.max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_wait = max_wait
        self._max_queued = max_queued
        self._groups: dict[Hashable, _Group[T]] = {}
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        self._finish: dict[Hashable, float] = {}  # the tag of each client's next request
        self._queued: Counter[Hashable] = Counter()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(group.rows for group in self._groups.values())

    def is_full(self, client: Hashable) -> bool:
        """Whether another request of ``client`` is too much. One that queues little is let in when
        others have filled the queue, so the queue may grow to twice its limit.
        """
        if self._length < self._max_queued:
            return False
        clients = len(self._queued.keys() | {client})
        return self._queued[client] * clients >= self._max_queued

    def add(
        self,
        item: T,
        rows: int,
        key: Hashable,
        client: Hashable,
        now: float,
        length: int = 0,
        again: bool = False,
    ) -> None:
        """Append a request of ``rows`` rows, each of ``length`` tokens where they are sequences.
        ``key`` says what it can be batched with. ``again``: it had been taken, in vain: its turn
        has come already, and its client has paid for it.
        """
        start = self._virtual_time
        if not again:
            start = max(start, self._finish.get(client, 0.0))
            self._finish[client] = start + rows * max(1, length)
        self._queued[client] += 1
        self._length += 1
        waiting = Waiting(start, next(self._numbers), item, rows, client, now, length)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
        group.push(waiting)

    def due(self) -> Optional[float]:
        """When the next batch is complete: a time in the past if it is already; None if empty."""
        return min(map(self._due, self._groups.values()), default=None)

    def take(self, now: float, ahead: bool = False) -> list[T]:
        """Remove and return the batch that is next, the first request first. Empty if none is due:
        neither full nor as old as ``max_wait``. ``ahead``: it is not computed at once; empty
        unless it is full, and nothing that comes meanwhile could join it.
        """
        due = [key for key, group in self._groups.items() if self._due(group) <= now]
        if not due:
            return []
        key = min(due, key=lambda key: self._groups[key].heap[0])
        group = self._groups[key]
        heap = group.heap
        if ahead and not self._is_full(group):
            return []
        self._virtual_time = heap[0].start
        batch: list[T] = []
        rows = length = 0
        while heap and (not batch or self._fits(rows + heap[0].rows, length, heap[0].length)):
            waiting = group.pop()
            batch.append(waiting.item)
            rows += waiting.rows
            length = max(length, waiting.length)
            self._left(waiting.client)
        group.settle()
        if not heap:
            del self._groups[key]
        return batch

    def clear(self) -> list[T]:
        """Remove and return everything."""
        items = [each.item for group in self._groups.values() for each in sorted(group.heap)]
        self._groups.clear()
        self._finish.clear()
        self._queued.clear()
        self._length, self._virtual_time = 0, 0.0
        return items

    def _due(self, group: _Group[T]) -> float:
        if not self._max_wait:
            return group.heap[0].since
        oldest = min(waiting.since for waiting in group.heap)
        return oldest if self._is_full(group) else oldest + self._max_wait

    def _is_full(self, group: _Group[T]) -> bool:
        """Whether no row that may come could still join the next batch."""
        return not self._fits(group.rows + 1, group.longest)

    def _fits(self, rows: int, *lengths: int) -> bool:
        """Whether so many rows, filled up to the longest, are within the limits of a batch."""
        if rows > self.max_rows:
            return False
        return self._max_tokens is None or rows * max(lengths) <= self._max_tokens

    def _left(self, client: Hashable) -> None:
        self._length -= 1
        self._queued[client] -= 1
        if not self._queued[client]:
            del self._queued[client]
        if not self._length:  # nobody waits, so nobody is owed anything
            self._finish.clear()
            self._virtual_time = 0.0
        elif len(self._finish) > 2 * len(self._queued) + 64:
            self._finish = {client: self._finish[client] for client in self._queued}


def batch_key(
    feeds: Mapping[str, np.ndarray],
    fetches: list[str],
    specs: Optional[Mapping[str, TensorSpec]] = None,
) -> Hashable:
    """Requests with equal keys can be concatenated along their rows, once their sequences (see
    ``specs``) are filled up to the same length, which at most doubles them.
    """
    shapes = tuple(
        (name, array.dtype.str, _alike(array, specs.get(name) if specs else None))
        for name, array in sorted(feeds.items())
    )
    return shapes, tuple(sorted(fetches))


def _alike(array: np.ndarray, spec: Optional[TensorSpec]) -> tuple[int, ...]:
    """A row's shape; of a sequence's length, only how many binary digits it has."""
    row = array.shape[1:]
    if spec is None or spec.pad is None:
        return row
    return ((row[0] - 1).bit_length(), *row[1:])


def sequence_length(feeds: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec]) -> int:
    """Tokens of each row; 0 if rows are no sequences. Raises ValueError, which names them, if feeds
    differ in it.
    """
    lengths = {
        name: array.shape[1]
        for name, array in feeds.items()
        if name in specs and specs[name].pad is not None
    }
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"feeds differ in the length of their rows ({said})")
    return next(iter(lengths.values()), 0)
