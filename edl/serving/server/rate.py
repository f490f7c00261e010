"""How fast a teacher is, from what its batches took. Pure."""

from __future__ import annotations

from typing import Optional

_WEIGHT = 0.2
_USUAL_WEIGHT = 1 / 16


class Rate:
    """A moving average of the seconds that one row takes, or one token, whichever is counted.

    The average is corrected for its beginning (as Adam's moments are, Kingma and Ba,
    arXiv 1412.6980): it is divided by the weight of what it has seen, so the first batch counts
    whole and nothing starts from zero. Small batches say little and count less.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._seen = 0.0
        self._usual_work: Optional[float] = None

    @property
    def seconds_each(self) -> float:
        """Seconds per row, or token; 0 until a batch has been observed."""
        return self._seconds / self._seen if self._seen else 0.0

    def observe(self, work: int, seconds: float) -> None:
        """A batch of so many rows, or tokens, took so long."""
        usual = work if self._usual_work is None else self._usual_work
        weight = _WEIGHT * min(1.0, work / usual)
        self._usual_work = usual + (work - usual) * _USUAL_WEIGHT
        self._seconds += weight * (seconds / work - self._seconds)
        self._seen += weight * (1.0 - self._seen)
