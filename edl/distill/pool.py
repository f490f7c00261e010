"""Teachers, dispatch and connections together: batches go in, finished batches come out in order.

What happens because time passes is done by one thread, the supervisor: it lets the ``exchange``
judge, reports to the log and to the registry, and ends everything in the end.

A pool knows no source and no epoch: ``open`` gives a :class:`Stream` of batches.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
import uuid
from typing import Any, Callable, Optional

from edl._threads import Loop
from edl.discovery import CLOSE_WITHIN
from edl.discovery.records import StudentRecord
from edl.distill.exchange import Exchange
from edl.distill.settings import PoolConfig
from edl.distill.stream import Stream
from edl.distill.teachers import Place
from edl.distill.trace import Trace

logger = logging.getLogger(__name__)

_RECORD_EVERY = 1.0
_REPORT_EVERY = 30.0


class Pool:
    """The teachers of one reader, kept from one stream to the next, and what is at them.

    Everything runs in daemon threads that ``close`` ends.
    """

    def __init__(self, config: PoolConfig, trace: Optional[Trace] = None) -> None:
        self._config = config
        self._name = uuid.uuid4().hex
        self._exchange = Exchange(config, self._name, trace, self._unheard)
        self._nudges: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be put to in finalizers
        self._place: Optional[Place] = None
        self._abandoned: Optional[Callable[[], None]] = None
        self._stopping = False
        self._pause = 0.0
        self._record_at, self._report_at = 0.0, time.monotonic() + _REPORT_EVERY
        self._supervisor = Loop("edl-supervise", self._supervise, pause=0.0, finish=self._end)

    def start(self) -> None:
        """Look for teachers and connect to them, in the background. Raises ConfigError or
        DiscoveryError if that cannot be begun.
        """
        record = StudentRecord(self._config.max_teachers)
        exchange = self._exchange
        self._place = self._config.teachers.join(
            self._name, record, exchange.found, exchange.assigned
        )
        self._supervisor.start()

    def _unheard(self) -> str:
        return "" if self._place is None else self._place.problem

    def abandon(self, close: Callable[[], None]) -> None:
        """Let ``close`` be called soon. For finalizers: takes no lock and waits for nothing."""
        self._abandoned = close
        self.nudge()

    def nudge(self) -> None:
        """Let the supervisor look now. Takes no lock."""
        self._nudges.put(None)

    def stop(self) -> None:
        """Begin to end every thread and connection. Takes no lock and waits for nothing."""
        self._stopping = True
        self.nudge()

    def close(self, timeout: float = CLOSE_WITHIN) -> None:
        """End every thread and connection. Returns after ``timeout`` seconds at most: what takes
        longer, such as leaving a registry that does not answer, goes on by itself. Safe to call
        twice, from any thread, and in the midst of anything (a destructor may).
        """
        self.stop()
        if self._supervisor.join(timeout):
            self._end()  # which it has done, unless it was never started

    def _end(self) -> None:
        if self._exchange.close() and self._place is not None:
            self._place.close()

    def open(self, model: str = "") -> Stream:
        """A new stream of batches; the one before is left. ``model``: the fingerprint of the only
        model that may label them.
        """
        stream = Stream(self._exchange, self.nudge)
        record = self._exchange.open(stream, model)
        if self._place is not None:
            self._place.report(record)
        self.nudge()
        return stream

    @property
    def model(self) -> str:
        """The fingerprint of the model in use; empty while that is not decided."""
        return self._exchange.model

    def stats(self) -> dict[str, Any]:
        """See DistillReader.stats."""
        return self._exchange.stats()

    # --- the supervisor ---------------------------------------------------------------------

    def _supervise(self) -> None:
        """What happens because time passes: time-outs, hedges, suspended teachers, reports."""
        self._sleep(self._pause)
        if self._abandoned is not None:
            self._abandoned()
        if self._stopping:
            self._supervisor.stop()
            return
        self._pause = self._exchange.tick(self._pause)
        now = time.monotonic()
        if now >= self._report_at:
            self._report_at = now + _REPORT_EVERY
            self._report()
        if now >= self._record_at and self._place is not None:
            self._record_at = now + _RECORD_EVERY
            self._place.report(self._exchange.record())

    def _sleep(self, seconds: float) -> None:
        """Sleep, or until a nudge."""
        with contextlib.suppress(queue.Empty):
            self._nudges.get(timeout=seconds)

    def _report(self) -> None:
        """One line for the log."""
        stats = self.stats()
        rate = sum(teacher["rows_per_second"] for teacher in stats["teachers"].values())
        logger.info(
            "%d batches read, %d ready (%s), %d teachers at %.0f rows/s, latency %.0f ms "
            "(p99 %.0f), %d resent, %d hedged, student waited %.1f s",
            stats["batches"],
            stats["buffer"]["batches"],
            stats["buffer"]["level"],
            len(stats["teachers"]),
            rate,
            stats["latency"]["median"] * 1000,
            stats["latency"]["p99"] * 1000,
            stats["resent"],
            stats["hedged"],
            stats["student_waited"],
        )
