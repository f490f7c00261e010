"""Where the student is: the epoch, how much of it was delivered, and what the source says of that.

One object owns all of it. Its copies in a DataLoader's workers agree through a ``workers.Board``,
and so does the original, which else would know nothing of what its copies have read.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

from edl.distill.state import check_number
from edl.distill.workers import ALONE, SHARED, Agreement, Board, Group, IndexLists, worker_info
from edl.errors import ConfigError, ReaderError

_COMPLAIN_EVERY = 5.0


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
    """One reader's position. ``delivered``: items of the epoch that this process has handed out,
    those that were skipped included. ``trail``: where the source is.
    """

    def __init__(self, start: Start = Start()) -> None:
        self._board = Board()
        self._set(start)

    def _set(self, start: Start) -> None:
        self._start = start
        self._begun = False
        self.delivered = start.skip
        self.trail = Trail(start.mark)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy that is not made by forking: it has workers of its own, if any."""
        return {"start": Start(self.epoch) if self._board.read() else self._start}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["start"])  # type: ignore[misc]

    @property
    def epoch(self) -> int:
        """The number of the epoch that is being read, or will be read next."""
        agreement = None if worker_info() is not None else self._board.read()
        return self._start.epoch if agreement is None else agreement.epoch

    def load(self, start: Start) -> None:
        """Let the next iteration begin there."""
        self._set(start)
        with self._board.locked():
            self._board.write(None)

    # --- iterations of this process ---------------------------------------------------------

    def begin(self) -> Start:
        """An iteration begins: where it was said, or at the start of an epoch, which is the next
        one if an iteration was left before its end.
        """
        agreement = self._board.read()
        left_early = self._begun and self.delivered > 0
        if agreement is not None:
            self.load(Start(agreement.epoch + agreement.begun))
        elif self._begun:
            self._set(Start(self._start.epoch + left_early))
        self._begun = True
        return self._start

    def deliver(self) -> None:
        """One more item has reached the student."""
        self.delivered += 1
        self.trail.delivered()

    def finish(self) -> None:
        """The iteration has come to the end of its epoch."""
        self._set(Start(self._start.epoch + 1))

    # --- iterations of a DataLoader's workers -----------------------------------------------

    def begin_in(self, group: Group) -> Start:
        """A worker's iteration begins: where its fellows have begun it, or as ``begin`` says."""
        with self._board.locked():
            agreement = self._board.read()
            if agreement is None:
                left_early = self._begun and self.delivered > 0
                start = Start(self._start.epoch + 1) if left_early else self._start
                agreement = Agreement(start.epoch, start.skip)
            if agreement.group != group.key:
                left_early = agreement.begun
                agreement = Agreement(
                    agreement.epoch + left_early,
                    0 if left_early else agreement.skip,
                    begun=True,
                    group=group.key,
                    region=agreement.region,
                )
                self._board.write(agreement)
        if (agreement.epoch, agreement.skip) != (self._start.epoch, self._start.skip):
            self._start = Start(agreement.epoch, agreement.skip)
        return self._start

    def finish_in(self, group: Group) -> None:
        """A worker has come to the end of its part; the last one to do so ends the epoch."""
        with self._board.locked():
            agreement = self._board.read()
            if agreement is None or agreement.group != group.key:
                return
            agreement = replace(agreement, finished=agreement.finished + 1)
            if agreement.finished == group.workers:
                agreement = replace(agreement, epoch=agreement.epoch + 1, skip=0, begun=False)
            self._board.write(agreement)

    def publish(self, group: Group, lists: Optional[IndexLists], drawn: Any) -> None:
        """Tell the other workers the index lists of the epoch; None: they read nothing."""
        with self._board.locked():
            agreement = self._board.read()
            if agreement is None or agreement.group != group.key:
                return
            if lists is None:
                agreement = replace(agreement, order=ALONE)
            else:
                agreement = self._board.store(replace(agreement, drawn=drawn), lists)
            self._board.write(agreement)

    def published(self, group: Group, say: Callable[[float], None]) -> Optional[IndexLists]:
        """What another worker publishes. ``say`` is told every few seconds for how long that has
        been waited for. Raises ReaderError if the iteration ends without it.
        """
        started = time.monotonic()
        complain_at = started + _COMPLAIN_EVERY
        while True:
            agreement = self._board.read()
            if agreement is None or agreement.group != group.key or os.getppid() != group.parent:
                raise ReaderError("the DataLoader has ended this iteration")
            if agreement.order:
                return self._board.load(agreement) if agreement.order == SHARED else None
            now = time.monotonic()
            if now >= complain_at:
                complain_at = now + _COMPLAIN_EVERY
                say(now - started)
            time.sleep(0.005)

    # --- the state --------------------------------------------------------------------------

    def here(self) -> Start:
        """Where the student is, if this process is the one that knows. Raises ReaderError if it is
        not: a DataLoader's workers read ahead.
        """
        if worker_info() is None and self._board.read() is not None:
            raise ReaderError(
                "a DataLoader's workers read this reader, ahead of the student: say where the "
                "student is, with state_dict(epoch=..., delivered=...)"
            )
        return self._here()

    def _here(self) -> Start:
        return replace(self._start, skip=self.delivered, mark=self.trail.mark)

    def at(self, epoch: int, delivered: int) -> tuple[Start, Optional[IndexLists], Any]:
        """Where the student says it is, while workers read for it: ``delivered`` items into
        ``epoch``; with the index lists that the workers share, and what they were drawn from.
        Raises ConfigError if that is not possible.
        """
        check_number("epoch", epoch)
        check_number("delivered", delivered)
        agreement, here = self._board.read(), self._here()
        unread = agreement is None or not agreement.order  # no worker has come to an item yet
        if unread and (epoch, delivered) == (here.epoch, here.skip):
            return here, None, None
        if agreement is None:
            if (epoch, delivered) == (here.epoch + 1, 0):
                return Start(epoch), None, None
            raise ConfigError(
                "epoch and delivered are for a reader inside a DataLoader with workers; this one "
                f"knows where it is: {here.skip} batches into epoch {here.epoch}"
            )
        last = agreement.epoch if agreement.begun else agreement.epoch - 1
        if epoch != last and (epoch != last + 1 or delivered):
            raise ConfigError(
                f"the student cannot have taken {delivered} batches of epoch {epoch}: the workers "
                f"have begun epoch {last} last"
            )
        if not delivered or agreement.order != SHARED:
            return Start(epoch, delivered), None, None
        return Start(epoch, delivered), self._board.load(agreement), agreement.drawn
