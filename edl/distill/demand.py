"""How much a student asks of its teachers: the paper's thresholds, with hysteresis.

Source: EDL-Dist (arXiv 2207.06667, section 3): a student whose volume of finished batches is under
the lower threshold asks for more teachers, one over the upper threshold releases some. Here the
demand is a rate, so that it means the same whatever teachers there are: unlimited while the volume
is low, and what the student was seen to consume (and some more) once it has been high for a while.
Rows are tokens here where teachers say that rows are sequences. No clock: the caller passes the
time in.
"""

from __future__ import annotations

from typing import Optional

_FIRST_PATIENCE, _MOST_PATIENCE = 5.0, 320.0
_HEADROOM = 1.2
_REGRET = 60.0


class Demand:
    """Call ``update`` about once a second. ``want``: rows per second, None for any number.

    A release that is followed by low volume within a minute was a mistake: the next one takes twice
    as long to come, so that nothing oscillates.
    """

    def __init__(self) -> None:
        self.want: Optional[float] = None
        self.rows_per_second = 0.0
        self._patience = _FIRST_PATIENCE
        self._high_since: Optional[float] = None
        self._rows_then = 0
        self._released_at: Optional[float] = None
        self._last: Optional[tuple[float, int]] = None

    def update(self, now: float, rows: int, *, low: bool, high: bool) -> None:
        """``rows``: delivered to the student so far."""
        if self._last is not None and now > self._last[0]:
            recent = (rows - self._last[1]) / (now - self._last[0])
            self.rows_per_second += (recent - self.rows_per_second) / 4
        self._last = now, rows
        if not high:
            self._high_since = None
            if low:
                self._ask_for_more(now)
        elif self._high_since is None:
            self._high_since, self._rows_then = now, rows
        elif now - self._high_since >= self._patience:
            self._release(now, rows)

    def _ask_for_more(self, now: float) -> None:
        if self._released_at is not None and now - self._released_at < _REGRET:
            self._patience = min(_MOST_PATIENCE, 2 * self._patience)
        self._released_at = None
        self.want = None

    def _release(self, now: float, rows: int) -> None:
        assert self._high_since is not None
        consumed = (rows - self._rows_then) / (now - self._high_since)
        if consumed > 0 and (self.want is None or consumed * _HEADROOM < 0.9 * self.want):
            self.want = round(consumed * _HEADROOM, 1)
            self._released_at = now
        self._high_since, self._rows_then = now, rows
