"""Opening a source at a position: every epoch, after a restart, and in DataLoader workers.

A source is read from item ``start`` in steps of ``step`` (a worker of several reads every
``step``-th). Where that can be done without producing the items in between, it is: a source with a
state of its own is asked to load it, and a ``paddle.io.DataLoader`` with a batch sampler is given
one that leaves batches out before any sample is loaded. Anything else is read through.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Optional

from edl.errors import ConfigError, SourceError


def open_source(source: Any, start: int = 0, step: int = 1) -> Iterator[Any]:
    """Items ``start``, ``start + step``, ... of a fresh pass over ``source``.

    ``source``: an iterable, or something that returns one when it is called (a reader creator).
    Raises SourceError if it is neither.
    """
    if not is_loader(source) and callable(source) and not hasattr(source, "__iter__"):
        source = source()
    if is_loader(source) and worker_info() is not None:
        return _read_here(source, start, step)
    if (start, step) != (0, 1) and is_loader(source) and _batch_sampler(source) is not None:
        return iter(_loader_of_some(source, start, step))
    try:
        iterator = iter(source)
    except TypeError:
        raise SourceError(f"cannot iterate over a {type(source).__name__}") from None
    return iterator if (start, step) == (0, 1) else itertools.islice(iterator, start, None, step)


def from_dataset(dataset: Any, batch_sampler: Any) -> Any:
    """A map-style dataset as a loader. Raises ConfigError if nothing says what a batch is."""
    if batch_sampler is None:
        raise ConfigError(
            f"{type(dataset).__name__} yields single samples by index: pass batch_sampler=..., or "
            "wrap it in a paddle.io.DataLoader"
        )
    return sys.modules["paddle"].io.DataLoader(dataset, batch_sampler=batch_sampler)


def is_map_style(source: Any) -> bool:
    """Whether ``source`` is a ``paddle.io.Dataset`` that is read by index."""
    paddle = sys.modules.get("paddle")
    if paddle is None or not isinstance(source, paddle.io.Dataset):
        return False
    return not isinstance(source, paddle.io.IterableDataset)


def is_loader(source: Any) -> bool:
    """Whether ``source`` is a ``paddle.io.DataLoader``."""
    paddle = sys.modules.get("paddle")
    return paddle is not None and isinstance(source, paddle.io.DataLoader)


def worker_info() -> Any:
    """Which worker of a DataLoader this process is (``id``, ``num_workers``), if it is one."""
    paddle = sys.modules.get("paddle")
    return None if paddle is None else paddle.io.get_worker_info()


def has_state(source: Any) -> bool:
    """Whether ``source`` can save its position and return to it."""
    return hasattr(source, "state_dict") and hasattr(source, "load_state_dict")


class Position:
    """Where the student is in a source that has a state of its own, although it is read ahead.

    The state is taken as each item is read; ``delivered`` makes the oldest one the current one.
    """

    def __init__(self, source: Any, state: Optional[Any]) -> None:
        self.state = state
        self._source = source
        self._ahead: deque[Any] = deque()

    def track(self, items: Iterable[Any]) -> Iterator[Any]:
        """``items``, each remembered with the source's state behind it."""
        for item in items:
            self._ahead.append(copy.deepcopy(self._source.state_dict()))
            yield item

    def delivered(self) -> None:
        """One more item has reached the student."""
        self.state = self._ahead.popleft()


def _read_here(loader: Any, start: int, step: int) -> Iterator[Any]:
    """A loader's batches ``start``, ``start + step``, ..., made in this process: its threads and
    queues do not work in a forked worker. This is what a worker of that loader would do.
    """
    io = sys.modules["paddle"].io.dataloader
    dataset, collate = loader.dataset, loader.collate_fn
    sampler = _batch_sampler(loader)
    if sampler is not None:
        for indices in itertools.islice(sampler, start, None, step):
            yield (collate or io.collate.default_collate_fn)([dataset[index] for index in indices])
        return
    if loader.batch_size is None:
        items: Any = dataset if _is_iterable(dataset) else (dataset[i] for i in range(len(dataset)))
        batches: Iterator[Any] = map(collate, items) if collate else iter(items)
    else:
        batches = map(collate or io.collate.default_collate_fn, _groups(dataset, loader))
    yield from itertools.islice(batches, start, None, step)


def _groups(samples: Iterable[Any], loader: Any) -> Iterator[list[Any]]:
    iterator = iter(samples)
    while group := list(itertools.islice(iterator, loader.batch_size)):
        if len(group) == loader.batch_size or not loader.drop_last:
            yield group


class _SomeBatches:
    """A batch sampler's batches ``start``, ``start + step``, ...: index lists only, no data."""

    def __init__(self, sampler: Any, start: int, step: int) -> None:
        self._sampler, self._start, self._step = sampler, start, step

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._sampler), self._start, None, self._step)

    def __len__(self) -> int:
        return len(range(self._start, len(self._sampler), self._step))


def _batch_sampler(loader: Any) -> Any:
    """The loader's sampler of index lists; None if it has none, or reads an iterable dataset."""
    return None if _is_iterable(loader.dataset) else getattr(loader, "batch_sampler", None)


def _is_iterable(dataset: Any) -> bool:
    return isinstance(dataset, sys.modules["paddle"].io.IterableDataset)


def _loader_of_some(loader: Any, start: int, step: int) -> Any:
    some = copy.copy(loader)
    some.batch_sampler = _SomeBatches(loader.batch_sampler, start, step)
    some._iterator = None  # of persistent workers, which belong to the original
    return some
