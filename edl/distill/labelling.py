"""Labels ahead of training: a source's batches, block by block, through a reader with a store.

Several processes share the work by blocks of batches. Blocks that are another's are not produced,
where the source allows that: a list, or a ``paddle.io.DataLoader`` over a map-style dataset. There
the samples are taken in the dataset's order, if nothing but chance decides about it otherwise:
labels are known by what rows hold, so their order is nobody's business, and all processes have to
have the same.
"""

from __future__ import annotations

import copy
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol

from edl.discovery.claims import Claims
from edl.distill.reader import DistillReader
from edl.distill.source import batch_sampler_of

#: Batches in a block.
_BLOCK = 16

#: Seconds from one look at what others have done to the next.
_LOOK_EVERY = 0.5


class Division(Protocol):
    """Which blocks of an epoch are this process's."""

    def take(self, epoch: int, block: int) -> bool:
        """Whether it is to do this block, as far as is known now."""

    def finish(self, epoch: int, block: int) -> None:
        """It has done it."""

    def left(self, epoch: int, blocks: int) -> bool:
        """Whether some of so many blocks are not done, and may have to be done by it."""


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th block, from the one of this ``number`` on."""

    number: int = 0
    count: int = 1

    def take(self, epoch: int, block: int) -> bool:
        """See Division."""
        return block % self.count == self.number

    def finish(self, epoch: int, block: int) -> None:
        """See Division."""

    def left(self, epoch: int, blocks: int) -> bool:
        """See Division."""
        return False


@dataclass(frozen=True)
class Shared:
    """Blocks that nobody else has claimed."""

    claims: Claims

    def take(self, epoch: int, block: int) -> bool:
        """See Division."""
        return self.claims.take(f"{epoch}/{block}")

    def finish(self, epoch: int, block: int) -> None:
        """See Division."""
        self.claims.finish(f"{epoch}/{block}")

    def left(self, epoch: int, blocks: int) -> bool:
        """See Division."""
        return not {f"{epoch}/{block}" for block in range(blocks)} <= self.claims.done()


class Blocks:
    """A source of which only this process's blocks are read. ``loader``: what a reader is to be
    given as its source.
    """

    def __init__(self, source: Any, division: Division, size: int = _BLOCK) -> None:
        self.epoch = 0
        self.batches: Optional[int] = None  # of an epoch, when that is known
        self.rows = _rows_of(source)
        self._size = size
        self._source = source
        self._division = division
        self._taken: dict[int, bool] = {}
        self._handed: deque[int] = deque()
        self._current: Optional[int] = None
        self.position = 0  # of the batch that has come out last
        self.finished: set[int] = set()
        self.loader: Any = self._through
        sampler = batch_sampler_of(source)
        if sampler is not None:
            self.loader = copy.copy(source)
            self.loader.batch_sampler = _Claimed(self, _lists_of(source, sampler), sampler)
            self.loader._iterator = None

    def begin(self, epoch: int) -> None:
        """Read this epoch, from its beginning; augmentation that depends on it is told."""
        if epoch != self.epoch:
            self.finished.clear()
        self.epoch = epoch
        for part in (self._source, batch_sampler_of(self._source)):
            for one in (part, getattr(part, "dataset", None)):
                set_epoch = getattr(one, "set_epoch", None)
                if set_epoch is not None:
                    set_epoch(epoch)

    def restart(self) -> None:
        """Read it once more: what others had claimed may be nobody's now."""
        self._taken.clear()
        self._handed.clear()
        self._current = None

    @property
    def blocks(self) -> int:
        """Of an epoch; 0 while that is not known."""
        return -(-(self.batches or 0) // self._size)

    def _through(self) -> Iterator[Any]:
        source = self._source
        if isinstance(source, Sequence):
            for number in self.positions(len(source)):
                yield source[number]
            return
        items = source() if callable(source) and not hasattr(source, "__iter__") else source
        count = 0
        for number, item in enumerate(items):
            count = number + 1
            if self._is_mine(number):
                self._handed.append(number)
                yield item
        self.batches = count

    def positions(self, count: int) -> Iterator[int]:
        """Those of ``count`` batches that are this process's, and are handed out."""
        self.batches = count
        for number in range(count):
            if self._is_mine(number):
                self._handed.append(number)
                yield number

    def _is_mine(self, number: int) -> bool:
        block = number // self._size
        if block in self.finished:
            return False
        if block not in self._taken:
            self._taken[block] = self._division.take(self.epoch, block)
        return self._taken[block]

    def delivered(self) -> Optional[int]:
        """One more batch has come out of the reader; the block that is complete with it."""
        number = self.position = self._handed.popleft()
        self._current = number // self._size
        last = number % self._size == self._size - 1 or number + 1 == self.batches
        return self._complete() if last else None

    def ended(self) -> Optional[int]:
        """All batches have come out; the block that is complete with that."""
        return self._complete()

    def _complete(self) -> Optional[int]:
        block, self._current = self._current, None
        if block is not None:
            self.finished.add(block)
        return block


class _Claimed:
    """In place of a DataLoader's batch sampler: the index lists of this process's blocks."""

    def __init__(self, blocks: Blocks, lists: Any, sampler: Any) -> None:
        self._blocks = blocks
        self._lists = lists
        self.batch_size = getattr(sampler, "batch_size", None)
        self.drop_last = False

    def __len__(self) -> int:
        return len(self._lists)

    def __iter__(self) -> Iterator[Any]:
        lists = self._lists if isinstance(self._lists, _InOrder) else list(self._lists)
        for number in self._blocks.positions(len(lists)):
            yield lists[number]


@dataclass(frozen=True)
class _InOrder:
    """Index lists of ``rows`` samples in their order."""

    rows: int
    batch_size: int

    def __len__(self) -> int:
        return (self.rows + self.batch_size - 1) // self.batch_size

    def __getitem__(self, number: int) -> list[int]:
        start = number * self.batch_size
        return list(range(start, min(self.rows, start + self.batch_size)))


def _lists_of(loader: Any, sampler: Any) -> Any:
    """The index lists of a loader: in order, if its samplers are Paddle's own, which take the whole
    dataset; otherwise its own, which may take a part of it.
    """
    io = sys.modules["paddle"].io
    whole = (io.SequenceSampler, io.RandomSampler, type(None))
    own = type(sampler) in (io.BatchSampler, io.DistributedBatchSampler)
    if own and type(getattr(sampler, "sampler", None)) in whole:
        return _InOrder(len(loader.dataset), sampler.batch_size)
    return sampler


def _rows_of(source: Any) -> Optional[int]:
    """Samples of an epoch, if that is known."""
    if batch_sampler_of(source) is not None:
        return len(source.dataset)
    return None


def label(reader: DistillReader, blocks: Blocks, division: Division, epochs: int) -> Iterator[int]:
    """Read this process's blocks of so many epochs, until all of them are done by somebody, and
    what they hold is on the disk. Yields the epoch after each batch, and now and then while it
    waits for others. Raises what the reader raises, and DiscoveryError.
    """
    for epoch in range(epochs):
        blocks.begin(epoch)
        while True:
            blocks.restart()
            reader.load_state_dict({"version": 1, "epoch": epoch, "delivered": 0})
            for _ in reader:
                _finish(reader, division, epoch, blocks.delivered())
                yield epoch
            _finish(reader, division, epoch, blocks.ended())
            if not division.left(epoch, blocks.blocks):
                break
            time.sleep(_LOOK_EVERY)
            yield epoch
    if isinstance(division, Shared):  # what is marked as done goes with who has marked it
        time.sleep(2 * _LOOK_EVERY)


def _finish(reader: DistillReader, division: Division, epoch: int, block: Optional[int]) -> None:
    if block is not None:
        reader.flush()
        division.finish(epoch, block)
