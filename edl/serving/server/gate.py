"""Who may stay, and what they may cost: connections, trust, memory, speed. Both protocols ask here.

Decisions only. No socket, no clock and no waiting: the caller passes the time in, and does what is
decided.

- Trust: a connection is a newcomer until it has shown the token, or, on a teacher without one, has
  sent a valid request. Newcomers make room for others when places or memory are scarce.
- Memory: everything received counts against one budget. A connection that is trusted gets a block
  for a whole body; what newcomers send, and what is very large, counts as it arrives, so that a
  claim alone costs nothing.
- Speed: a peer keeps up a minimum rate in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

from edl._checks import check_count, check_positive

#: Bytes per second that a peer must keep up in the long run to be given more time.
MIN_RATE = 256 << 10

#: Seconds that somebody waits for memory before the slow make room.
PRESSURE_AFTER = 1.0


@dataclass(frozen=True)
class Limits:
    """What a connection may cost.

    ``max_body``: bytes of one request; a quarter of the request memory at most. ``patience``:
    seconds that a peer may stall in mid-message, or take no bytes, or be behind MIN_RATE.
    ``idle``: seconds between requests.
    Raises ConfigError for what is not a limit.
    """

    max_body: int = 512 << 20
    patience: float = 30.0
    idle: float = 3600.0

    def __post_init__(self) -> None:
        check_count("max_body", self.max_body)
        check_positive("patience", self.patience)
        check_positive("idle", self.idle)


class Pace:
    """How long a peer may take: until ``deadline``, which bytes put off by what MIN_RATE allows for
    them, but never further than ``patience`` seconds from now. So a burst buys no pause.
    """

    __slots__ = ("_patience", "deadline")

    def __init__(self, patience: float, now: float) -> None:
        self._patience = patience
        self.deadline = now + patience

    def moved(self, size: int, now: float) -> None:
        """So many bytes have gone through."""
        self.deadline = min(now + self._patience, self.deadline + size / MIN_RATE)


@dataclass(eq=False)
class Guest:
    """One connection as the gate knows it. ``held``: bytes of request memory. ``shared``: bytes of
    its own memory that it has handed over. ``certified``: it has shown a certificate, or need not.
    """

    peer: str
    certified: bool = True
    trusted: bool = False
    held: int = 0
    shared: int = 0


class Gate:
    """Who is connected, and who of them is a newcomer."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._guests: set[Guest] = set()
        self._newcomers: dict[Guest, None] = {}  # in their order of arrival

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, peer: str) -> tuple[Optional[Guest], Optional[Guest]]:
        """A place for one more connection, and who has lost his for it: the oldest newcomer, when
        all are taken. None for the first if all belong to guests that are trusted.
        """
        leaver = None
        if len(self._guests) >= self.places:
            leaver = next(iter(self._newcomers), None)
            if leaver is None:
                return None, None
            self.leave(leaver)
        guest = Guest(peer)
        self._guests.add(guest)
        self._newcomers[guest] = None
        return guest, leaver

    def trust(self, guest: Guest) -> None:
        """The guest has shown the token, or that it has business here. One that has lost its place
        meanwhile does not get it back.
        """
        guest.trusted = True
        self._newcomers.pop(guest, None)

    def leave(self, guest: Guest) -> None:
        """The guest's place is free; it may have been before."""
        self._guests.discard(guest)
        self._newcomers.pop(guest, None)


@dataclass(eq=False)
class Arrival:
    """A body on its way. ``size``: bytes that it may come to. ``loose``: bytes of it in ordinary
    memory. ``waits``: for room. ``seen``: what had arrived when it was last looked at (see
    ``too_slow``); None if it never was.
    """

    guest: Guest
    size: int
    newcomer: bool
    arrived: int = 0
    loose: int = 0
    waits: bool = False
    seen: Optional[int] = None


@dataclass
class Budget:
    """Bytes of request memory. Blocks (of the shared arena) may take all of it; what is loose (in
    ordinary memory, on its way to a block) half of it, and newcomers' loose bodies a quarter, so
    that whole bodies always find their way through.

    ``shared``: bytes of their own that clients on this machine have handed over; ``shared_size``:
    the most of them, of which one client may have a quarter. They cost memory as clients use them,
    and the machine has them once, whoever maps them.
    """

    size: int
    shared_size: int = 0
    blocks: int = 0
    loose: int = 0
    newcomers: int = 0
    shared: int = 0

    @property
    def largest_body(self) -> int:
        """What one body may come to."""
        return self.size // 4

    @property
    def largest_claim(self) -> int:
        """What is reserved for one body before it has arrived; a larger one counts as it comes."""
        return self.size // 16

    @property
    def newcomers_fill_their_part(self) -> bool:
        """Whether a newcomer that waits does so because of the others."""
        return self.newcomers > self.size // 8

    def take_block(self, guest: Guest, size: int) -> bool:
        """Count a block, if there is room for it."""
        if self.blocks + self.loose + size > self.size:
            return False
        self.blocks += size
        guest.held += size
        return True

    def give_block(self, guest: Guest, size: int) -> None:
        """The block is free."""
        self.blocks -= size
        guest.held -= size

    def take_loose(self, arrival: Arrival, size: int) -> bool:
        """Count bytes of a body in ordinary memory, if there is room for them."""
        full = (
            self.blocks + self.loose + size > self.size
            or self.loose + size > self.size // 2
            or (arrival.newcomer and self.newcomers + size > self.size // 4)
        )
        if full:
            return False
        self._count_loose(arrival, size)
        return True

    def give_loose(self, arrival: Arrival) -> None:
        """All of the body's ordinary memory is free."""
        self._count_loose(arrival, -arrival.loose)

    def room_to_share(self, guest: Guest) -> int:
        """Bytes that the guest may still hand over."""
        return max(0, min(self.shared_size - self.shared, self.shared_size // 4 - guest.shared))

    def take_shared(self, guest: Guest, size: int) -> None:
        """The guest has handed over so many bytes."""
        self.shared += size
        guest.shared += size

    def give_shared(self, guest: Guest, size: int) -> None:
        """They are not mapped any longer."""
        self.shared -= size
        guest.shared -= size

    def _count_loose(self, arrival: Arrival, size: int) -> None:
        self.loose += size
        arrival.loose += size
        arrival.guest.held += size
        if arrival.newcomer:
            self.newcomers += size


def too_slow(arrivals: Iterable[Arrival], seconds: float, patience: float) -> list[Arrival]:
    """Whose bodies make room for somebody who waits for memory. In this order:

    - all that stand still, though there is room for what they would send;
    - the one that is furthest from its end, of those that at the rate of the last ``seconds``
      would take more than ``patience`` seconds;
    - if none moves, since all wait for room themselves: the one that holds the most.

    Ask every so many ``seconds``: a body is judged from the second time on.
    """
    still: list[Arrival] = []
    waiting: list[Arrival] = []
    moving: list[tuple[float, Arrival]] = []
    for arrival in arrivals:
        seen, arrival.seen = arrival.seen, arrival.arrived
        rate = 0.0 if seen is None else (arrival.arrived - seen) / seconds
        if arrival.waits and not rate:
            waiting.append(arrival)
        elif rate or seen is None:
            left = (arrival.size - arrival.arrived) / rate if rate else 0.0
            moving.append((left, arrival))
        else:
            still.append(arrival)
    if still:
        return still
    if not moving:
        return sorted(waiting, key=lambda arrival: arrival.guest.held)[-1:]
    left, slowest = max(moving, key=lambda entry: entry[0])
    return [slowest] if left > patience else []
