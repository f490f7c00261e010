"""Teachers, dispatch and connections together: batches go in, finished batches come out in order.

What happens because time passes is done by one thread, the supervisor: it lets the ``exchange``
judge, reports to the log and to the registry, and ends everything in the end.

A pool knows no source and no epoch: ``open`` gives a :class:`Stream` of batches, ``open_requests``
a :class:`RequestStream`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
import uuid
from functools import partial
from typing import Any, Callable, Optional

from edl._threads import Loop
from edl.discovery import CLOSE_WITHIN
from edl.discovery.records import StudentRecord
from edl.distill.exchange import Exchange
from edl.distill.settings import PoolConfig
from edl.distill.stream import RequestStream, Stream
from edl.distill.teachers import Place
from edl.distill.timeline import Timeline

logger = logging.getLogger(__name__)

_RECORD_EVERY = 1.0
_REPORT_EVERY = 30.0


class Pool:
    """The teachers of one student, kept from one stream to the next, and what is at them.

    Everything runs in daemon threads that ``close`` ends.
    """

    def __init__(self, config: PoolConfig, timeline: Optional[Timeline] = None) -> None:
        self._config = config
        self.name = uuid.uuid4().hex  # by which the registry knows the student
        self._exchange = Exchange(config, self.name, timeline, self._unheard)
        # What is to be done by the supervisor. May be put to in finalizers.
        self._nudges: queue.SimpleQueue[Optional[Callable[[], None]]] = queue.SimpleQueue()
        self._place: Optional[Place] = None
        self._stopping = False
        self._resting = False
        self._pause = 0.0
        self._record_at, self._report_at = 0.0, time.monotonic() + _REPORT_EVERY
        self._supervisor = Loop("edl-supervise", self._supervise, pause=0.0, finish=self._end)

    def start(self) -> None:
        """Look for teachers and connect to them, in the background. Raises ConfigError or
        DiscoveryError if that cannot be begun.
        """
        record = StudentRecord(self._config.max_teachers, metrics=self._config.metrics)
        exchange = self._exchange
        self._place = self._config.teachers.join(
            self.name, record, exchange.found, exchange.assigned
        )
        self._supervisor.start()

    def _unheard(self) -> str:
        return "" if self._place is None else self._place.problem

    def call_soon(self, action: Callable[[], None]) -> None:
        """Let ``action`` be called soon, by the supervisor. For finalizers: takes no lock and waits
        for nothing.
        """
        self._nudges.put(action)

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
        self._open(partial(self._exchange.open, stream, model))
        return stream

    def open_requests(self) -> RequestStream:
        """A stream of requests, answered in any order; for a pool whose config says so."""
        stream = RequestStream(self._exchange, self.nudge)
        self._open(partial(self._exchange.open, stream, ""))
        return stream

    def _open(self, begin: Callable[[], StudentRecord]) -> None:
        record = begin()
        if self._place is not None:
            self._place.report(record)
        self.nudge()

    def unbind(self) -> None:
        """Let answers from now on be of another model, if nobody has the present one any more."""
        self._exchange.unbind()

    @property
    def model(self) -> str:
        """The fingerprint of the model in use; empty while that is not decided."""
        return self._exchange.model

    def stats(self) -> dict[str, Any]:
        """See DistillReader.stats, or TeacherPool.stats."""
        return self._exchange.stats()

    # --- the supervisor ---------------------------------------------------------------------

    def _supervise(self) -> None:
        """What happens because time passes: time-outs, hedges, suspended teachers, reports."""
        for action in self._sleep(self._pause):
            action()
        if self._stopping:
            self._supervisor.stop()
            return
        self._pause = self._exchange.tick(self._pause)
        now = time.monotonic()
        if self._resting != self._exchange.resting:
            self._resting = not self._resting
            self._record_at = now
        if now >= self._report_at:
            self._report_at = now + _REPORT_EVERY
            self._report()
        if now >= self._record_at and self._place is not None:
            self._record_at = now + _RECORD_EVERY
            self._place.report(self._exchange.record())

    def _sleep(self, seconds: float) -> list[Callable[[], None]]:
        """Sleep, or until a nudge; what is to be done."""
        nudges = []
        with contextlib.suppress(queue.Empty):
            nudges.append(self._nudges.get(timeout=seconds))
            while True:
                nudges.append(self._nudges.get_nowait())
        return [action for action in nudges if action is not None]

    def _report(self) -> None:
        """One line for the log."""
        stats = self.stats()
        if self._config.requests is not None:
            words = "%d requests answered, %d outstanding, %d teachers, %d resent, %d hedged"
            names = ("requests", "outstanding", "teachers", "resent", "hedged")
            counts = (stats[name] for name in names)
            logger.info(words, *(len(n) if isinstance(n, dict) else n for n in counts))
            return
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
