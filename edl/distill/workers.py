"""The reader's copies in a ``paddle.io.DataLoader``'s worker processes: who reads what.

A DataLoader starts a new set of workers for each epoch. It asks them for one group of items after
the other, in turn, and hands the groups out in the order in which it has asked. What the copies,
and the reader that they were copied from, must agree on lies in a small file in memory (``memfd``)
that forked processes share.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Optional

import numpy as np

from edl._threads import Loop
from edl.errors import ReaderError

_HEADER_SIZE = 1 << 16
_MOST_WRITTEN = 1 << 30  # by one system call: Linux stops short of 2 GiB


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


@dataclass(frozen=True)
class Group:
    """The workers of one iteration of a DataLoader. ``id``: which of them this process is."""

    key: str
    id: int
    workers: int
    parent: int


def group_of(info: Any) -> Group:
    """The group of the worker ``info``.

    Workers of one set are started one after the other, so the first one's number names the set. (A
    set's seed does not: there are programs that set the same one every epoch.)
    """
    *family, number = multiprocessing.current_process()._identity
    parent = os.getppid()
    key = f"{parent}/{family}/{number - info.id}"
    return Group(key, info.id, info.num_workers, parent)


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

    def positions(self) -> Iterator[int]:
        """Of its items, without an end."""
        for block in itertools.count(self.first, self.step):
            yield from range(block * self.size, (block + 1) * self.size)


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
class Agreement:
    """What a process and its workers agree on: the epoch, how many of its items to skip, whether
    it has been begun and by which group, how many of these have come to its end. ``order``: who
    reads what (empty while that is not known). ``lists``: how many index lists and indices there
    are, in the file's bytes from ``region[0]``, ``region[1]`` of them. ``drawn``: the state of
    numpy's generator from which they were drawn.
    """

    epoch: int
    skip: int = 0
    begun: bool = False
    group: str = ""
    finished: int = 0
    order: str = ""
    lists: Sequence[int] = (0, 0)
    region: Sequence[int] = (0, 0)
    drawn: Any = None


#: Agreement.order: workers share index lists; one worker reads everything.
SHARED, ALONE = "shared", "alone"


class Board:
    """The file: a header in JSON, with an entry for each process that has workers, and their index
    lists behind it.
    """

    def __init__(self) -> None:
        self._file = os.fdopen(os.memfd_create("edl-progress"), "r+b", buffering=0)
        self._threads = threading.RLock()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For one process, and one thread of it. A process that dies lets go."""
        with self._threads:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def read(self) -> Optional[Agreement]:
        """What this process and its workers, or this worker and its fellows, have agreed on."""
        entry = self._header().get(_owner())
        return None if entry is None else Agreement(**entry)

    def write(self, agreement: Optional[Agreement]) -> None:
        """Agree on something else, or on nothing. With ``locked``, to change what was read."""
        header = self._header()
        if agreement is not None:
            header[_owner()] = asdict(agreement)
        elif header.pop(_owner(), None) is None:
            return
        text = json.dumps(header).encode()
        if len(text) > _HEADER_SIZE:
            raise ReaderError("too many processes read copies of this reader")
        os.pwrite(self._file.fileno(), text.ljust(_HEADER_SIZE), 0)

    def store(self, agreement: Agreement, lists: IndexLists) -> Agreement:
        """The agreement with ``lists``, which are laid into the file in place of the last ones."""
        file, data = self._file.fileno(), lists.ends.tobytes() + lists.indices.tobytes()
        offset, room = agreement.region
        if room < len(data):
            offset, room = max(_HEADER_SIZE, os.fstat(file).st_size), len(data)
        for start in range(0, len(data), _MOST_WRITTEN):
            os.pwrite(file, data[start : start + _MOST_WRITTEN], offset + start)
        sizes = len(lists.ends), len(lists.indices)
        return replace(agreement, order=SHARED, lists=sizes, region=(offset, room))

    def load(self, agreement: Agreement) -> IndexLists:
        """The index lists of an agreement that has some."""
        ends, indices = agreement.lists
        flat = np.fromfile(self._path(), np.int64, ends + indices, offset=agreement.region[0])
        return IndexLists(flat[:ends], flat[ends:])

    def _path(self) -> str:
        return f"/proc/self/fd/{self._file.fileno()}"

    def _header(self) -> dict[str, Any]:
        text = os.pread(self._file.fileno(), _HEADER_SIZE, 0)
        return json.loads(text) if text.strip() else {}


def _owner() -> str:
    """The process that has the workers: this one's parent, in a worker."""
    return str(os.getpid() if worker_info() is None else os.getppid())
