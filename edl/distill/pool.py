"""Teachers, dispatch and connections together: batches go in, finished batches come out in order.

One lock guards the state, which is two pure machines: ``dispatch`` (which task goes where) and
``roster`` (which teachers are held). Threads report what happened under the lock, and do what
follows from it (connections to open and to end, lines for the log and the trace) after they have
left it. Who may have something to do next is woken in one place, ``_wake``.

A pool knows no source and no epoch: ``open`` gives a :class:`Stream` of batches.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Callable, Optional, Union

from edl._threads import Loop
from edl.discovery.records import StudentRecord
from edl.distill.batches import ArrayBatch, SampleBatch
from edl.distill.demand import Demand
from edl.distill.dispatch import Dispatch
from edl.distill.link import Answer, Instead, TeacherLink, Wants, Work
from edl.distill.plan import Plan
from edl.distill.roster import Roster
from edl.distill.state import Finished, Limits, Task
from edl.distill.teachers import Found, Place, Teachers, declared_model
from edl.distill.trace import Trace
from edl.errors import (
    AccessDenied,
    NoTeacherError,
    ReaderError,
    RequestRefused,
    TeacherConnectionLost,
    TeacherFailed,
    TeacherProtocolError,
    TeacherTimeout,
    TeacherUnavailable,
)
from edl.serving.client.entry import Client

logger = logging.getLogger(__name__)

Batch = Union[SampleBatch, ArrayBatch]

#: Answers that say that the connection is of no more use.
_LOST = (TeacherConnectionLost, TeacherTimeout, TeacherProtocolError, AccessDenied)

#: Seconds without a stream after which a shared service's teachers are left to others.
_REST_AFTER = 10.0

#: Seconds that closing may take.
CLOSE_WITHIN = 1.0

_ASK_EVERY, _ASK_AGAIN_EVERY = 1.0, 1.0
_TICK, _IDLE_TICK = 0.05, 0.5
_OVERSLEPT = 0.25
_COMPLAIN_EVERY = 5.0
_REPORT_EVERY = 30.0
_MOST_LISTED = 10


@dataclass(frozen=True)
class PoolConfig:
    """Everything a pool needs to know; see DistillReader for the meaning of each."""

    teachers: Teachers
    wants: Wants
    task_rows: int
    max_teachers: Optional[int] = None
    limits: Limits = field(default_factory=Limits)
    no_teacher_timeout: float = 600.0


@dataclass(eq=False)
class _Seat:
    """What the pool knows of one link: its connection and plan, while there is one."""

    link: TeacherLink
    turn: threading.Condition
    client: Optional[Client] = None
    plan: Optional[Plan] = None


class Stream:
    """Batches on their way through a pool, from ``Pool.open`` to ``leave``: one thread puts them
    in, another one takes them out in the same order.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.left = False
        self.ended = False

    def put(self, batch: Batch) -> bool:
        """Add a batch; whether it was wanted."""
        return self._pool.put(self, batch)

    def end(self, error: Optional[BaseException] = None) -> None:
        """There is no more; ``error`` takes the place behind the last batch."""
        self._pool.end(self, error)

    def wait_until_wanted(self) -> bool:
        """Block until there is room for another batch; false when the stream was left."""
        return self._pool.wait_until_wanted(self)

    def take(self) -> Optional[Finished[Batch]]:
        """The next batch in order; None when all have been taken. See Pool.take."""
        return self._pool.take(self)

    def leave(self) -> None:
        """Nothing more is taken. Takes no lock and waits for nothing, so that a finalizer may call
        it in whatever thread, at whatever moment; the pool forgets the batches soon after.
        """
        self.left = True
        self._pool.nudge()


class Pool:
    """The teachers of one reader, kept from one stream to the next, and what is at them.

    Everything runs in daemon threads that ``close`` ends.
    """

    def __init__(self, config: PoolConfig, trace: Optional[Trace] = None) -> None:
        self._config = config
        self._trace = trace
        self._name = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._student = threading.Condition(self._lock)
        self._source = threading.Condition(self._lock)
        self._nudges: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be put to in finalizers
        self._dispatch: Dispatch[Batch] = Dispatch(config.limits)
        self._roster = Roster(self._name, config.max_teachers, config.teachers.balanced)
        self._seats: dict[str, _Seat] = {}
        self._idle: dict[str, _Seat] = {}
        self._entries: Found = {}
        self._declared: dict[str, str] = {}  # the models that the entries declare
        self._told_model = ""
        self._told_left_out: dict[str, str] = {}
        self._stream: Optional[Stream] = None
        self._rest_at = time.monotonic() + _REST_AFTER
        self._student_waited = 0.0
        self._demand = Demand()
        self._place: Optional[Place] = None
        self._abandoned: Optional[Callable[[], None]] = None
        self._stopping = self._closed = False
        self._pause = _TICK
        self._ask_at, self._report_at = 0.0, time.monotonic() + _REPORT_EVERY
        self._judged_at = time.monotonic()
        self._supervisor = Loop("edl-supervise", self._supervise, pause=0.0, finish=self._end)

    def start(self) -> None:
        """Look for teachers and connect to them, in the background. Raises ConfigError or
        DiscoveryError if that cannot be begun.
        """
        place = self._config.teachers.join(
            self._name, StudentRecord(self._config.max_teachers), self._on_found, self._on_assigned
        )
        with self._lock:
            self._place = place
        self._supervisor.start()

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
        if self._supervisor.join(timeout) and not self._closed:  # it was never started
            self._end()

    def _end(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            seats, self._seats = list(self._seats.values()), {}
            self._leave_stream()
            self._source.notify_all()
            for seat in seats:
                seat.turn.notify_all()
        for seat in seats:
            seat.link.stop()
        if self._place is not None:
            self._place.close()

    # --- batches ----------------------------------------------------------------------------

    def open(self, model: str = "") -> Stream:
        """A new stream of batches; the one before is left. ``model``: the fingerprint of the only
        model that may label them.
        """
        stream = Stream(self)
        with self._lock:
            self._leave_stream()
            self._stream = stream
            self._roster.resting = False
            if model:
                self._roster.keep_to(model)
            place, record = self._place, self._student_record(time.monotonic())
            io = self._follow()
        _do(io)
        if place is not None:
            place.report(record)
        self.nudge()
        return stream

    def wait_until_wanted(self, stream: Stream) -> bool:
        """See Stream."""
        with self._lock:
            while self._is_current(stream) and not self._dispatch.wants_input():
                self._source.wait(1.0)
            return self._is_current(stream)

    def put(self, stream: Stream, batch: Batch) -> bool:
        """See Stream."""
        with self._lock:
            if not self._is_current(stream):
                return False
            self._dispatch.add(batch, batch.rows, batch.nbytes, self._config.task_rows)
            self._wake()
            return True

    def end(self, stream: Stream, error: Optional[BaseException]) -> None:
        """See Stream."""
        with self._lock:
            if not self._is_current(stream):
                return
            if error is not None:
                self._dispatch.add_error(error)
            stream.ended = True
            self._wake()
            self._student.notify_all()

    def take(self, stream: Stream) -> Optional[Finished[Batch]]:
        """The next batch in order; None when the stream is over. Blocks.

        Every few seconds of waiting are logged with their reason. Raises NoTeacherError when there
        has been no teacher to work for longer than the limit while this waited, ReaderError if no
        teacher there is fits.
        """
        waiting_since = usable_at = time.monotonic()
        complain_at = waiting_since + _COMPLAIN_EVERY
        while True:
            complaint = ""
            with self._lock:
                if self._dispatch.ready and self._is_current(stream):
                    finished = self._dispatch.take()
                    self._wake()
                    ready = self._dispatch.ready_batches
                    break
                if not self._is_current(stream):
                    raise ReaderError("the reader was closed, or left, while it was being iterated")
                if stream.ended and not self._dispatch.pending:
                    return None
                now = time.monotonic()
                if self._dispatch.usable:
                    usable_at = now
                self._check_for_hope(now, usable_at)
                if now >= complain_at:
                    complain_at = now + _COMPLAIN_EVERY
                    complaint = self._explain(now)
                else:
                    self._student.wait(0.5)
            if complaint:
                logger.warning(
                    "the student has waited %.0f s for its next batch: %s",
                    time.monotonic() - waiting_since,
                    complaint,
                )
        self._note_wait(waiting_since, ready)
        return finished

    def _note_wait(self, since: float, ready: int) -> None:
        now = time.monotonic()
        self._student_waited += now - since
        if self._trace is not None:
            self._trace.span("student", "wait", since, now)
            self._trace.counter("batches ready", now, batches=ready)

    def _is_current(self, stream: Stream) -> bool:
        return stream is self._stream and not stream.left and not self._closed

    def _leave_stream(self) -> None:
        """Forget the batches of the stream, if there is one. With the lock."""
        if self._stream is None:
            return
        self._stream.left = True
        self._stream = None
        self._rest_at = time.monotonic() + _REST_AFTER
        self._roster.bound = False
        self._dispatch.clear()
        self._source.notify_all()
        self._student.notify_all()

    def _check_for_hope(self, now: float, usable_at: float) -> None:
        """Raise if waiting longer is pointless."""
        where = self._config.teachers
        if self._roster.hopeless():
            reasons = _listed(self._roster.problems())
            raise ReaderError(f"no teacher of {where} fits this reader: {reasons}")
        alone = now - usable_at
        if alone > self._config.no_teacher_timeout:
            raise NoTeacherError(f"no teacher for {alone:.0f} s: {self._explain(now)}")

    def _explain(self, now: float) -> str:
        where, roster = self._config.teachers, self._roster
        if self._dispatch.teachers:
            left_out = _listed(roster.left_out())
            waits = self._dispatch.waits_for(now)
            return f"{waits}; not asked: {left_out}" if left_out else waits
        if not roster.heard:
            return f"no answer yet about {where}"
        if not roster.registered:
            return f"no teacher is registered for {where}"
        return f"no teacher of {where} can be used ({_listed(roster.problems())})"

    # --- sight ------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The fingerprint of the model in use; empty while that is not decided."""
        with self._lock:
            return self._roster.model

    def stats(self) -> dict[str, Any]:
        """See DistillReader.stats."""
        with self._lock:
            return {
                **self._dispatch.stats(time.monotonic()),
                "want": self._demand.want,
                "student_waited": self._student_waited,
                "models": list(self._roster.models),
                "unusable": self._roster.problems(),
            }

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

    # --- teachers found and lost ------------------------------------------------------------

    def _on_found(self, found: Found) -> None:
        before = self._entries
        models = {
            endpoint: self._declared[endpoint]
            if before.get(endpoint) == text and endpoint in self._declared
            else declared_model(text)
            for endpoint, text in found.items()
        }
        with self._lock:
            self._entries, self._declared = found, models
            self._roster.found(models)
            io = self._follow()
        _do(io)

    def _on_assigned(self, teachers: frozenset[str]) -> None:
        with self._lock:
            self._roster.assigned(teachers)
            io = self._follow()
        _do(io)

    def _follow(self) -> list[Callable[[], None]]:
        """Bring seats and dispatch in line with the roster, with the lock. Returns what is to be
        done without it.
        """
        if self._closed:
            return []
        now, roster, dispatch = time.monotonic(), self._roster, self._dispatch
        changes = roster.step(now)
        io: list[Callable[[], None]] = [self._seats.pop(name).link.stop for name in changes.end]
        for name in changes.open:
            link = TeacherLink(self, name, self._config.wants)
            self._seats[name] = _Seat(link, threading.Condition(self._lock))
            io.append(link.start)
        admitted = roster.admitted
        for name in dispatch.teachers.keys() - admitted:
            dispatch.leave(name, "it serves another model", blame=False)
        for name in admitted - dispatch.teachers.keys():
            dispatch.join(name, now)
        for name in admitted:
            dispatch.retire(name, roster.held[name].retiring)
            if roster.held[name].retiring:
                self._seats[name].turn.notify()
        dispatch.known = roster.known
        self._wake()
        return io + self._news()

    def _news(self) -> list[Callable[[], None]]:
        """Lines for the log about models, those that were not said before."""
        news: list[Callable[[], None]] = []
        left_out = self._roster.left_out()
        if self._told_model and self._told_model != self._roster.model:
            words = "the model is %s from now on, all teachers have it; it was %s"
            news.append(partial(logger.warning, words, self._roster.model, self._told_model))
        new = {name: why for name, why in left_out.items() if self._told_left_out.get(name) != why}
        for name in islice(new, _MOST_LISTED):
            news.append(partial(logger.warning, "teacher %s is left out: %s", name, new[name]))
        if len(new) > _MOST_LISTED:
            words = "%d more teachers are left out"
            news.append(partial(logger.warning, words, len(new) - _MOST_LISTED))
        self._told_model, self._told_left_out = self._roster.model, left_out
        return news

    # --- what links report (see link.Desk) --------------------------------------------------

    def entry(self, link: TeacherLink) -> str:
        """See Desk."""
        with self._lock:
            return self._entries.get(link.endpoint, "")

    def link_up(self, link: TeacherLink, client: Client, plan: Plan, model: str) -> None:
        """See Desk."""
        with self._lock:
            seat = self._seats.get(link.endpoint)
            if seat is None or seat.link is not link:
                return
            seat.client, seat.plan = client, plan
            self._roster.connected(link.endpoint, model, time.monotonic())
            io = self._follow()
        _do(io)
        logger.info("teacher %s is connected", link.endpoint)

    def link_down(
        self, link: TeacherLink, client: Optional[Client], reason: str, unfit: bool = False
    ) -> None:
        """See Desk."""
        name = link.endpoint
        with self._lock:
            seat = self._seats.get(name)
            if seat is None or seat.link is not link or seat.client is not client:
                return  # known already
            io = self._lose(seat, reason, unfit)
        _do(io)

    def _lose(self, seat: _Seat, reason: str, unfit: bool = False) -> list[Callable[[], None]]:
        """A connection has ended: its tasks go elsewhere. With the lock; returns what is to be done
        without it.
        """
        name, client = seat.link.endpoint, seat.client
        seat.client = seat.plan = None
        blame = client is not None and not self._roster.held[name].retiring
        self._dispatch.leave(name, f"{name}: {reason}", blame)
        self._roster.lost(name, reason, time.monotonic(), unfit=unfit)
        seat.turn.notify()
        io: list[Callable[[], None]] = [] if client is None else [client.close]
        if name not in self._roster.held:
            del self._seats[name]
            io.append(seat.link.stop)
        io += self._follow()
        if blame:
            io.append(lambda: logger.warning("teacher %s is gone: %s", name, reason))
        return io

    def wait_for_task(self, link: TeacherLink, client: Client) -> Union[Work, Instead]:
        """See Desk."""
        name, ask_at = link.endpoint, time.monotonic() + _ASK_AGAIN_EVERY
        with self._lock:
            seat = self._seats.get(name)
            while seat is not None and seat.client is client:
                task = self._dispatch.next_task(name, time.monotonic())
                if task is not None:
                    batch = self._dispatch.payload(task)
                    assert batch is not None
                    return task, batch
                teacher = self._dispatch.teachers.get(name)
                if self._roster.held[name].retiring and not (teacher and teacher.in_flight):
                    return Instead.LEAVE
                if teacher is None and time.monotonic() >= ask_at:
                    return Instead.ASK_AGAIN
                self._idle[name] = seat
                try:
                    seat.turn.wait(1.0)
                finally:
                    self._idle.pop(name, None)
                seat = self._seats.get(name)
            return Instead.LEAVE

    def answered(self, client: Client, task: Task, answer: Answer) -> None:
        """See Desk."""
        name, now = client.endpoint, time.monotonic()
        seat = self._seats.get(name)
        plan = seat.plan if seat is not None else None
        problem = ""
        if isinstance(answer, _LOST):
            problem = answer.message
        elif isinstance(answer, dict) and plan is not None:
            problem = plan.check(answer, task.stop - task.start)
        elif isinstance(answer, TeacherFailed):
            logger.warning("%s", answer)
        if problem:
            if seat is not None:
                self.link_down(seat.link, client, problem)
            return
        with self._lock:
            if seat is None or seat.client is not client or seat.plan is not plan:
                return
            sent = task.sent_to.get(name, now)
            if isinstance(answer, dict):
                nbytes = sum(array.nbytes for array in answer.values())
                kept = self._dispatch.answered(name, task.id, answer, nbytes, now)
                self._roster.bound |= kept
            elif isinstance(answer, RequestRefused):
                self._dispatch.refused(name, task.id, answer.message, now)
            elif isinstance(answer, TeacherUnavailable):
                self._dispatch.unavailable(name, task.id, answer.message, now)
            else:
                self._dispatch.failed(name, task.id, answer.message, now)
            self._wake()
            if self._roster.held[name].retiring:
                seat.turn.notify()
        if self._trace is not None:
            label = f"batch {task.batch}" if isinstance(answer, dict) else type(answer).__name__
            self._trace.span(name, label, sent, now, rows=task.stop - task.start, task=task.id)

    def rejected(self, client: Client, task: Task, error: ReaderError) -> None:
        """See Desk."""
        with self._lock:
            self._dispatch.reject(client.endpoint, task.id, error)
            self._wake()

    # --- time, and waking -------------------------------------------------------------------

    def _supervise(self) -> None:
        """What happens because time passes: time-outs, hedges, suspended teachers, reports."""
        self._sleep(self._pause)
        if self._abandoned is not None:
            self._abandoned()
        if self._stopping:
            self._supervisor.stop()
            return
        self._pause = self._tick(self._pause)
        now = time.monotonic()
        if now >= self._report_at:
            self._report_at = now + _REPORT_EVERY
            self._report()
        if now >= self._ask_at:
            self._ask_at = now + _ASK_EVERY
            self._ask_for_teachers()

    def _sleep(self, seconds: float) -> None:
        """Sleep, or until a nudge."""
        with contextlib.suppress(queue.Empty):
            self._nudges.get(timeout=seconds)

    def _tick(self, pause: float) -> float:
        """Decide what is due, ``pause`` seconds after the last time if nothing has kept the
        interpreter to itself since; seconds until the next time.
        """
        io: list[Callable[[], None]] = []
        with self._lock:
            now = time.monotonic()
            overslept, self._judged_at = now - self._judged_at - pause, now
            if self._stream is not None and self._stream.left:
                self._leave_stream()
            if overslept > _OVERSLEPT:
                self._dispatch.excuse(overslept, now)
            for name, reason in self._dispatch.overdue(now).items():
                io += self._lose(self._seats[name], reason)
            self._dispatch.expire_refusals(now)
            self._roster.resting = self._stream is None and now >= self._rest_at
            io += self._follow()
            pause = _TICK if self._dispatch.pending else _IDLE_TICK
        _do(io)
        return pause

    def _ask_for_teachers(self) -> None:
        """Tell the others how many teachers would suit, and which ones we see how fast."""
        with self._lock:
            now, dispatch = time.monotonic(), self._dispatch
            if dispatch.pending:
                self._demand.update(
                    now, dispatch.counters.rows, low=dispatch.low, high=dispatch.high
                )
            place, record = self._place, self._student_record(now)
        if place is not None:
            place.report(record)

    def _student_record(self, now: float) -> StudentRecord:
        resting = self._roster.resting
        return StudentRecord(
            self._config.max_teachers,
            0.0 if resting else self._demand.want,
            self._dispatch.rates(),
            self._roster.avoided(now),
            0.0 if resting else round(self._demand.rows_per_second, 1),
        )

    def _wake(self) -> None:
        """Wake whoever may have something to do now. Called, with the lock, after every change."""
        dispatch = self._dispatch
        if dispatch.ready:
            self._student.notify()
        if dispatch.wants_input():
            self._source.notify()
        if self._idle and dispatch.pending:
            now = time.monotonic()
            wanted = dispatch.waiting or int(now >= dispatch.next_hedge())
            for name in dispatch.preferred(self._idle, now)[:wanted]:
                self._idle[name].turn.notify()


def _do(io: Sequence[Callable[[], None]]) -> None:
    for action in io:
        try:
            action()
        except Exception:  # such as: no thread can be started; the others are due all the same
            logger.exception("acting on a change of teachers failed")


def _listed(reasons: dict[str, str]) -> str:
    said = [f"{name}: {reason}" for name, reason in islice(reasons.items(), _MOST_LISTED)]
    more = len(reasons) - len(said)
    return "; ".join([*said, *([f"and {more} more"] if more else [])])
