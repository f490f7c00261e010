"""How fast a teacher is, from what its batches took. Pure."""

from __future__ import annotations

from typing import Optional

_WEIGHT = 0.2
_USUAL_WEIGHT = 1 / 16


class Rate:
    """A moving average of the seconds that one row takes.

    The average is corrected for its beginning (as Adam's moments are, Kingma and Ba,
    arXiv 1412.6980): it is divided by the weight of what it has seen, so the first batch counts
    whole and nothing starts from zero. Small batches say little and count less.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._seen = 0.0
        self._usual_rows: Optional[float] = None

    @property
    def row_seconds(self) -> float:
        """Seconds per row; 0 until a batch has been observed."""
        return self._seconds / self._seen if self._seen else 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of ``rows`` rows took so long."""
        usual = rows if self._usual_rows is None else self._usual_rows
        weight = _WEIGHT * min(1.0, rows / usual)
        self._usual_rows = usual + (rows - usual) * _USUAL_WEIGHT
        self._seconds += weight * (seconds / rows - self._seconds)
        self._seen += weight * (1.0 - self._seen)
