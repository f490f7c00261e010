"""Memory that clients on this machine have handed over: who has which, and until when it is mapped.

A client's requests lie in its own memory, and their answers are laid there. It is mapped until its
connection has ended and nothing is computed from it any longer.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Callable, Optional

import numpy as np

from edl.errors import WireError
from edl.serving.server.gate import Budget, Guest
from edl.serving.wire.arena import Arena
from edl.serving.wire.local import LARGEST_MEMORY, MOST_MEMORIES
from edl.serving.wire.messages import Room
from edl.serving.wire.tensor import Place


class Memory:
    """One piece. ``key``: what its client calls it; ``number``: what workers do. ``users``: its
    connection, and the requests of it that are not answered yet.
    """

    __slots__ = ("arena", "key", "number", "users")

    def __init__(self, arena: Arena, key: int, number: int) -> None:
        self.arena = arena
        self.key = key
        self.number = number
        self.users = 1


class Sharing:
    """The memory of all clients. ``on_end`` is told the number of what is not needed any longer."""

    def __init__(self, budget: Budget, on_end: Callable[[int], None]) -> None:
        self._budget = budget
        self._on_end = on_end
        self._numbers = itertools.count(1)

    def map(self, guest: Guest, key: int, fd: int) -> Memory:
        """Map what a guest has handed over. Raises WireError, and leaves the fd alone."""
        room = self._budget.room_to_share(guest)
        if not room:
            raise WireError("this teacher maps no more memory of students")
        arena = Arena.attach_fixed(fd, min(room, LARGEST_MEMORY))
        self._budget.take_shared(guest, arena.size)
        return Memory(arena, key, next(self._numbers))

    def leave(self, guest: Guest, memories: Sequence[Memory]) -> None:
        """One of the users of each needs it no longer."""
        for memory in memories:
            memory.users -= 1
            if not memory.users:
                memory.arena.close()
                self._budget.give_shared(guest, memory.arena.size)
                self._on_end(memory.number)


class ClientMemory:
    """What one connection has handed over."""

    def __init__(self, sharing: Sharing, guest: Guest) -> None:
        self._sharing = sharing
        self._guest = guest
        self._memories: dict[int, Memory] = {}

    @property
    def arenas(self) -> Mapping[int, Arena]:
        """By the numbers that the client gave them."""
        return {key: memory.arena for key, memory in self._memories.items()}

    def take(self, key: int, fd: Optional[int]) -> None:
        """Map what came with ``fd``, which is this object's to close. Raises WireError."""
        if fd is None:
            raise WireError("no memory came with the message that hands it over")
        try:
            if key in self._memories or len(self._memories) >= MOST_MEMORIES:
                raise WireError(f"memory {key} is one too many of this connection")
            self._memories[key] = self._sharing.map(self._guest, key, fd)
        except WireError:
            os.close(fd)
            raise

    def lease(self) -> Optional[Lease]:
        """Keep all of it until a request is answered; None if there is none."""
        if not self._memories:
            return None
        return Lease(self._sharing, self._guest, tuple(self._memories.values()))

    def close(self) -> None:
        """The connection has ended."""
        memories, self._memories = self._memories, {}
        self._sharing.leave(self._guest, list(memories.values()))


class Lease:
    """What one connection has handed over, kept until ``end``."""

    __slots__ = ("_guest", "_sharing", "memories")

    def __init__(self, sharing: Sharing, guest: Guest, memories: Sequence[Memory]) -> None:
        self._sharing, self._guest, self.memories = sharing, guest, memories
        for memory in memories:
            memory.users += 1

    def place(self, array: np.ndarray) -> Optional[Place]:
        """Where an array lies: the memory's number for workers, and the offset there."""
        for memory in self.memories:
            offset = memory.arena.offset_of(array)
            if offset is not None:
                return memory.number, offset
        return None

    def places(self, arrays: Mapping[str, np.ndarray], room: Optional[Room]) -> dict[str, Place]:
        """Where those lie that were laid into the ``room``, by the client's number for it."""
        memory = next((each for each in self.memories if room and each.number == room.number), None)
        if memory is None or room is None:
            return {}
        found = {name: memory.arena.offset_of(array) for name, array in arrays.items()}
        return {
            name: (memory.key, offset)
            for name, offset in found.items()
            if offset is not None and room.offset <= offset < room.offset + room.size
        }

    def room(self, room: Room) -> Room:
        """The same, by the number for workers."""
        numbers = {memory.key: memory.number for memory in self.memories}
        return room._replace(number=numbers[room.number])

    def end(self) -> None:
        """The request is answered."""
        memories, self.memories = self.memories, ()
        self._sharing.leave(self._guest, memories)
