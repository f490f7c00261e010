"""What a reader reads: opened anew every epoch, from where the student is, here or in a
DataLoader's workers.

Where items in between can be left out without being produced, they are: a source with a state of
its own is asked to load it, and a ``paddle.io.DataLoader`` with a batch sampler is given index
lists from there on only. Anything else is read through.

Workers share the items of a source that has them by position: a list, a ``DataLoader`` over a
map-style dataset. Its order is drawn by one worker, for all. A source of any other kind has its
order in its own hands, so one worker reads all of it.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional

import numpy as np

from edl._random import numpy_state, set_numpy_state
from edl.distill.guarding import can_be_guarded, end_workers, guarded, guarded_batches
from edl.distill.progress import Start, Trail
from edl.distill.workers import (
    Handout,
    IndexLists,
    Order,
    Part,
    pretend_to_be_the_only_worker,
    turn_of,
    wait_for,
    worker_info,
)
from edl.errors import ConfigError, SourceError

#: How a source makes an item of what stands for it: an index list, a position.
Produce = Callable[[Any], Any]


class Source:
    """A source of one reader, whatever it is made of: an iterable, something that returns one when
    it is called (a reader creator), a DataLoader, a map-style dataset with a batch sampler.

    Raises ConfigError for a map-style dataset without one.
    """

    def __init__(self, value: Any, batch_sampler: Any = None) -> None:
        if is_map_style(value):
            value = _loader_of(value, batch_sampler)
        self.value = value
        self._exhausted = False
        self._sampler: Optional[_ResumableSampler] = None
        self._loader = value
        if batch_sampler_of(value) is not None:  # a loader of our own, kept with its workers
            self._sampler = _ResumableSampler(batch_sampler_of(value))
            self._loader = copy.copy(value)
            self._loader.batch_sampler = self._sampler
            self._loader._iterator = None
        self._guarded = is_loader(value) and can_be_guarded(value)
        if self._guarded:
            self._loader = guarded(self._loader)

    def __len__(self) -> int:
        """Items in an epoch. Raises TypeError if that is not known."""
        if not hasattr(self.value, "__len__"):
            raise TypeError(f"the source ({type(self.value).__name__}) has no length")
        try:
            return len(self.value)
        except (RuntimeError, ValueError) as error:  # Paddle's words for iterable datasets
            raise TypeError(f"the source has no length: {error}") from None

    @property
    def length(self) -> Optional[int]:
        """Items in an epoch, if that is known."""
        try:
            return len(self)
        except TypeError:
            return None

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a position in one source to mean anything in another."""
        of = self._sampler or self.value
        size = getattr(of, "batch_size", None)
        size = size if isinstance(size, int) else None
        return {"length": self.length, "batch_size": size, "position": self.marks}

    @property
    def marks(self) -> str:
        """What its positions are called in a reader's state."""
        return "source" if has_state(self.value) else "order"

    def close(self) -> None:
        """End what is kept from one epoch to the next. It can be opened again afterwards."""
        if self._loader is not self.value:
            end_workers(self._loader)

    # --- read here --------------------------------------------------------------------------

    def open(self, start: Start, trail: Trail) -> Iterator[Any]:
        """The items from ``start`` on, in this process. ``trail`` learns of each that is read.

        Raises SourceError if it is not iterable, can be read once and has been, or gives another
        order than before.
        """
        if hasattr(self.value, "__next__"):
            if self._exhausted:
                raise SourceError(
                    f"the source is an iterator ({type(self.value).__name__}), which can be read "
                    "once; for more epochs pass what makes it, such as a function that returns it"
                )
            return self._read_once(start.skip)
        if self._sampler is not None:
            self._sampler.begin(start, trail)
            return guarded_batches(self._loader) if self._guarded else iter(self._loader)
        if self._guarded:
            return itertools.islice(guarded_batches(self._loader), start.skip, None)
        if has_state(self.value):
            return self._open_with_state(start, trail)
        return itertools.islice(_iterate(self.value), start.skip, None)

    def _read_once(self, skip: int) -> Iterator[Any]:
        self._exhausted = True  # not before: the iteration may not come about
        yield from itertools.islice(self.value, skip, None)

    def _open_with_state(self, start: Start, trail: Trail) -> Iterator[Any]:
        skip = start.skip
        if start.mark is not None:
            self.value.load_state_dict(start.mark)
            skip = 0
        for item in itertools.islice(_iterate(self.value), skip, None):
            trail.read(copy.deepcopy(self.value.state_dict()))
            yield item

    def mark_at(self, order: Order, delivered: int) -> Any:
        """What ``open`` would say of the position behind so many items of an order."""
        if self._sampler is None or order.lists is None:
            return None
        digest = _Digest()
        for number in range(min(delivered, len(order.lists))):
            digest.add(order.lists[number])
        return {"digest": digest.hex, "numpy": order.drawn}

    # --- read in a DataLoader's workers -----------------------------------------------------

    def open_in_worker(self, start: Start, handout: Handout) -> Part:
        """A worker's part of the items from ``start`` on. ``handout`` is for it and its fellows.

        Call it when the DataLoader has asked for the first item. Raises SourceError like ``open``,
        and for an iterator, whose copies would all yield the same.
        """
        if hasattr(self.value, "__next__"):
            raise SourceError(
                f"the source is an iterator ({type(self.value).__name__}): a DataLoader's workers "
                "cannot share it; pass what makes it, such as a function that returns it, or "
                "use num_workers=0"
            )
        info = worker_info()
        turn = turn_of(info)
        if info.id == 0:
            handout.tell_order(self._draw(start) if turn is not None else Order())
        what = "the epoch's order, which the first one draws"
        lists = wait_for(handout.order, what, handout).lists
        if lists is None or turn is None:
            items = self._open_alone(start) if info.id == 0 else iter(())
            return Part(items, itertools.count(start.skip), among=1)
        produce = self._produce()
        numbers = itertools.takewhile(len(lists).__gt__, turn.positions(start.skip))
        items = (produce(lists[number]) for number in numbers)
        return Part(items, turn.positions(start.skip), info.num_workers)

    def _draw(self, start: Start) -> Order:
        try:
            if self._sampler is None:
                return Order(IndexLists.single(len(self._items())))
            len(self._sampler)
        except TypeError:  # no positions, or no length
            return Order()
        lists = self._sampler.draw(start)
        try:
            return Order(IndexLists.of(lists), self._sampler.drawn)
        except (TypeError, ValueError):  # indices that are no numbers
            return Order()

    def _items(self) -> Any:
        """What has the items by position. Raises TypeError if nothing does."""
        if isinstance(self.value, Sequence):
            return self.value
        if is_loader(self.value) and is_map_style(self.value.dataset):
            return self.value.dataset
        raise TypeError("items have no positions")

    def _produce(self) -> Produce:
        if self._sampler is not None:
            collate = self.value.collate_fn or _default_collate()
            dataset = self.value.dataset
            return lambda indices: collate([dataset[index] for index in indices])
        items = self._items()
        collate = None if items is self.value else self.value.collate_fn
        return lambda one: collate(items[one[0]]) if collate else items[one[0]]

    def _open_alone(self, start: Start) -> Iterator[Any]:
        """Everything, as if there were no workers: a dataset that shares itself between them must
        not know that there are.
        """
        pretend_to_be_the_only_worker()
        if is_loader(self.value):
            return itertools.islice(_read_here(self.value), start.skip, None)
        return self.open(start, Trail())


class _ResumableSampler:
    """A batch sampler whose iteration can begin in the middle, and which knows its order.

    ``drawn``: the state of numpy's generator from which the last order was drawn; None if that has
    nothing to do with it.
    """

    def __init__(self, sampler: Any) -> None:
        self.drawn: Any = None
        self._inner = sampler
        self._prepared: Iterator[Any] = iter(())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        return self._prepared

    def begin(self, start: Start, trail: Trail) -> None:
        """Let the next iteration give the index lists from ``start`` on. ``trail`` learns of each.
        They are drawn now: later, numpy's generator belongs to whoever uses it then. Raises
        SourceError if those before are not what they were.
        """
        digest, lists = _Digest(), _drawn(self._lists(start))
        for indices in itertools.islice(lists, start.skip):
            digest.add(indices)
        self._check(start, digest)
        self._prepared = self._track(lists, digest, trail)

    def draw(self, start: Start) -> list[Any]:
        """The whole order, from the first list on. Raises SourceError like ``begin``."""
        digest, lists = _Digest(), list(self._lists(start))
        for indices in lists[: start.skip]:
            digest.add(indices)
        self._check(start, digest)
        return lists

    def _lists(self, start: Start) -> Iterator[Any]:
        """All index lists, drawn as they were when the state was taken."""
        before = (start.mark or {}).get("numpy")
        if before is None or not start.skip:
            yield from self._lists_now()
            return
        self.drawn, now = before, numpy_state()
        set_numpy_state(before)
        try:
            lists = list(self._inner)
        finally:
            set_numpy_state(now)
        yield from lists

    def _lists_now(self) -> Iterator[Any]:
        self.drawn, before = None, numpy_state()
        lists = iter(self._inner)
        for number, indices in enumerate(lists):
            if not number and numpy_state() != before:
                self.drawn = before
            yield indices

    def _track(self, lists: Iterator[Any], digest: _Digest, trail: Trail) -> Iterator[Any]:
        for indices in lists:
            digest.add(indices)
            trail.read({"digest": digest.hex, "numpy": self.drawn})
            yield indices

    def _check(self, start: Start, digest: _Digest) -> None:
        expected = (start.mark or {}).get("digest")
        if start.skip and expected is not None and digest.hex != expected:
            raise SourceError(
                "the source gives its batches in another order than when the state was taken, so "
                f"the {start.skip} that were delivered cannot be told from the others: seed its "
                "shuffling by the reader's epoch"
            )


def _drawn(lists: Iterator[Any]) -> Iterator[Any]:
    """The same, of which the first is made now: it is then that a sampler draws its order. What
    that raises is raised in its turn.
    """
    try:
        first = list(itertools.islice(lists, 1))
    except Exception as error:
        return _raising(error)
    return itertools.chain(first, lists)


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield  # which makes it a generator


class _Digest:
    """Of the index lists so far: two orders that begin alike have the same one."""

    def __init__(self) -> None:
        self.hex = ""

    def add(self, indices: Any) -> None:
        """One more list."""
        array = np.asarray(indices)
        octets = (
            array.astype("<i8").tobytes() if array.dtype.kind in "iu" else repr(indices).encode()
        )
        self.hex = hashlib.blake2b(self.hex.encode() + octets, digest_size=8).hexdigest()


# --- kinds of sources ---------------------------------------------------------------------------


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


def has_state(source: Any) -> bool:
    """Whether ``source`` can save its position and return to it."""
    return hasattr(source, "state_dict") and hasattr(source, "load_state_dict")


def batch_sampler_of(source: Any) -> Any:
    """A loader's sampler of index lists; None if it has none, or reads an iterable dataset."""
    if not is_loader(source) or not is_map_style(source.dataset):
        return None
    return source.batch_sampler


def _loader_of(dataset: Any, batch_sampler: Any) -> Any:
    if batch_sampler is None:
        raise ConfigError(
            f"{type(dataset).__name__} yields single samples by index: pass batch_sampler=..., or "
            "wrap it in a paddle.io.DataLoader"
        )
    return sys.modules["paddle"].io.DataLoader(dataset, batch_sampler=batch_sampler)


def _iterate(source: Any) -> Iterator[Any]:
    if callable(source) and not hasattr(source, "__iter__"):
        source = source()
    try:
        return iter(source)
    except TypeError:
        raise SourceError(f"cannot iterate over a {type(source).__name__}") from None


def _read_here(loader: Any) -> Iterator[Any]:
    """A loader's batches, made in this process: its threads and queues do not work in a forked
    worker. This is what a worker of that loader would do.
    """
    dataset, collate = loader.dataset, loader.collate_fn
    sampler = batch_sampler_of(loader)
    if sampler is not None:
        for indices in sampler:
            yield (collate or _default_collate())([dataset[index] for index in indices])
    elif loader.batch_size is None:
        items = (
            (dataset[i] for i in range(len(dataset))) if is_map_style(dataset) else iter(dataset)
        )
        yield from map(collate, items) if collate else items
    else:
        yield from map(collate or _default_collate(), _groups(dataset, loader))


def _groups(samples: Iterable[Any], loader: Any) -> Iterator[list[Any]]:
    iterator = iter(samples)
    while group := list(itertools.islice(iterator, loader.batch_size)):
        if len(group) == loader.batch_size or not loader.drop_last:
            yield group


def _default_collate() -> Callable[[Any], Any]:
    return sys.modules["paddle"].io.dataloader.collate.default_collate_fn
