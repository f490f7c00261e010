"""Which waiting requests are computed together.

Requests can share a batch if they have the same feeds with the same dtypes and row shapes, and
want the same outputs. The oldest request decides what the next batch is made of; others that fit
join it in their order of arrival. No clock and no I/O: the caller passes the time in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Optional, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass
class Waiting(Generic[T]):
    """A request in the queue: ``key`` says what it can be batched with."""

    item: T
    rows: int
    key: Hashable
    since: float


class Batcher(Generic[T]):
    """The queue of requests in front of the workers.

    ``max_rows``: a batch stays within it, unless one request alone is larger.
    ``max_wait``: seconds the oldest request is held back for others to join it.
    """

    def __init__(self, max_rows: int, max_wait: float = 0.0) -> None:
        self._max_rows = max_rows
        self._max_wait = max_wait
        self._queue: deque[Waiting[T]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, item: T, rows: int, key: Hashable, now: float) -> None:
        """Append a request of ``rows`` rows."""
        self._queue.append(Waiting(item, rows, key, now))

    def due(self) -> Optional[float]:
        """When the next batch is complete: a time in the past if it is already; None if empty."""
        if not self._queue:
            return None
        oldest = self._queue[0]
        if self._max_wait <= 0:
            return oldest.since
        rows = sum(waiting.rows for waiting in self._queue if waiting.key == oldest.key)
        return oldest.since if rows >= self._max_rows else oldest.since + self._max_wait

    def take(self) -> list[T]:
        """Remove and return the next batch, the oldest request first. Empty if none waits."""
        if not self._queue:
            return []
        oldest = self._queue.popleft()
        batch, rows = [oldest.item], oldest.rows
        passed_over: list[Waiting[T]] = []
        while self._queue and rows < self._max_rows:
            waiting = self._queue.popleft()
            if waiting.key == oldest.key and rows + waiting.rows <= self._max_rows:
                batch.append(waiting.item)
                rows += waiting.rows
            else:
                passed_over.append(waiting)
        self._queue.extendleft(reversed(passed_over))
        return batch


def batch_key(feeds: dict[str, np.ndarray], fetches: list[str]) -> Hashable:
    """Requests with equal keys can be concatenated along their rows."""
    shapes = tuple(
        (name, array.dtype.str, array.shape[1:]) for name, array in sorted(feeds.items())
    )
    return shapes, tuple(sorted(fetches))
