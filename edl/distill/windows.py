"""How many tasks are in flight at a teacher: as many as keep it busy, and little more.

What keeps it busy is the product of two things that are seen of it: how many tasks it answers in a
second, and how long a task takes that finds nobody before it (the bandwidth-delay product). Twice
as long is allowed for, so that a teacher that computes several tasks together gets more of them
until it computes no more of them in a second. The time is measured now and then with few tasks in
flight, since tasks that wait for one another say nothing of it.

Source: Cardwell, Cheng, Gunn, Yeganeh, Jacobson, "BBR: Congestion-Based Congestion Control", ACM
Queue 14(5), 2016, which does the same for the packets of a connection. No clock: the caller passes
the time in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: How many times the product may be in flight.
_GAIN = 2.0

#: Seconds that an answer, or the next task, may come late at the student: another thread of Python
#: keeps the interpreter for as long (``sys.getswitchinterval``). Small tasks share system calls and
#: wake-ups meanwhile.
_SLACK = 0.005

#: Bytes of tasks that are sent, or read, together.
TOGETHER = 512 << 10

#: Answers by which the delay is measured, and seconds until it is measured again (or so many
#: delays, where these are longer).
_MEASURED_BY = 3
_MEASURE_EVERY, _MEASURE_EVERY_DELAYS = 10.0, 40

#: Answers that the mean interval remembers.
_REMEMBERED = 32


@dataclass(frozen=True)
class Bounds:
    """Of a window: tasks, and bytes of these. ``least`` is allowed whatever they have."""

    least: int
    most: int
    most_bytes: float


def enough(interval: float, delay: float, nbytes: float, bounds: Bounds) -> int:
    """How many tasks keep a teacher busy that answers one in ``interval`` seconds when it is busy,
    and in ``delay`` seconds when it is not; a task has ``nbytes``. Within the bounds.
    """
    most = min(bounds.most, bounds.most_bytes / max(1.0, nbytes))
    wanted = most if interval <= 0 else min(most, (_GAIN * delay + _SLACK) / interval)
    return max(bounds.least, math.floor(wanted))


def half_of(size: int, nbytes: float) -> int:
    """Half of so many tasks of ``nbytes``, as far as these are small; 0 if they are large."""
    return min(size // 2, int(TOGETHER / max(1.0, nbytes)))


@dataclass
class Window:
    """The window of one teacher: ``size``, of which little is used while its delay is measured."""

    bounds: Bounds
    size: int = 0
    interval: float = 0.0  # seconds from one answer to the next, when it is busy
    delay: float = 0.0  # seconds that a task takes when it is not; 0: not known
    nbytes: float = 0.0  # of a task
    answers: int = 0
    measure_at: float = -math.inf
    shortest: float = math.inf  # of the measurement that is going on
    measured: int = 0

    def __post_init__(self) -> None:
        self.size = self.size or self.bounds.least

    def room(self, in_flight: int, now: float) -> int:
        """How many tasks more it may be sent."""
        return max(0, self._used(now) - in_flight)

    def together(self, now: float) -> int:
        """How many tasks are sent together, at most: half of those that may be in flight, so that
        it has work while they are answered.
        """
        return max(1, half_of(self._used(now), self.nbytes))

    def _used(self, now: float) -> int:
        return self.bounds.least if now >= self.measure_at else self.size

    def is_quiet(self, in_flight: int) -> bool:
        """Whether a task that makes it so many in flight shows the delay."""
        return in_flight <= self.bounds.least

    def answered(
        self, latency: float, interval: float, nbytes: float, quiet: bool, now: float
    ) -> None:
        """A task was answered after ``latency`` seconds, ``interval`` seconds after the answer
        before it, or after it was sent, whichever was later. ``nbytes``: of the task; 0 if that is
        not known any more.
        """
        self.answers += 1
        weight = 1 / min(self.answers, _REMEMBERED)
        self.interval += (interval - self.interval) * weight
        if nbytes:
            self.nbytes += (nbytes - self.nbytes) * weight
        if not quiet:
            return
        if now < self.measure_at:
            self.delay = min(self.delay, latency)
            return
        self.shortest = min(self.shortest, latency)
        self.measured += 1
        if self.measured == _MEASURED_BY:
            self.delay, self.shortest, self.measured = self.shortest, math.inf, 0
            self.measure_at = now + max(_MEASURE_EVERY, _MEASURE_EVERY_DELAYS * self.delay)

    def adapt(self, low: bool, high: bool, filled: bool) -> None:
        """Grow or shrink by one. ``low``, ``high``: the volume of what is finished (see
        ``Limits``); ``filled``: whether the window was the limit lately.
        """
        wanted = self.bounds.least
        if self.delay:
            wanted = enough(self.interval, self.delay, self.nbytes, self.bounds)
        if high or self.size > wanted:
            self.size = max(self.bounds.least, self.size - 1)
        elif low and filled and self.size < wanted:
            self.size += 1
