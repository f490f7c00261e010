"""Where everything received lies: blocks of the arena that workers map, and bodies on their way to
one. Waiting for room is here; who gets it is decided in ``gate``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import dataclass, field
from typing import Callable, Optional

from edl.serving.server.gate import PRESSURE_AFTER, Arrival, Budget, Guest, Pace, too_slow
from edl.serving.server.stream import Stream
from edl.serving.wire.arena import Allocator, Arena

logger = logging.getLogger(__name__)

#: Bytes of a body that are reserved ahead of what has arrived: as much again, between these.
_STEP, _LARGEST_STEP = 64 << 10, 4 << 20

#: Bytes that are copied in one go on the loop (below a millisecond).
_COPY = 2 << 20


@dataclass(eq=False)
class _Waiter:
    """Somebody who waits: ``attempt`` is true once it has got what it wants."""

    guest: Guest
    number: int
    newcomer: bool
    attempt: Callable[[], bool]
    granted: asyncio.Future = field(repr=False)


class RequestMemory:
    """The memory of one server. One asyncio loop owns it.

    ``throw_out(guest, reason)`` ends a connection, whose memory is then given back by its owner.
    ``patience``: seconds that a body may take while others wait for memory. ``shared_size``: see
    ``Budget``.
    """

    def __init__(
        self,
        arena: Arena,
        patience: float,
        throw_out: Callable[[Guest, str], None],
        shared_size: int = 0,
    ) -> None:
        self.arena = arena
        self.budget = Budget(arena.size, shared_size)
        self._throw_out = throw_out
        self._patience = patience
        self._allocator = Allocator(arena.size)
        self._owners: dict[int, tuple[Guest, int]] = {}
        self._arrivals: set[Arrival] = set()
        self._waiters: list[_Waiter] = []
        self._numbers = itertools.count()
        self._pressure: Optional[asyncio.TimerHandle] = None

    # --- blocks -----------------------------------------------------------------------------

    def try_block(self, guest: Guest, size: int) -> Optional[int]:
        """A block of the arena for ``guest``, if there is room now."""
        if not self.budget.take_block(guest, size):
            return None
        block = self._allocator.allocate(size)
        if block is None:  # there is enough, but in pieces
            self.budget.give_block(guest, size)
            return None
        self._owners[block] = (guest, size)
        return block

    async def block(self, guest: Guest, size: int) -> int:
        """A block of the arena, when there is room. Who holds least comes first."""
        block: Optional[int] = None

        def attempt() -> bool:
            nonlocal block
            block = self.try_block(guest, size)
            return block is not None

        try:
            await self._wait(guest, False, attempt)
        except BaseException:
            if block is not None:  # got at the moment of being cancelled
                self.free(block)
            raise
        assert block is not None
        return block

    def view(self, block: int, size: int) -> memoryview:
        """The memory of a block."""
        return self.arena.view(block, size)

    def free(self, block: int) -> None:
        """Give a block back."""
        guest, size = self._owners.pop(block)
        self._allocator.free(block)
        self.budget.give_block(guest, size)
        self._grant()

    # --- bodies on their way ----------------------------------------------------------------

    async def receive(self, stream: Stream, guest: Guest, head: memoryview, size: int) -> int:
        """A body of ``size`` bytes that begins with ``head`` and goes on in ``stream``: the block
        that it lies in. Raises EOFError, TimeoutError, OSError.
        """
        if guest.trusted and size <= self.budget.largest_claim:
            return await self._receive_block(stream, guest, head, size)
        arrival = self.begin(guest, size)
        try:
            body = await self._receive_loose(stream, arrival, head)
            return await self.finish(arrival, body)
        finally:
            self.drop(arrival)

    async def _receive_block(
        self, stream: Stream, guest: Guest, head: memoryview, size: int
    ) -> int:
        block = self.try_block(guest, size) if not self._waiters else None
        if block is None:
            block = await self.block(guest, size)
        try:
            view = self.view(block, size)
            view[: len(head)] = head
            arrived = len(head) + stream.read_now(view[len(head) :])
            if arrived < size:
                arrival = self.begin(guest, size)
                arrival.arrived = arrived
                try:
                    await _fill(stream, view[arrived:], arrival, stream.pace())
                finally:
                    self.drop(arrival)
        except BaseException:
            self.free(block)
            raise
        return block

    async def _receive_loose(self, stream: Stream, arrival: Arrival, head: memoryview) -> bytearray:
        """The body in ordinary memory, of which at most as much is reserved as has arrived."""
        await self.take(arrival, len(head))
        body = bytearray(head)
        arrival.arrived = len(head)
        pace = stream.pace()
        while len(body) < arrival.size:
            start = len(body)
            step = min(arrival.size - start, max(_STEP, start), _LARGEST_STEP)
            if await self.take(arrival, step):
                pace = stream.pace()  # what we made it wait for is not the peer's time
            body.extend(bytes(step))
            with memoryview(body) as whole:
                await _fill(stream, whole[start:], arrival, pace)
        return body

    def begin(self, guest: Guest, size: int) -> Arrival:
        """A body of at most ``size`` bytes that comes in pieces: ``take`` room for each, then
        ``finish``, and in any case ``drop``.
        """
        arrival = Arrival(guest, size, not guest.trusted)
        self._arrivals.add(arrival)
        return arrival

    async def take(self, arrival: Arrival, size: int) -> bool:
        """Count ``size`` more bytes of a body, when there is room. Whether that took waiting."""
        arrival.waits = True
        try:
            return await self._wait(
                arrival.guest, arrival.newcomer, lambda: self.budget.take_loose(arrival, size)
            )
        finally:
            arrival.waits = False

    def drop(self, arrival: Arrival) -> None:
        """The body is not on its way any longer, and its ordinary memory is free."""
        self._arrivals.discard(arrival)
        self.budget.give_loose(arrival)
        self._grant()

    async def finish(self, arrival: Arrival, body: bytearray) -> int:
        """The body is whole: the block that it is copied to. Others go on meanwhile."""
        self._arrivals.discard(arrival)  # whole: nobody needs to make it faster
        block = await self.block(arrival.guest, len(body))
        view = self.view(block, len(body))
        try:
            for start in range(0, len(body), _COPY):
                view[start : start + _COPY] = memoryview(body)[start : start + _COPY]
                if start:
                    await asyncio.sleep(0)
        except BaseException:
            self.free(block)
            raise
        return block

    def forget(self, guest: Guest) -> None:
        """The guest's connection has been broken: what it waits for ends with ConnectionError."""
        for waiter in self._waiters:
            if waiter.guest is guest and not waiter.granted.done():
                waiter.granted.set_exception(ConnectionAbortedError(f"{guest.peer} was sent away"))

    # --- waiting ----------------------------------------------------------------------------

    async def _wait(self, guest: Guest, newcomer: bool, attempt: Callable[[], bool]) -> bool:
        """Until ``attempt`` succeeds. Whether that took waiting."""
        if not any(waiter.newcomer == newcomer for waiter in self._waiters) and attempt():
            return False
        granted = asyncio.get_running_loop().create_future()
        waiter = _Waiter(guest, next(self._numbers), newcomer, attempt, granted)
        self._waiters.append(waiter)
        self._grant()
        if self._pressure is None:
            self._plan_look()
        try:
            await granted
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._grant()  # those behind it
        return True

    def _grant(self) -> None:
        """Give waiters what they want, in their order; one that does not fit yet is not overtaken
        by others of its kind.
        """
        if not self._waiters:
            return
        stuck: set[bool] = set()
        for waiter in sorted(self._waiters, key=lambda waiter: (waiter.guest.held, waiter.number)):
            if waiter.newcomer in stuck or waiter.granted.done():  # done: it was sent away
                continue
            if waiter.attempt():
                self._waiters.remove(waiter)
                waiter.granted.set_result(None)
            else:
                stuck.add(waiter.newcomer)

    def _plan_look(self) -> None:
        loop = asyncio.get_running_loop()
        self._pressure = loop.call_later(PRESSURE_AFTER, self._relieve)

    def _relieve(self) -> None:
        """Somebody waits for memory: the slow make room, the worst of each kind at a time."""
        self._pressure = None
        if not self._waiters:
            for arrival in self._arrivals:
                arrival.seen = None
            return
        among_newcomers = self.budget.newcomers_fill_their_part and all(
            waiter.newcomer for waiter in self._waiters
        )
        for arrival in too_slow(self._arrivals, PRESSURE_AFTER, self._patience):
            if among_newcomers and not arrival.newcomer:
                continue
            logger.warning(
                "%s holds %d bytes of request memory that others wait for, and is slow",
                arrival.guest.peer,
                arrival.guest.held,
            )
            self._throw_out(arrival.guest, "it was slow while others waited for memory")
        self._plan_look()


async def _fill(stream: Stream, view: memoryview, arrival: Arrival, pace: Pace) -> None:
    """Receive the bytes of ``view``, and say how far it is."""
    while len(view):
        received = await stream.read_part(view, pace)
        arrival.arrived += received
        view = view[received:]
