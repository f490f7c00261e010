"""How many teachers a service should have: a figure for an autoscaler. Pure; time is passed in.

**What students could use.** A student that never waits for its teachers consumes what it can. One
that waits the share ``w`` of its time and consumes ``x`` rows per second meanwhile would consume
``x / (1 - w)`` if it did not: the rate at full use is the rate seen over the share of time used.
That is the utilization law of operational analysis (Denning and Buzen, "The Operational Analysis of
Queueing Network Models", ACM Computing Surveys 10(3), 1978), and how DS2 finds the parallelism of a
dataflow in one step and without oscillation (Kalavri et al., "Three steps is all you need", OSDI
2018, where it is the "true" rate). It does not depend on how many teachers there are, so nothing
winds up while new ones start. Where an accelerator still computes while its program waits, ``w`` is
too large and this a bound from above, until the student waits no more. What a student asked for
once its volume was high (``Demand``) is the same figure, measured the other way; both have the same
headroom.

**How many teachers that is.** What all could use over what a teacher delivers on average, at most
``GROWTH`` times as many as are there: where students wait nearly always, ``1 - w`` is mostly error,
so it grows by a factor and is measured again when the new ones work.

**When it changes.** It rises when all of the last ``RISE_AFTER`` seconds ask for more, to the least
that they ask for, and falls when all of the last ``fall_after`` seconds ask for less, to the most
of that: the stabilization windows of Kubernetes' HorizontalPodAutoscaler. It falls only to what
would do with ``SLACK`` to spare, so that a load at the edge between two numbers does not flap, and
of many teachers ``TOLERANCE`` more or fewer are no cause for a change. What cannot be measured
changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

from edl._checks import check_count, check_positive
from edl.errors import ConfigError

#: What a student that waits could use, and this much more: that of ``Demand``.
HEADROOM = 1.2
#: At most so many times as many teachers as there are.
GROWTH = 2
#: To spare, as a share, before there may be fewer teachers.
SLACK = 0.1
#: Differences that are left as they are, as a share of the number.
TOLERANCE = 0.05
RISE_AFTER = 5.0
FALL_AFTER = 300.0

#: Of whom it is not known how long it waits (a TeacherPool, or an older EDL): a step of ``GROWTH``.
_UNKNOWN_WAIT = 1 - 1 / GROWTH
_MOST_WAIT = 0.99  # what is beyond is error
NO_LIMIT = 1 << 30
_BUCKET = 1.0  # seconds that are one entry of the history


@dataclass(frozen=True)
class Bounds:
    """The least and the most teachers that may be wanted, and after how many seconds of less load
    it may be fewer. Raises ConfigError for values that cannot be.
    """

    least: int = 0
    most: Optional[int] = None
    fall_after: float = FALL_AFTER

    def __post_init__(self) -> None:
        check_count("the least teachers", self.least, least=0)
        check_positive("the seconds until fewer teachers are wanted", self.fall_after, least=0)
        if self.most is not None and check_count("the most teachers", self.most) < self.least:
            raise ConfigError(
                f"at least {self.least} teachers is more than at most {self.most}: raise the most"
            )

    def clamp(self, number: int) -> int:
        """The nearest number within."""
        return min(max(number, self.least), NO_LIMIT if self.most is None else self.most)


@dataclass(frozen=True)
class Need:
    """What one student could use: rows per second, of at most so many teachers."""

    rows: float
    teachers: int = NO_LIMIT


@dataclass(frozen=True)
class Load:
    """A service at one moment. ``teachers`` that are there; ``delivers``: rows per second of one,
    on average, None if that is not known; ``needs``: of those students that want any.
    """

    teachers: int = 0
    delivers: Optional[float] = None
    needs: tuple[Need, ...] = ()


def need(want: Optional[float], consumes: float, waits: Optional[float], gets: float) -> float:
    """Rows per second that a student could use. ``want``: what it asks for, None for any number;
    ``consumes``: rows per second; ``waits``: the share of its time, None if that is not known;
    ``gets``: what it is taken to get, which counts while it has not consumed anything.
    """
    if want is not None:
        return want
    if consumes <= 0:
        return gets
    waits = _UNKNOWN_WAIT if waits is None else min(waits, _MOST_WAIT)
    return HEADROOM * consumes / (1 - waits)


class Wanted:
    """The number of one service. Call ``update`` about once a second.

    ``before``: the number so far, if another process has computed it; else what is there at first.
    """

    def __init__(self, bounds: Optional[Bounds] = None, before: Optional[int] = None) -> None:
        self._bounds = bounds or Bounds()
        self._number = before
        self._delivers: Optional[float] = None
        self._since: Optional[float] = None
        self._history: deque[tuple[float, int, int]] = deque()

    def update(self, now: float, load: Load) -> int:
        """The number wanted, given the load at ``now`` (seconds, never less than the last)."""
        if self._since is None:
            self._since = now
        if self._number is None:
            self._number = load.teachers
        self._delivers = load.delivers or self._delivers
        self._remember(now, *self._asked(load))
        number = self._number
        up = min((up for up, _ in self._over(now, RISE_AFTER)), default=number)
        down = max((down for _, down in self._over(now, self._bounds.fall_after)), default=number)
        if up > (1 + TOLERANCE) * number:
            self._number = up
        elif down < (1 - TOLERANCE) * number:
            self._number = down
        # Whoever waits needs one, at once.
        self._number = self._bounds.clamp(max(self._number, min(1, len(load.needs))))
        return self._number

    def _asked(self, load: Load) -> tuple[int, int]:
        """How many teachers this load asks for: to rise to, and to fall to."""
        assert self._number is not None
        if not load.needs:
            return 0, 0
        if self._delivers is None or not load.teachers:
            return self._number, self._number
        teachers = sum(min(each.rows / self._delivers, each.teachers) for each in load.needs)
        most = max(self._number, GROWTH * load.teachers)
        up = min(most, _whole(teachers))
        return up, max(up, min(most, _whole(teachers * (1 + SLACK))))

    def _remember(self, now: float, up: int, down: int) -> None:
        """One more entry, or more of the last; the careful one of what is asked within a bucket."""
        if self._history and now - self._history[-1][0] < _BUCKET:
            since, last_up, last_down = self._history.pop()
            self._history.append((since, min(up, last_up), max(down, last_down)))
        else:
            self._history.append((now, up, down))
        while now - self._history[0][0] > max(RISE_AFTER, self._bounds.fall_after) + _BUCKET:
            self._history.popleft()

    def _over(self, now: float, seconds: float) -> list[tuple[int, int]]:
        """What was asked during the last ``seconds``; nothing if it has not been that long."""
        assert self._since is not None
        if now - self._since < seconds:
            return []
        return [(up, down) for at, up, down in self._history if now - at <= seconds + _BUCKET]


def _whole(teachers: float) -> int:
    """The least number that is enough, but for what floating point makes of a sum."""
    return min(NO_LIMIT, math.ceil(teachers - 1e-9))


def mean(rates: Iterable[float]) -> Optional[float]:
    """The mean; None of nothing."""
    found = list(rates)
    return math.fsum(found) / len(found) if found else None
