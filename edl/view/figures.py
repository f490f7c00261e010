"""From counters, read now and then, to rates and shares over the last half minute. No clock."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Optional

from edl.view.exposition import Values, reader

#: Seconds that rates and shares are taken over.
WINDOW = 30.0

_FAILURES = ("failed", "refused", "unauthorized", "busy")
_STUDENT = "edl_student_"

read_teacher = reader(
    [
        "edl_requests_total",
        "edl_request_seconds_sum",
        "edl_request_seconds_count",
        "edl_rows_total",
        "edl_tokens_total",
        "edl_compute_seconds_sum",
        "edl_queued_rows",
        "edl_workers_ready",
    ]
)

read_student = reader(
    _STUDENT + name
    for name in (
        "rows_total",
        "wait_seconds_total",
        "seconds_total",
        "volume_batches",
        "volume_low_batches",
        "volume_high_batches",
        "store_hit_rows_total",
        "store_miss_rows_total",
        "epoch",
        "epoch_batches",
        "epoch_length_batches",
        "failed_requests_total",
    )
)


@dataclass(frozen=True)
class TeacherFigures:
    """What a teacher did in the last half minute; None for what is not known.

    ``rows``, ``tokens``: per second. ``busy``: share of its workers' time in which they computed.
    ``latency``: seconds from a request's arrival to the end of its answer, on average. ``errors``:
    share of its requests that it answered with an error; ``requests``: how many there were.
    ``outcomes``: errors by kind.
    """

    rows: Optional[float] = None
    tokens: Optional[float] = None
    busy: Optional[float] = None
    latency: Optional[float] = None
    queued_rows: Optional[float] = None
    errors: Optional[float] = None
    requests: float = 0.0
    outcomes: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class StudentFigures:
    """What a student did in the last half minute; None for what is not known.

    ``rows``: per second. ``volume``, ``low``, ``high``: batches that are ready for it, and the
    thresholds between which they are kept. ``waits``: share of its time in which it waited for a
    batch. ``store_hits``: share of its rows whose labels were in a store. ``epoch``, from 0, and
    batches of it that the student has, of so many. ``failures``: requests answered with an error.
    """

    rows: Optional[float] = None
    volume: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    waits: Optional[float] = None
    store_hits: Optional[float] = None
    epoch: Optional[float] = None
    epoch_batches: Optional[float] = None
    epoch_length: Optional[float] = None
    failures: float = 0.0


class Samples:
    """What one port has said in the last half minute, or the last three times."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Values]] = deque(maxlen=32)

    def add(self, now: float, values: Values) -> None:
        """``values``, read at ``now``. Counters that have fallen mean that it was started anew."""
        samples = self._samples
        if samples and _fell(samples[-1][1], values):
            samples.clear()
        samples.append((now, values))
        while len(samples) > 3 and samples[1][0] <= now - WINDOW:
            samples.popleft()

    @property
    def last(self) -> Values:
        """What it said last."""
        return self._samples[-1][1] if self._samples else {}

    @property
    def seconds(self) -> float:
        """From the first to the last."""
        return self._samples[-1][0] - self._samples[0][0] if self._samples else 0.0

    def grown(self, name: str) -> Optional[float]:
        """By how much a counter has grown; None if that is not known."""
        if len(self._samples) < 2 or name not in self.last:
            return None
        return max(0.0, self.last[name] - self._samples[0][1].get(name, 0.0))

    def rate(self, name: str) -> Optional[float]:
        """The same per second."""
        return _share(self.grown(name), self.seconds, math.inf)


def teacher_figures(samples: Samples) -> TeacherFigures:
    """What follows from what a teacher has said (see ``read_teacher``)."""
    last, grown = samples.last, samples.grown
    requests = grown("edl_requests_total") or 0.0
    failures = [(kind, grown(f"edl_requests_total:{kind}") or 0.0) for kind in _FAILURES]
    workers = max(1.0, last.get("edl_workers_ready", 1.0))
    return TeacherFigures(
        rows=samples.rate("edl_rows_total"),
        tokens=samples.rate("edl_tokens_total"),
        busy=_share(grown("edl_compute_seconds_sum"), samples.seconds * workers),
        latency=_share(
            grown("edl_request_seconds_sum"), grown("edl_request_seconds_count"), math.inf
        ),
        queued_rows=last.get("edl_queued_rows"),
        errors=_share(sum(count for _, count in failures), requests),
        requests=requests,
        outcomes=tuple((kind, count) for kind, count in failures if count),
    )


def student_figures(samples: Samples) -> StudentFigures:
    """What follows from what a student has said (see ``read_student``)."""

    def last(name: str) -> Optional[float]:
        return samples.last.get(_STUDENT + name)

    def grown(name: str) -> Optional[float]:
        return samples.grown(_STUDENT + name)

    hits, misses = grown("store_hit_rows_total"), grown("store_miss_rows_total")
    looked_for = None if hits is None or misses is None else hits + misses
    return StudentFigures(
        rows=samples.rate(f"{_STUDENT}rows_total"),
        volume=last("volume_batches"),
        low=last("volume_low_batches"),
        high=last("volume_high_batches"),
        waits=_share(grown("wait_seconds_total"), grown("seconds_total")),
        store_hits=_share(hits, looked_for),
        epoch=last("epoch"),
        epoch_batches=last("epoch_batches"),
        epoch_length=last("epoch_length_batches"),
        failures=grown("failed_requests_total") or 0.0,
    )


def _fell(before: Values, after: Values) -> bool:
    return any(
        after.get(name, 0.0) < value
        for name, value in before.items()
        if name.partition(":")[0].endswith(("_total", "_sum", "_count"))
    )


def _share(part: Optional[float], whole: Optional[float], most: float = 1.0) -> Optional[float]:
    if part is None or not whole or whole < 0:
        return None
    return min(most, max(0.0, part / whole))
