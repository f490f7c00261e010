"""Reading a DataLoader that has no workers: what its dataset, its sampler or its ``collate_fn``
raises is raised in the batch's turn. Paddle (3.3) lets a thread die of it and waits for ever, or
takes a StopIteration for the end of the epoch.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from edl.distill.collating import Collate, unpacked


class _Failed:
    """Takes the place of a sample, or of an index."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Samples:
    """A map-style dataset."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, _Failed):
            return index
        try:
            return self._dataset[index]
        except BaseException as error:
            return _Failed(error)


class _Lists:
    """A batch sampler."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        return _guarded(self._sampler, lambda failed: [failed])


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
        except BaseException as error:
            return self.failed(error)


def guarded_batches(loader: Any) -> Iterator[Any]:
    """One epoch of a ``paddle.io.DataLoader`` that has no workers."""
    loader, collate = copy.copy(loader), _Collate(loader)
    loader.collate_fn = collate
    if isinstance(loader.dataset, sys.modules["paddle"].io.IterableDataset):
        loader.dataset = _guarded(loader.dataset, lambda failed: failed)
    else:
        loader.dataset = _Samples(loader.dataset)
        if loader.auto_collate_batch:
            loader.batch_sampler = _Lists(loader.batch_sampler)
    return unpacked(iter(loader))


def _guarded(values: Iterable[Any], of: Any) -> Iterator[Any]:
    """``values``; in the place of what they raise, and ever after, what ``of`` makes of that."""
    try:
        yield from values
    except GeneratorExit:
        raise
    except BaseException as error:
        yield from itertools.repeat(of(_Failed(error)))  # a batch of them is whole, and not dropped
