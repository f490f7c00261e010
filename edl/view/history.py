"""The last hour of each service as curves, in memory that does not grow. No clock."""

from __future__ import annotations

from collections import deque
from typing import Optional

from edl.view.snapshot import MOST_SERVICES, Service, Snapshot

#: Seconds from one point of a curve to the next, and points.
STEP, POINTS = 10, 360

#: What there is a curve of.
CURVES = ("rows", "waits", "busy", "errors", "teachers", "students")

#: Number of the step, and a value for each of CURVES; None for what was not known.
Point = tuple[int, tuple[Optional[float], ...]]


class History:
    """Of each service and step, the average of what was seen."""

    def __init__(self) -> None:
        self._curves: dict[str, deque[Point]] = {}
        self._step = -1
        self._seen: dict[str, list[tuple[Optional[float], ...]]] = {}

    def add(self, seen: Snapshot) -> dict[str, Point]:
        """One more snapshot; the points that it completes, by service."""
        step = int(seen.time // STEP)
        finished: dict[str, Point] = {}
        if step != self._step:
            finished = {name: (self._step, _mean(rows)) for name, rows in self._seen.items()}
            for name, point in finished.items():
                self._curves.setdefault(name, deque(maxlen=POINTS)).append(point)
            self._forget(step)
            self._step, self._seen = step, {}
        for service in seen.services:
            self._seen.setdefault(service.name, []).append(_values(service))
        return finished

    def curves(self) -> dict[str, list[Point]]:
        """All points, by service, the oldest first."""
        return {name: list(points) for name, points in self._curves.items()}

    def _forget(self, step: int) -> None:
        """Services that have not been seen for an hour, and what is beyond the limit."""
        for name, points in list(self._curves.items()):
            while points and points[0][0] < step - POINTS:
                points.popleft()
            if not points:
                del self._curves[name]
        by_age = sorted(self._curves, key=lambda name: self._curves[name][-1][0])
        for name in by_age[: max(0, len(by_age) - 2 * MOST_SERVICES)]:
            del self._curves[name]


def _values(service: Service) -> tuple[Optional[float], ...]:
    return (
        service.rows,
        service.waits,
        service.busy,
        service.errors,
        float(len(service.teachers) + service.more_teachers),
        float(len(service.students) + service.more_students),
    )


def _mean(rows: list[tuple[Optional[float], ...]]) -> tuple[Optional[float], ...]:
    means: list[Optional[float]] = []
    for column in zip(*rows):
        known = [value for value in column if value is not None]
        means.append(float(f"{sum(known) / len(known):.4g}") if known else None)
    return tuple(means)
