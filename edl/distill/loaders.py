"""The reader as the dataset of a ``paddle.io.DataLoader``: iterations that end when the student
leaves them, and that count what it has taken.

A DataLoader does not tell its dataset when it is left, and a thread of its own reads ahead of the
student, so ``DataLoader.__iter__`` is wrapped for datasets of our kind.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

from edl.distill.progress import Progress
from edl.distill.workers import worker_info
from edl.errors import ReaderError


@dataclass(frozen=True)
class Ahead:
    """A reader's iteration in this process, by somebody who is ahead of the student. ``progress``
    is to be told what the student takes; ``leave`` signals that nothing more is.
    """

    values: Iterator[Any]
    progress: Progress
    leave: Callable[[], None]


def tend_dataloaders(kind: type, read_ahead: Callable[[Any], Ahead]) -> None:
    """Let every DataLoader around a dataset of ``kind`` start new workers for each epoch, end an
    iteration that is left, and count without workers what the student takes.

    With persistent workers Paddle (3.3) does not end an epoch of an IterableDataset: who waits for
    the next batch when the last worker ends is woken by nobody, and where several end, it counts
    more requests than it allows itself. An iteration that is left early goes on for as long as the
    process lives, with its workers, because its thread holds it.
    """
    loader: Any = sys.modules["paddle"].io.DataLoader
    begin = loader.__iter__

    @functools.wraps(begin)
    def begin_anew(self: Any) -> Any:
        if not isinstance(self.dataset, kind) or worker_info() is not None:
            return begin(self)
        self._persistent_workers = False
        if self.num_workers:
            iteration = _with_workers(begin(self))
        else:
            iteration = _without_workers(self, begin, read_ahead(self.dataset))
        next(iteration)
        return iteration

    loader.__iter__ = begin_anew


# These yield something of no meaning first: a generator that was never begun does not end either.


def _with_workers(iterator: Any) -> Iterator[Any]:
    try:
        yield None
        yield from iterator
    finally:
        iterator._shutdown_on_exit()  # waits for a worker for a second at most


def _without_workers(loader: Any, begin: Callable[[Any], Any], ahead: Ahead) -> Iterator[Any]:
    left = False
    paddle: Any = sys.modules["paddle"]

    class Values(paddle.io.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            try:
                yield from ahead.values
            except ReaderError:  # for whoever iterates; nobody does any more
                if not left:
                    raise

    loader = copy.copy(loader)
    loader.dataset = Values()
    iterator = begin(loader)
    try:
        yield None
        for batch in iterator:
            for _ in range(loader.batch_size or 1):
                ahead.progress.deliver()
            yield batch
        ahead.progress.finish()
    finally:
        left = True
        ahead.leave()
        iterator._try_shutdown_all()
