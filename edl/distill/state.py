"""The records that make up the dispatch state: tasks, batches, teachers, limits, counters.

Work is counted in what a task costs its teacher: rows, or tokens where a teacher says that rows are
sequences.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, Generic, Optional, TypeVar

import numpy as np

from edl._checks import check_positive
from edl.distill.windows import Bounds, Window
from edl.errors import ConfigError

#: What the student gets for a batch, besides the teachers' outputs: whatever ``add`` was given.
Payload = TypeVar("Payload")

RECENT = 128  # latencies that "usual" is computed from


@dataclass(frozen=True)
class Limits:
    """The thresholds. Volumes are of finished batches that the student has not taken yet.

    ``low_*``, ``high_*``: the volume is low when it is under both low thresholds (and not high),
    high when it reaches either high threshold. ``min_window``, ``max_window``: tasks in flight per
    teacher; within these, and ``window_bytes`` of tasks (or ``min_window``, if those are more), as
    many as keep it busy. ``min_timeout``, ``max_timeout``: seconds; a teacher is given up when it
    has been silent for ten times what it usually takes (for longer, if it has longer sequences than
    usual), within these; no task waits longer than ``max_timeout`` for one teacher.
    ``hedge_factor``: a task that holds up the student for this many times the usual latency (and
    ``hedge_min`` seconds) goes to a second teacher too. ``hedge_share``: such duplicates are at
    most this share of all tasks. ``max_attempts``: a task whose teachers were lost this often is
    given up; ``max_failures``: one that teachers answered with an error of theirs this often, each
    asked again only when all have failed. ``refusal_patience``: seconds that a task which every
    connected teacher refuses waits for a teacher of another opinion. ``max_bytes``: of all batches
    held, those in flight included. Raises ConfigError for values that cannot work.
    """

    low_batches: int = 4
    high_batches: int = 16
    low_bytes: int = 64 << 20
    high_bytes: int = 512 << 20
    min_window: int = 2
    max_window: int = 32
    window_bytes: int = 64 << 20
    min_timeout: float = 2.0
    max_timeout: float = 60.0
    hedge_factor: float = 4.0
    hedge_min: float = 0.05
    hedge_share: float = 0.05
    max_attempts: int = 10
    max_failures: int = 3
    refusal_patience: float = 1.5
    max_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        for item in fields(self):
            check_positive(f"Limits.{item.name}", getattr(self, item.name), least=0)
        for less, more in (
            ("min_window", "max_window"),
            ("min_timeout", "max_timeout"),
        ):
            if getattr(self, less) > getattr(self, more):
                raise ConfigError(
                    f"Limits.{less} ({getattr(self, less)}) is above {more} ({getattr(self, more)})"
                )
        for name in ("high_batches", "min_window", "max_attempts", "max_failures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Limits.{name} must be at least 1")
        if not self.max_timeout:
            raise ConfigError("Limits.max_timeout must be above 0: no teacher answers in no time")

    @property
    def window(self) -> Bounds:
        """Of what is in flight at one teacher."""
        return Bounds(self.min_window, self.max_window, self.window_bytes)


@dataclass
class Task:
    """Rows ``start:stop`` of a batch, to be computed by one teacher. ``alone``: it shares its
    requests with no other, since one that it was in has failed. ``made``: what was made of
    them to be sent, for whoever is sent them next; with the task it is gone.
    """

    id: int
    batch: int
    part: int
    start: int
    stop: int
    sent_to: dict[str, float] = field(default_factory=dict)  # in flight at, since when
    refusals: dict[str, str] = field(default_factory=dict)  # by teacher, what it said
    failures: dict[str, list[str]] = field(default_factory=dict)  # the same: errors of its own
    losses: list[str] = field(default_factory=list)  # teachers that were lost while they had it
    refused_since: float = 0.0
    alone: bool = False
    made: dict[Any, np.ndarray] = field(default_factory=dict, compare=False, repr=False)


@dataclass
class Finished(Generic[Payload]):
    """A batch in its turn: every part's outputs in the order of rows, or the error; its number, and
    those of its tasks.
    """

    payload: Optional[Payload]
    parts: list[Any]
    error: Optional[BaseException] = None
    number: int = 0
    tasks: range = range(0)


@dataclass
class BatchState(Generic[Payload]):
    """A batch on its way, since ``since``: the parts that have been answered, and how many are
    missing. ``nbytes``: with those of its answers, ``answer_bytes``. ``spared``: rows that it has
    beside ``rows``, about which nobody is asked.
    """

    number: int
    payload: Optional[Payload]
    nbytes: int
    first_task: int = 0
    rows: int = 0
    task_rows: int = 1
    since: float = 0.0
    answer_bytes: int = 0
    spared: int = 0
    work: int = 0  # of the parts that have been answered
    parts: list[Any] = field(default_factory=list)
    missing: int = 0
    sent: dict[int, None] = field(default_factory=dict)  # tasks in flight, once, oldest first
    error: Optional[BaseException] = None

    @property
    def complete(self) -> bool:
        """Whether it can be taken when its turn comes."""
        return not self.missing or self.error is not None


@dataclass(frozen=True)
class AnswerRecord:
    """One answer of a teacher, for its statistics."""

    at: float
    latency: float
    rows: int
    work: int


@dataclass
class TeacherState:
    """What is known of a connected teacher. ``usual``: seconds per answer at its queue's head, and
    ``usual_work`` how much that is, of one task or several. ``weights``: the work of tasks in
    flight that are sequences. ``failures_together``: requests of several tasks at which it failed.
    """

    name: str
    window: Window
    in_flight: dict[int, float] = field(default_factory=dict)  # task id, when it was sent
    quiet: set[int] = field(default_factory=set)  # those in flight that were sent before few others
    filled: bool = False  # whether the task that was sent last has filled the window
    unwanted: set[int] = field(default_factory=set)  # those in flight that nobody waits for now
    last_heard: float = 0.0
    usual: float = 0.0
    usual_work: float = 0.0
    weights: dict[int, int] = field(default_factory=dict)
    deviation: float = 0.0
    recent: deque[AnswerRecord] = field(default_factory=lambda: deque(maxlen=RECENT))
    failures_in_a_row: int = 0
    suspended_until: float = 0.0
    unavailable: str = ""  # why it takes no work, in its own words, until it answers again
    retiring: bool = False
    answered: int = 0
    rows: int = 0
    failures_together: int = 0

    @property
    def pace(self) -> float:
        """Seconds per row, or token; next to nothing while that is not known."""
        return self.usual / self.usual_work if self.usual and self.usual_work else 1e-9

    def together(self, now: float) -> int:
        """How many tasks it is sent together, at most."""
        return 1 if self.failures_together > 2 + self.answered / 100 else self.window.together(now)

    def has_room(self, now: float) -> bool:
        """Whether it may be sent a task."""
        free = self.window.room(len(self.in_flight), now) > 0
        return free and now >= self.suspended_until and not self.retiring

    def silence_limit(self, limits: Limits) -> float:
        """Seconds without a sign of life after which it is given up."""
        if not self.answered:
            return limits.max_timeout
        patience = max(map(self.patience, self.weights), default=1.0)
        adapted = patience * (10 * self.usual + 4 * self.deviation)
        return min(limits.max_timeout, max(limits.min_timeout, adapted))

    def patience(self, task_id: int) -> float:
        """How many times as much as usual it is, if it is more."""
        weight = self.weights.get(task_id, 0)
        return max(1.0, weight / self.usual_work) if self.usual_work else 1.0

    def waiting_since(self) -> float:
        """Since when it owes a sign of life (call only with tasks in flight)."""
        return max(self.last_heard, min(self.in_flight.values()))


@dataclass
class Counters:
    """What has happened so far, for ``reader.stats()``."""

    batches: int = 0
    rows: int = 0
    work: int = 0
    bytes: int = 0
    tasks_sent: int = 0
    resent: int = 0
    hedged: int = 0
    duplicates: int = 0
    lost_teachers: int = 0
    failed: int = 0


class Latencies:
    """A histogram of seconds."""

    BOUNDS = (*(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05), *(0.1, 0.25, 0.5, 1, 2.5, 5, 10))

    def __init__(self) -> None:
        self.sum = 0.0
        self._counts = [0] * (len(self.BOUNDS) + 1)

    def add(self, seconds: float) -> None:
        """One more."""
        self.sum += seconds
        self._counts[bisect_left(self.BOUNDS, seconds)] += 1

    def buckets(self) -> dict[str, int]:
        """How many took up to each bound, as Prometheus writes it: the last one is "+Inf"."""
        names = (*map(str, self.BOUNDS), "+Inf")
        return dict(zip(names, accumulate(self._counts)))


def rate(recent: deque[AnswerRecord], now: float) -> tuple[float, float]:
    """Rows and work per second over the recent answers."""
    if len(recent) < 2:
        return 0.0, 0.0
    first, *rest = recent
    seconds = max(1e-9, now - first.at)
    return sum(each.rows for each in rest) / seconds, sum(each.work for each in rest) / seconds


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and p99 of sorted seconds; zeros when there are none."""
    if not values:
        return {"median": 0.0, "p99": 0.0}
    return {"median": values[len(values) // 2], "p99": values[int(0.99 * (len(values) - 1))]}
