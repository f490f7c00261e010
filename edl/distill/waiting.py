"""How long a student waits, why, and when that is hopeless: in words, for the log and errors."""

from __future__ import annotations

import logging
from functools import partial
from itertools import islice
from typing import Any, Callable

from edl.distill.dispatch import Dispatch
from edl.distill.roster import Roster
from edl.errors import NoTeacherError, ReaderError

logger = logging.getLogger(__name__)

#: Seconds.
COMPLAIN_EVERY = 5.0
_MOST_LISTED = 10


class Wait:
    """Waiting for a batch, since ``since``, which may be moved on to the next one's. ``where``: its
    teachers are looked for there. ``unheard``: says why nothing is heard from there. ``limit``:
    seconds that it may last without a teacher to work.
    """

    def __init__(
        self, where: Any, unheard: Callable[[], str], limit: float, since: float = 0.0
    ) -> None:
        self.since = since
        self._where = where
        self._unheard = unheard
        self._limit = limit
        self._usable_at = since
        self._complained_at = since

    def complaint(
        self, dispatch: Dispatch[Any], roster: Roster, now: float, teachers_needed: bool = True
    ) -> str:
        """What is to be said of it now, which is something every few seconds. Raises NoTeacherError
        or ReaderError if waiting longer is pointless, and ``teachers_needed`` for what is waited
        for.
        """
        if teachers_needed and roster.hopeless():
            reasons = listed(roster.problems())
            raise ReaderError(f"no teacher of {self._where} fits this reader: {reasons}")
        if dispatch.usable or not teachers_needed:
            self._usable_at = now
        alone = now - max(self.since, self._usable_at)
        if alone > self._limit:
            why = self._why(dispatch, roster, now)
            raise NoTeacherError(f"no teacher for {alone:.0f} s: {why}")
        if now < max(self.since, self._complained_at) + COMPLAIN_EVERY:
            return ""
        self._complained_at = now
        return self._why(dispatch, roster, now)

    def _why(self, dispatch: Dispatch[Any], roster: Roster, now: float) -> str:
        if dispatch.teachers:
            left_out = listed(roster.left_out())
            waits = dispatch.waits_for(now)
            return f"{waits}; not asked: {left_out}" if left_out else waits
        if not roster.heard:
            why = self._unheard()
            return f"no answer yet about {self._where}" + (f": {why}" if why else "")
        if not roster.registered:
            return f"no teacher is registered for {self._where}"
        return f"no teacher of {self._where} can be used ({listed(roster.problems())})"


class News:
    """What is to be logged about models: each thing once, until it is another."""

    def __init__(self) -> None:
        self._model = ""
        self._left_out: dict[str, str] = {}

    def of(self, roster: Roster) -> list[Callable[[], None]]:
        """What has not been said before; each item writes a line."""
        news: list[Callable[[], None]] = []
        left_out = roster.left_out()
        if self._model and self._model != roster.model:
            words = "the model is %s from now on, all teachers have it; it was %s"
            news.append(partial(logger.warning, words, roster.model, self._model))
        new = {name: why for name, why in left_out.items() if self._left_out.get(name) != why}
        for name in islice(new, _MOST_LISTED):
            news.append(partial(logger.warning, "teacher %s is left out: %s", name, new[name]))
        if len(new) > _MOST_LISTED:
            words = "%d more teachers are left out"
            news.append(partial(logger.warning, words, len(new) - _MOST_LISTED))
        self._model, self._left_out = roster.model, left_out
        return news


def listed(reasons: dict[str, str]) -> str:
    """Teachers and what is said of each; of many, the first."""
    said = [f"{name}: {reason}" for name, reason in islice(reasons.items(), _MOST_LISTED)]
    more = len(reasons) - len(said)
    return "; ".join([*said, *([f"and {more} more"] if more else [])])
