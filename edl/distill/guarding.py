"""Reading a DataLoader as a source: what its dataset, its sampler or its ``collate_fn`` raises is
raised as itself in the batch's turn, and what Paddle has started for an epoch ends with it.

Paddle (3.3) lets a thread die of such an error. Without workers it then waits for ever, and takes a
StopIteration for the end of the epoch; with workers it says that a queue is killed. What is left
early goes on as a thread, or waits for its workers for ever when it is garbage.
"""

from __future__ import annotations

import copy
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Callable

from edl.distill.collating import Collate, unpacked
from edl.distill.workers import error_as_bytes, error_from_bytes, garbage_left_alone

_CAUGHT = (Exception, SystemExit)
_THREAD_ENDS_WITHIN = 1.0


class _Failed:
    """Takes the place of a sample, or of an index."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _failed, (error_as_bytes(self.error),)


def _failed(error: bytes) -> _Failed:
    return _Failed(error_from_bytes(error))


class _Dataset:
    """In the place of a dataset; what is looked at or set is the dataset's own."""

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_guarded", dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._guarded, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._guarded, name, value)

    def __len__(self) -> int:
        return len(self._guarded)


class _Samples(_Dataset):
    """A map-style one."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, _Failed):
            return index
        try:
            return self._guarded[index]
        except _CAUGHT as error:
            return _Failed(error)


class _Stream(_Dataset):
    """An iterable one."""

    def __iter__(self) -> Iterator[Any]:
        return _whatever_is_raised(self._guarded, lambda failed: failed)


class _Lists:
    """A batch sampler."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        lists = iter(self._sampler)  # now: what Paddle's thread begins late may be the next epoch's
        return _whatever_is_raised(lists, lambda failed: [failed])


class _Collate(Collate):
    """See ``Collate``; of what has failed it makes no batch."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._several = loader.auto_collate_batch

    def __call__(self, items: Any) -> list[Any]:
        """The parcel of what is made of ``items``, and that itself."""
        for item in items if self._several else [items]:
            if isinstance(item, _Failed):
                return self.failed(item.error)
        try:
            return super().__call__(items)
        except SystemExit as error:
            return self.failed(error)


def can_be_guarded(loader: Any) -> bool:
    """Not one that makes something else of its batches, or is around a reader, which looks after
    itself.
    """
    overridden = type(loader).__iter__ is not sys.modules["paddle"].io.DataLoader.__iter__
    return not overridden and not hasattr(loader.dataset, "set_fixed_teacher")


def guarded(loader: Any) -> Any:
    """A copy of a ``paddle.io.DataLoader``, with workers of its own if it has some, for
    ``guarded_batches``.
    """
    ours = copy.copy(loader)
    ours._iterator = None
    ours.collate_fn = _Collate(loader)
    if isinstance(loader.dataset, sys.modules["paddle"].io.IterableDataset):
        ours.dataset = _Stream(loader.dataset)
    else:
        ours.dataset = _Samples(loader.dataset)
        if loader.auto_collate_batch:
            ours.batch_sampler = _Lists(loader.batch_sampler)
    return ours


def guarded_batches(loader: Any) -> Iterator[Any]:
    """One epoch of a loader that ``guarded`` has made. Its workers are forked now."""
    with garbage_left_alone():
        iterator = iter(loader)
    batches = _batches(loader, iterator)
    next(batches)
    return batches


def end_workers(loader: Any) -> None:
    """End the workers that a loader keeps from one epoch to the next: they wait for as long as the
    process lives, since a thread holds who would end them.
    """
    iterator, loader._iterator = loader._iterator, None
    if iterator is not None and iterator._workers[0]._parent_pid == os.getpid():
        iterator._shutdown_on_exit()


def _batches(loader: Any, iterator: Any) -> Iterator[Any]:
    try:
        yield None  # a generator that was never begun does not end either
        yield from unpacked(iterator)
    finally:
        if not loader.num_workers:
            _end_thread(iterator)
        elif not loader._persistent_workers:
            iterator._shutdown_on_exit()  # waits for a worker for a second at most


def _end_thread(iterator: Any) -> None:
    """End what reads ahead. Paddle's own function waits for a full second if it finds it alive."""
    iterator._thread_done_event.set()
    if iterator._blocking_queue is not None:
        iterator._blocking_queue.close()
    if iterator._thread is not None:
        iterator._thread.join(_THREAD_ENDS_WITHIN)
    iterator._try_shutdown_all()


def _whatever_is_raised(values: Iterable[Any], of: Callable[[_Failed], Any]) -> Iterator[Any]:
    """``values``; in the place of what they raise, and ever after, what ``of`` makes of that: a
    batch of such is whole, and not dropped.
    """
    try:
        yield from values
    except _CAUGHT as error:
        yield from itertools.repeat(of(_Failed(error)))
