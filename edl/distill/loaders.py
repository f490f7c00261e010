"""The reader as the dataset of a ``paddle.io.DataLoader``: iterations that begin and end with the
student's, and that count what it has taken.

A DataLoader does not tell its dataset when it is left, and its threads and workers read ahead of
the student, so ``DataLoader.__iter__`` is wrapped for datasets of our kind.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable, Optional

from edl._forking import note_thread, wait_for_ending_threads
from edl._threads import Loop
from edl.distill.collating import Collate, unpacked
from edl.distill.progress import Progress, Start
from edl.distill.waiting import COMPLAIN_EVERY
from edl.distill.workers import garbage_left_alone, worker_info
from edl.errors import ReaderError

logger = logging.getLogger(__name__)

_ENDED_WITHIN = 2.0
_LOOK_EVERY = 0.05


@dataclass(frozen=True)
class Iteration:
    """A reader's iteration in this process, by somebody who is ahead of the student. ``progress``
    is to be told what the student takes; ``leave`` signals that nothing more is.
    """

    values: Iterator[Any]
    progress: Progress
    leave: Callable[[], None]


def tend_dataloaders(
    kind: type, begin_here: Callable[[Any], Iteration], share: Callable[[Any], Progress]
) -> None:
    """Let every DataLoader around a dataset of ``kind`` start new workers for each epoch, end an
    iteration that is left, and count what the student takes; and let every DataLoader fork its
    workers when no thread of one before is ending any more.

    ``begin_here`` begins an iteration of the dataset without workers, ``share`` one with workers,
    which are forked next. With persistent workers Paddle (3.3) does not end an epoch of an
    IterableDataset: who waits for the next batch when the last worker ends is woken by nobody, and
    where several end, it counts more requests than it allows itself. An iteration that is left
    early goes on for as long as the process lives, with its workers, because its thread holds it.
    """
    loader: Any = sys.modules["paddle"].io.DataLoader
    original = loader.__iter__
    begin = _beside_no_ending_thread(original)
    here: weakref.WeakSet[Any] = weakref.WeakSet()

    @atexit.register  # before Paddle's function, which waits for threads that wait for teachers
    def end_all() -> None:
        for iteration in list(here):
            with contextlib.suppress(ValueError):  # another thread is in it
                iteration.close()

    @functools.wraps(original)
    def begin_anew(self: Any) -> Any:
        if not isinstance(self.dataset, kind) or worker_info() is not None:
            return begin(self)
        loader = copy.copy(self)
        loader._persistent_workers = False
        loader.collate_fn = Collate(self)
        if self.num_workers:
            progress = share(self.dataset)
            with garbage_left_alone():
                iterator = begin(loader)
            iteration = _with_workers(loader, iterator, progress)
        else:
            iteration = _without_workers(loader, begin, begin_here(self.dataset))
            here.add(iteration)
        next(iteration)
        return iteration

    loader.__iter__ = begin_anew


def _beside_no_ending_thread(begin: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``begin``, a DataLoader's ``__iter__``, which forks workers when no thread is ending that has
    read for an iteration before. Paddle's own thread looks every few seconds whether it is to end,
    and here several times a second.
    """

    def begin_then(loader: Any) -> Any:
        if loader.num_workers:
            wait_for_ending_threads(_ENDED_WITHIN)
        timeout, loader.timeout = loader.timeout, _LOOK_EVERY
        try:
            iterator = begin(loader)
        finally:
            loader.timeout = timeout
        note_thread(iterator._thread, iterator._thread_done_event, threading.Event.is_set)
        return iterator

    return begin_then


# These yield something of no meaning first: a generator that was never begun does not end either.


def _with_workers(loader: Any, iterator: Any, progress: Progress) -> Iterator[Any]:
    start = progress.start
    workers = ", ".join(str(worker.pid) for worker in iterator._workers)
    batches = _awaited(unpacked(iterator), f"the DataLoader's workers (processes {workers})")
    try:
        yield None
        yield from _counted(loader, batches, progress, start)
    finally:
        iterator._shutdown_on_exit()  # waits for a worker for a second at most


def _without_workers(loader: Any, begin: Callable[[Any], Any], ahead: Iteration) -> Iterator[Any]:
    failures: list[BaseException] = []
    start = ahead.progress.start
    paddle: Any = sys.modules["paddle"]

    class Values(paddle.io.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            try:
                yield from ahead.values
            except GeneratorExit:
                raise
            except BaseException as error:  # Paddle's thread would die of it, and leave us waiting
                failures.append(error)

    loader.dataset = Values()
    iterator = begin(loader)
    try:
        yield None
        yield from _counted(
            loader, _then_raise(unpacked(iterator), failures), ahead.progress, start
        )
    finally:
        ahead.leave()
        iterator._try_shutdown_all()


def _awaited(batches: Iterator[Any], what: str) -> Iterator[Any]:
    """``batches``, and a line in the log every few seconds that one takes: workers say by
    themselves what they wait for, but not when they are stopped, or stuck.
    """
    since: Optional[float] = time.monotonic()

    def complain() -> None:
        began = since
        if began is not None and (waited := time.monotonic() - began) >= COMPLAIN_EVERY:
            logger.warning("the student has waited %.0f s for %s", waited, what)

    loop = Loop("edl-awaited", complain, COMPLAIN_EVERY)
    loop.start()
    try:
        for batch in batches:
            since = None
            yield batch
            del batch
            since = time.monotonic()
    finally:
        loop.stop()


def _then_raise(batches: Iterator[Any], failures: list[BaseException]) -> Iterator[Any]:
    yield from batches
    if failures:
        raise failures[0]


def _counted(
    loader: Any, batches: Iterator[Any], progress: Progress, start: Start
) -> Iterator[Any]:
    """``batches`` of the iteration that has begun at ``start``, each counted as it reaches the
    student.
    """
    for batch in batches:
        if progress.start is not start:
            raise ReaderError(
                "another iteration of this reader has begun meanwhile; make a second DistillReader "
                "to read two at a time"
            )
        items = loader.batch_size or 1
        _raise_failure(progress, before=progress.delivered + items)
        for _ in range(items):
            progress.deliver()
        yield batch
    if progress.start is start:
        _raise_failure(progress, before=sys.maxsize)
        progress.finish()


def _raise_failure(progress: Progress, before: int) -> None:
    """Raise what has kept a worker from giving an item before that position."""
    failure = progress.handout.failure() if progress.handout is not None else None
    if failure is not None and failure[0] < before:
        raise failure[1]
