"""The reader's copies in a ``paddle.io.DataLoader``'s worker processes: who reads what.

A DataLoader starts a new set of workers for each epoch. It asks them for one group of items after
the other, in turn, and hands the groups out in the order in which it has asked. Workers inherit
where to begin; what only one of them can know, it tells in a :class:`Handout`. One that fails does
not raise, which would end the DataLoader with words of its own: it tells at which position, and
ends. The student raises its error there.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import json
import logging
import operator
import os
import pickle
import struct
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np

from edl._threads import Loop
from edl.errors import ReaderError

logger = logging.getLogger(__name__)

_COMPLAIN_EVERY = 5.0
_LENGTH = struct.Struct("<q")


def worker_info() -> Any:
    """Which worker of a DataLoader this process is (``id``, ``num_workers``), if it is one."""
    paddle = sys.modules.get("paddle")
    info = None if paddle is None else paddle.io.get_worker_info()
    return getattr(info, "one_of", info)


def pretend_to_be_the_only_worker() -> None:
    """Let datasets that share themselves between workers yield everything in this one."""
    module = sys.modules["paddle"].io.dataloader.worker
    info = worker_info()
    module._worker_info = module.WorkerInfo(
        id=0, num_workers=1, dataset=info.dataset, seed=info.seed, one_of=info
    )


@contextlib.contextmanager
def garbage_left_alone() -> Iterator[None]:
    """For forking workers: what is garbage here is not collected there. Paddle's destructors wait
    for threads that have not come along, and our own would end the iterations of this process.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def end_with(parent: int, close: Callable[[], None]) -> None:
    """End this worker, after ``close``, when its ``parent`` has ended, however that was. Paddle's
    workers wait for a parent for ever, and to the registry this one would stay a student.
    """

    def look() -> None:
        if os.getppid() != parent:
            close()
            os._exit(1)

    Loop("edl-parent", look, pause=1.0).start()


@dataclass(frozen=True)
class Turn:
    """The items that a worker is asked for: ``size`` of them at a time, first those at ``first``
    times ``size``, then every ``step``-th such block.
    """

    first: int
    size: int
    step: int

    def positions(self, skip: int) -> Iterator[int]:
        """Of its items in the epoch, of which ``skip`` are not read, without an end."""
        for block in itertools.count(self.first, self.step):
            yield from range(skip + block * self.size, skip + (block + 1) * self.size)


def turn_of(info: Any) -> Optional[Turn]:
    """What the DataLoader asks this worker for at the moment; None if that cannot be told.

    Paddle's worker loop knows the number of the request and its size (the DataLoader's batch size,
    where it collates what the reader yields), and passes neither on, so they are read off its
    frame, which is among our callers.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name != "_worker_loop":
        frame = frame.f_back
    number, asked = frame.f_locals.get("idx"), frame.f_locals.get("indices")
    if not isinstance(number, int) or not isinstance(asked, (list, tuple)) or not asked:
        return None
    return Turn(number, len(asked), info.num_workers)


@dataclass(frozen=True)
class Part:
    """What one worker reads of an epoch: items, and the position in the epoch of each. ``among``:
    how many workers have such a part.
    """

    items: Iterator[Any]
    positions: Iterator[int]
    among: int


class IndexLists:
    """An epoch's index lists, in two arrays: the indices, and where each list ends."""

    def __init__(self, ends: np.ndarray, indices: np.ndarray) -> None:
        self.ends = ends
        self.indices = indices

    @classmethod
    def single(cls, count: int) -> IndexLists:
        """Every index below ``count``, in a list of its own."""
        return cls(np.arange(1, count + 1), np.arange(count))

    @classmethod
    def of(cls, lists: Iterable[Any]) -> IndexLists:
        """Raises TypeError or ValueError if they do not hold integers."""
        arrays = [np.asarray(item) for item in lists]
        if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in arrays if array.size):
            raise TypeError("indices are not integers")
        ends = np.cumsum([array.size for array in arrays], dtype=np.int64)
        flat = np.concatenate([np.empty(0, np.int64), *arrays])
        return cls(ends, flat.astype(np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> list[int]:
        start = self.ends[number - 1] if number else 0
        return self.indices[start : self.ends[number]].tolist()


@dataclass(frozen=True)
class Order:
    """How the workers of one epoch share its items: by index lists; None: the first worker reads
    everything. ``drawn``: the state of numpy's generator from which the lists were drawn.
    """

    lists: Optional[IndexLists] = None
    drawn: Any = None


class Handout:
    """What an iteration's workers tell each other, and the process that they were forked from: the
    first one says the order of the epoch, and the models that label it; any may say that it has
    failed. ``parent``: that process.
    """

    def __init__(self) -> None:
        self.parent = os.getpid()
        self._order = _Notes("edl-order")
        self._models = _Notes("edl-models")
        self._failures = _Notes("edl-failures")

    def tell_failure(self, position: int, error: Exception) -> None:
        """For any worker: it can give no item from ``position`` of the epoch on."""
        self._failures.append(pickle.dumps((position, error_as_bytes(error))))

    def failure(self) -> Optional[tuple[int, Exception]]:
        """The first position of the epoch that some worker cannot give, and the error to raise."""
        told = [pickle.loads(text) for text in self._failures.read()]
        if not told:
            return None
        position, error = min(told, key=operator.itemgetter(0))
        return position, error_from_bytes(error)

    def tell_order(self, order: Order) -> None:
        """For the first worker."""
        lists = order.lists
        sizes = None if lists is None else [len(lists.ends), len(lists.indices)]
        head = json.dumps({"sizes": sizes, "drawn": order.drawn}).encode() + b"\n"
        arrays = [] if lists is None else [lists.ends.tobytes(), lists.indices.tobytes()]
        self._order.append(b"".join([head, *arrays]))

    def tell_models(self, models: Sequence[str]) -> None:
        """For the first worker."""
        self._models.append(json.dumps(list(models)).encode())

    def order(self) -> Optional[Order]:
        """None while it is not known."""
        texts = self._order.read()
        if not texts:
            return None
        head, _, body = texts[0].partition(b"\n")
        said = json.loads(head)
        if said["sizes"] is None:
            return Order()
        flat = np.frombuffer(body, np.int64)
        ends = said["sizes"][0]
        return Order(IndexLists(flat[:ends], flat[ends:]), said["drawn"])

    def models(self) -> Optional[list[str]]:
        """None while they are not known."""
        texts = self._models.read()
        return json.loads(texts[0]) if texts else None


def wait_for(read: Callable[[], Any], what: str, handout: Handout) -> Any:
    """What ``read`` returns, in a worker, once that is something. Says every few seconds for how
    long that has taken. Raises ReaderError when the process that the workers were forked from has
    ended, or one of them has failed.
    """
    started = time.monotonic()
    complain_at = started + _COMPLAIN_EVERY
    while (value := read()) is None:
        if os.getppid() != handout.parent:
            raise ReaderError("the DataLoader's process has ended")
        if handout.failure() is not None:
            raise ReaderError("another worker of the DataLoader has failed")
        now = time.monotonic()
        if now >= complain_at:
            complain_at = now + _COMPLAIN_EVERY
            logger.warning("a worker has waited %.0f s for %s", now - started, what)
        time.sleep(0.005)
    return value


def error_as_bytes(error: BaseException) -> bytes:
    """An error for another process, with its traceback; its words, if it cannot travel itself."""
    words = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        text = pickle.dumps(error)
        pickle.loads(text)
    except Exception:
        text = pickle.dumps(ReaderError(f"{type(error).__name__}: {error}"))
    return pickle.dumps((text, f"in a worker of the DataLoader:\n{words}"))


def error_from_bytes(text: bytes) -> Exception:
    """The inverse; the traceback is the error's cause."""
    itself, words = pickle.loads(text)
    error: Exception = pickle.loads(itself)
    error.__cause__ = ReaderError(words)
    return error


class _Notes:
    """Texts in a file in memory (``memfd``), which a process and those forked from it share.
    Any of them may append one, which is there as a whole or not yet.
    """

    def __init__(self, name: str) -> None:
        self._file = os.fdopen(os.memfd_create(name), "r+b", buffering=0)
        fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_APPEND)

    def append(self, text: bytes) -> None:
        """One more."""
        left = memoryview(_LENGTH.pack(len(text)) + text)
        while left:  # a system call writes 2 GB at most
            left = left[os.write(self._file.fileno(), left) :]

    def read(self) -> list[bytes]:
        """All that are there."""
        everything, texts = self._everything(), []
        while len(everything) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(everything)[0]
            if len(everything) < end:
                break
            texts.append(bytes(everything[_LENGTH.size : end]))
            everything = everything[end:]
        return texts

    def _everything(self) -> memoryview:
        found = bytearray()
        while part := os.pread(self._file.fileno(), 1 << 30, len(found)):
            found += part
        return memoryview(found)
