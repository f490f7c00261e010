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
    ``rows_per_second``: what the student consumes. ``waits``: the share of its time that it waits
    for teachers, None if that is not measured; of the same seconds, with the same weights.

    A release that is followed by low volume within a minute was a mistake: the next one takes twice
    as long to come, so that nothing oscillates.
    """

    def __init__(self) -> None:
        self.want: Optional[float] = None
        self.rows_per_second = 0.0
        self.waits: Optional[float] = None
        self._patience = _FIRST_PATIENCE
        self._high_since: Optional[float] = None
        self._rows_then = 0
        self._released_at: Optional[float] = None
        self._last: Optional[tuple[float, int, Optional[float]]] = None

    def update(
        self, now: float, rows: int, *, low: bool, high: bool, waited: Optional[float] = None
    ) -> None:
        """``rows``: delivered to the student so far. ``waited``: seconds that it has waited for
        teachers so far, None if it does not wait.
        """
        if self._last is not None and now > self._last[0]:
            self._measure(rows, waited, now - self._last[0], *self._last[1:])
        self._last = now, rows, waited
        if not high:
            self._high_since = None
            if low:
                self._ask_for_more(now)
        elif self._high_since is None:
            self._high_since, self._rows_then = now, rows
        elif now - self._high_since >= self._patience:
            self._release(now, rows)

    def _measure(
        self,
        rows: int,
        waited: Optional[float],
        seconds: float,
        rows_before: int,
        waited_before: Optional[float],
    ) -> None:
        self.rows_per_second += ((rows - rows_before) / seconds - self.rows_per_second) / 4
        if waited is not None and waited_before is not None:
            share = min(1.0, max(0.0, (waited - waited_before) / seconds))
            self.waits = (self.waits or 0.0) + (share - (self.waits or 0.0)) / 4

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
