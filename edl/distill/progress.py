"""Where the student is: the epoch, how much of it was delivered, and what the source says of that.

One object owns all of it. An iteration begins in the student's process, also where a DataLoader's
workers read: they are forked after that, and inherit where to begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

from edl.distill.workers import Handout


@dataclass(frozen=True)
class Start:
    """Where an iteration begins: ``skip`` items of ``epoch`` were delivered before. ``mark``: what
    the source said of its position there. ``models``: the fingerprints of those that have labelled
    the epoch so far.
    """

    epoch: int = 0
    skip: int = 0
    mark: Any = None
    models: Sequence[str] = ()


class Trail:
    """What a source says of its position behind each item, although it is read ahead: ``mark`` is
    that of the last item that was delivered.
    """

    def __init__(self, mark: Any = None) -> None:
        self.mark = mark
        self._ahead: deque[Any] = deque()

    def read(self, mark: Any) -> None:
        """One more item has been read."""
        self._ahead.append(mark)

    def delivered(self) -> None:
        """The oldest of them has reached the student."""
        if self._ahead:
            self.mark = self._ahead.popleft()


class Progress:
    """One reader's position. ``start``: where its iteration has begun, or will begin.
    ``delivered``: items of the epoch that the student has, those that were skipped included.
    ``trail``: where the source is. ``models``: fingerprints of those that have labelled the epoch
    so far. ``handout``: what a DataLoader's workers tell, if they read. ``length``: items of an
    epoch, if that is known, for people.
    """

    length: Optional[int] = None

    def __init__(self, start: Start = Start()) -> None:
        self.load(start)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy that is not made by forking."""
        return {"start": self.start}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.load(state["start"])

    @property
    def epoch(self) -> int:
        """The number of the epoch that is being read, or will be read next."""
        return self.start.epoch

    def load(self, start: Start) -> None:
        """Let the next iteration begin there."""
        self.start = start
        self.delivered = start.skip
        self.trail = Trail(start.mark)
        self.handout: Optional[Handout] = None
        self.models = list(start.models)

    def begin(self) -> Start:
        """An iteration begins: where it was said, or at the start of the next epoch if items were
        delivered since. The start is an object of its own each time.
        """
        taken = self.delivered > self.start.skip
        self.load(Start(self.epoch + 1) if taken else replace(self.start))
        return self.start

    def begin_with_workers(self) -> Start:
        """The same, for workers that are forked next."""
        start = self.begin()
        self.handout = Handout()
        return start

    def deliver(self) -> None:
        """One more item has reached the student."""
        self.delivered += 1
        self.trail.delivered()

    def finish(self) -> None:
        """The iteration has come to the end of its epoch."""
        self.load(Start(self.start.epoch + 1))

    def position(self) -> dict[str, Any]:
        """Where the student is, for people, from any thread. What it has of the epoch is not known
        to a DataLoader's worker, which only knows its part.
        """
        delivered = self.delivered if self.handout is None else None
        return {"epoch": self.start.epoch, "delivered": delivered, "length": self.length}

    def here(self) -> Start:
        """Where the student is."""
        return replace(
            self.start, skip=self.delivered, mark=self.trail.mark, models=tuple(self.models)
        )
