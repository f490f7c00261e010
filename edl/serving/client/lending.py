"""Memory of this process that a teacher on the same machine maps: requests are copied there, once,
and answers are laid there.

The teacher reads what a request says and writes where it has room, and nothing else. All is decided
here: what lies where, and when it is free again. Whatever does not fit travels through the socket.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np

from edl.serving.wire.arena import Allocator, Arena, aligned
from edl.serving.wire.local import LARGEST_MEMORY, MOST_MEMORIES
from edl.serving.wire.messages import Room
from edl.serving.wire.tensor import Place, elem_type_of

logger = logging.getLogger(__name__)

#: Bytes of a request and the room for its answer from which on the detour pays: below, a socket
#: costs no more. And bytes of a room, beside a large request.
_WORTHWHILE, _ROOM_FROM = 128 << 10, 16 << 10

#: A memory holds so many requests like the one that it is made for, and has this size at least.
_REQUESTS = 12
_SMALLEST = 4 << 20

#: Kinds of requests whose answers' sizes are remembered.
_KINDS = 64

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Loan:
    """Where a request's feeds lie, and where its answer may. ``free`` when that has come."""

    memory: _Memory
    offset: int
    places: Mapping[str, Place]
    room: Optional[Room]

    @property
    def arenas(self) -> Mapping[int, Arena]:
        """What the answer may lie in."""
        return {self.memory.number: self.memory.arena}

    def holds(self, array: np.ndarray) -> bool:
        """Whether the array lies there."""
        return self.memory.arena.offset_of(array) is not None

    def free(self) -> None:
        """The teacher does not look there any longer."""
        self.memory.free(self.offset)


class _Memory:
    """One piece, which the teacher knows by its ``number``. Safe to use from several threads."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.works = False  # as far as an answer has shown
        self.arena = Arena.create_fixed(size, "edl-student")
        self._allocator = Allocator(size)
        self._lock = threading.Lock()

    def allocate(self, size: int) -> Optional[int]:
        with self._lock:
            return self._allocator.allocate(size)

    def free(self, offset: int) -> None:
        with self._lock:
            self._allocator.free(offset)


class Lending:
    """What one connection lends. ``hand_over(number, fd, then)`` sends a memory to the teacher, and
    calls ``then`` with whether it has taken it.

    Safe to use from several threads.
    """

    def __init__(self, hand_over: Callable[[int, int, Callable[[bool], None]], None]) -> None:
        self._hand_over = hand_over
        self._lock = threading.Lock()
        self._memory: Optional[_Memory] = None
        self._handed_over = 0
        self._asked = False  # and not answered yet, or refused
        self._closed = False
        self._row_bytes: dict[tuple[str, ...], int] = {}

    @property
    def in_use(self) -> bool:
        """Whether the teacher has taken memory."""
        return self._memory is not None

    def lend(self, feeds: Feeds, fetches: Sequence[str]) -> Optional[Loan]:
        """Copy a request's feeds to where the teacher reads them; None if it travels through the
        socket as a whole. Raises WireError for a dtype that cannot travel.
        """
        if any(not array.ndim or _is_text(array) for array in feeds.values()):
            return None
        sizes = {name: aligned(array.nbytes) for name, array in feeds.items() if array.nbytes}
        rows = max((len(array) for array in feeds.values()), default=0)
        room = aligned(rows * self._row_bytes.get(tuple(fetches), 0))
        room = room if room >= _ROOM_FROM else 0
        size = sum(sizes.values()) + room
        if not sizes or size < _WORTHWHILE:
            return None
        memory = self._memory
        offset = memory.allocate(size) if memory is not None else None
        if memory is None or offset is None:
            self._ask_for(size)
            return None
        places, at = {}, offset
        for name, nbytes in sizes.items():
            array = feeds[name]
            kind = array.dtype.newbyteorder("<")
            view = memory.arena.view(at, array.nbytes)
            np.copyto(np.frombuffer(view, kind).reshape(array.shape), array)
            places[name] = (memory.number, at)
            at += nbytes
        return Loan(memory, offset, places, Room(memory.number, at, room) if room else None)

    def close(self) -> None:
        """The connection has ended: its memory is free once nobody copies into it any longer."""
        with self._lock:
            self._closed, self._memory = True, None

    def failed(self, loan: Loan) -> None:
        """The teacher has failed at a request. Perhaps because of where it lies, if none that lies
        there was answered yet: then there will be no more.
        """
        if not loan.memory.works:
            self.close()

    def answered(
        self, loan: Optional[Loan], fetches: Sequence[str], rows: int, outputs: Feeds
    ) -> None:
        """Remember how large the answer to a request of so many ``rows`` is, wherever it lay."""
        if loan is not None:
            loan.memory.works = True
        if not rows:
            return
        nbytes = -(-sum(aligned(array.nbytes) for array in outputs.values()) // rows)
        kind = tuple(fetches)
        if nbytes > self._row_bytes.get(kind, 0):
            if len(self._row_bytes) >= _KINDS:
                self._row_bytes.clear()
            self._row_bytes[kind] = nbytes

    def _ask_for(self, size: int) -> None:
        """Make memory for more and larger requests, and hand it over, unless that is under way, or
        there is nothing more to be had.
        """
        with self._lock:
            before = self._memory.arena.size if self._memory is not None else 0
            room = max(_SMALLEST, 4 * before, _REQUESTS * size)
            room = min(LARGEST_MEMORY, -(-room // _SMALLEST) * _SMALLEST)
            no_more = self._asked or self._closed or self._handed_over >= MOST_MEMORIES
            if no_more or room <= before or size > room:
                return
            self._asked = True
            self._handed_over += 1
            try:
                memory = _Memory(self._handed_over, room)
            except (OSError, ValueError, AttributeError) as error:  # a system that has no memfd
                logger.info("no memory can be shared with a teacher: %s", error)
                return

        def then(taken: bool) -> None:
            memory.arena.close()
            with self._lock:
                if taken and not self._closed:
                    self._memory, self._asked = memory, False

        self._hand_over(memory.number, memory.arena.fd, then)


def _is_text(array: np.ndarray) -> bool:
    elem_type_of(array.dtype)
    return array.dtype.kind in "USO"
