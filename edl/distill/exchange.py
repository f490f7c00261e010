"""Where batches meet teachers: what a source and a student, links and a registry do to each other.

One lock guards the state, which is two pure machines: ``dispatch`` (which task goes where) and
``roster`` (which teachers are held). Threads report what happened under the lock, and do what
follows from it (connections to open and to end, lines for the log and the trace) after they have
left it. Who may have something to do next is woken in one place, ``_wake``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from edl.discovery.records import StudentRecord
from edl.distill.demand import Demand
from edl.distill.dispatch import Dispatch, Output
from edl.distill.link import Answer, Instead, TeacherLink, Work
from edl.distill.plan import Plan
from edl.distill.roster import Roster
from edl.distill.settings import PoolConfig
from edl.distill.state import Finished, Task
from edl.distill.stream import RequestStream, Stream
from edl.distill.teachers import Found, declared_model
from edl.distill.timeline import Timeline
from edl.distill.waiting import COMPLAIN_EVERY, News, Wait
from edl.errors import (
    AccessDenied,
    NoTeacherError,
    PoolFull,
    ReaderError,
    RequestRefused,
    TeacherConnectionLost,
    TeacherError,
    TeacherFailed,
    TeacherProtocolError,
    TeacherTimeout,
    TeacherUnavailable,
    TlsRefused,
)
from edl.serving.client.entry import Client
from edl.serving.client.timing import Timing
from edl.serving.wire import selftest
from edl.serving.wire.description import Description

if TYPE_CHECKING:
    from edl.distill.requests import Request

logger = logging.getLogger(__name__)

#: Answers that say that the connection is of no more use.
_LOST = (
    TeacherConnectionLost,
    TeacherTimeout,
    TeacherProtocolError,
    AccessDenied,
    TlsRefused,
)

#: Seconds without a stream after which a shared service's teachers are left to others.
_REST_AFTER = 10.0

#: Seconds after which an idle teacher that is sent nothing is asked again what it serves.
_ASK_AGAIN_EVERY = 1.0

#: Seconds without a word from any teacher, after which a store may say which model's labels.
_STORE_PATIENCE = 5.0

_TICK, _IDLE_TICK = 0.05, 0.5
_OVERSLEPT = 0.25

#: What is to be done without the lock.
Io = list[Callable[[], None]]


@dataclass(eq=False)
class _Seat:
    """What is known of one link: its connection and plan, while there is one."""

    link: TeacherLink
    turn: threading.Condition
    client: Optional[Client] = None
    plan: Optional[Plan] = None


class Exchange:
    """The state of a pool. ``reader``: the name by which the registry knows it. ``unheard``: says
    why nothing is heard from there, as far as that is known.
    """

    def __init__(
        self,
        config: PoolConfig,
        reader: str,
        timeline: Optional[Timeline],
        unheard: Callable[[], str],
    ) -> None:
        self._config = config
        self._wants = replace(config.wants, timed=timeline is not None)
        self._unheard = unheard
        self._timeline = timeline
        self._lock = threading.Lock()
        self._student = threading.Condition(self._lock)
        self._source = threading.Condition(self._lock)
        # of batches, or of requests
        self._dispatch: Dispatch[Any] = Dispatch(config.limits, config.requests is None)
        self._roster = Roster(reader, config.max_teachers, config.teachers.balanced)
        self._seats: dict[str, _Seat] = {}
        self._idle: dict[str, _Seat] = {}
        self._entries: Found = {}
        self._declared: dict[str, str] = {}  # the models that the entries declare
        self._stream: Union[Stream, RequestStream, None] = None
        self._all_read = False  # the stream's source has come to its end
        self._closed = False
        self._rest_after = config.requests.rest_after if config.requests else _REST_AFTER
        self._rest_at = time.monotonic() + self._rest_after
        self._judged_at = time.monotonic()
        # Seconds that the student has waited, and since when it does now. Replaced as a whole, so
        # that who reads it never sees time twice.
        self._waited: tuple[float, Optional[float]] = 0.0, None
        self._in_streams = 0.0  # seconds, of those that have ended
        self._opened_at = 0.0
        self._waited_for_teachers = 0.0  # the part of it after the batch had been read
        self._taking_since: Optional[float] = None
        self._request_wait = Wait(config.teachers, unheard, config.no_teacher_timeout)
        self._answers_of = ""  # the model of the answers that are held
        self._demand = Demand()
        self._news = News()

    def close(self) -> bool:
        """End the stream and every connection; false if that was done before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            seats, self._seats = list(self._seats.values()), {}
            self._forget_stream()
            self._source.notify_all()
            for seat in seats:
                seat.turn.notify_all()
        for seat in seats:
            seat.link.stop()
        return True

    # --- a stream's two ends ----------------------------------------------------------------

    def open(self, stream: Union[Stream, RequestStream], model: str) -> StudentRecord:
        """Let ``stream`` be the one whose batches are here, in place of the one before. ``model``:
        the fingerprint of the only model that may label them. Returns what others should know.
        """
        with self._lock:
            self._forget_stream()
            self._stream, self._all_read = stream, False
            self._opened_at = time.monotonic()
            self._roster.resting = False
            if model:
                self._roster.keep_to(model)
            record = self._record(time.monotonic())
            io = self._follow()
        _do(io)
        return record

    def wait_until_wanted(self, stream: Stream) -> bool:
        """See Stream."""
        with self._lock:
            while self._is_current(stream) and not self._dispatch.wants_input():
                self._source.wait(1.0)
            return self._is_current(stream)

    def settle(
        self, stream: Stream, stored: Callable[[], Collection[str]]
    ) -> Optional[tuple[str, Optional[Plan]]]:
        """See Stream."""
        config, since = self._config, time.monotonic()
        wait = Wait(config.teachers, self._unheard, config.no_teacher_timeout, since)
        while True:
            models = stored()
            with self._lock:
                if not self._is_current(stream):
                    return None
                now, roster = time.monotonic(), self._roster
                if roster.admitted:
                    roster.keep_to(roster.model)
                elif not roster.bound and (roster.silent or now - since > _STORE_PATIENCE):
                    chosen = roster.model if roster.model in models else None
                    if chosen is None and len(models) == 1:
                        (chosen,) = models
                    if chosen is not None:
                        roster.keep_to(chosen)
                plan = self._plan()
                if roster.bound and (plan is not None or roster.model in models):
                    return roster.model, plan
                try:
                    complaint = wait.complaint(self._dispatch, roster, now)
                except NoTeacherError as error:
                    raise _undecided(error, models) from error
                if not complaint:
                    self._source.wait(0.1)
            if complaint:
                words = "the label store has waited %.0f s to know which model's labels: %s"
                logger.warning(words, now - since, complaint)

    def plan(self) -> Optional[Plan]:
        """See Stream."""
        with self._lock:
            return self._plan()

    def _plan(self) -> Optional[Plan]:
        seats = (self._seats.get(name) for name in self._roster.admitted)
        return next((seat.plan for seat in seats if seat is not None and seat.plan), None)

    def put(self, stream: Stream, batch: Any) -> bool:
        """See Stream."""
        with self._lock:
            if not self._is_current(stream):
                return False
            rows, nbytes, task_rows = batch.rows, batch.nbytes, self._config.task_rows
            self._dispatch.add(batch, rows, nbytes, task_rows, time.monotonic(), batch.spared)
            self._wake()
            return True

    def end(self, stream: Stream, error: Optional[BaseException]) -> None:
        """See Stream."""
        with self._lock:
            if not self._is_current(stream):
                return
            if error is not None:
                self._dispatch.add_error(error)
            self._all_read = True
            self._wake()
            self._student.notify_all()

    def forget(self, stream: Stream) -> None:
        """See Stream."""
        with self._lock:
            if stream is self._stream:
                self._forget_stream()

    def take(self, stream: Stream) -> Optional[Finished[Any]]:
        """See Stream."""
        since, (waited, _) = time.monotonic(), self._waited
        self._waited = waited, since
        try:
            finished, ready = self._next(stream, since)
        finally:
            now = time.monotonic()
            self._waited = waited + now - since, None
        if self._timeline is not None and finished is not None:
            self._timeline.taken(finished, since, now, ready)
        return finished

    def _next(self, stream: Stream, since: float) -> tuple[Optional[Finished[Any]], int]:
        """What ``take`` returns, and how many batches are ready then."""
        config = self._config
        wait = Wait(config.teachers, self._unheard, config.no_teacher_timeout, since)
        self._taking_since = since
        while True:
            with self._lock:
                if self._dispatch.ready and self._is_current(stream):
                    self._waited_for_teachers = self._waiting(time.monotonic())
                    self._taking_since = None
                    return self._take(), self._dispatch.ready_batches
                if not self._is_current(stream):
                    raise ReaderError("the reader was closed, or left, while it was being iterated")
                if self._all_read and not self._dispatch.pending:
                    self._taking_since = None
                    return None, 0
                now = time.monotonic()
                needed = not config.stored or self._dispatch.blocked
                complaint = wait.complaint(self._dispatch, self._roster, now, needed)
                if not complaint:
                    self._student.wait(0.5)
            if complaint:
                words = "the student has waited %.0f s for its next batch: %s"
                logger.warning(words, now - since, complaint)

    def _take(self) -> Finished[Any]:
        """What is finished. What the student has taken decides for a model."""
        finished = self._dispatch.take()
        assert finished is not None
        self._roster.bound |= finished.error is None
        self._wake()
        return finished

    def _waiting(self, now: float) -> float:
        """Seconds so far that the student has waited for teachers, and not for its source."""
        taking, read = self._taking_since, self._dispatch.head_since
        if taking is None or read is None:
            return self._waited_for_teachers
        return self._waited_for_teachers + max(0.0, now - max(taking, read))

    def _is_current(self, stream: Union[Stream, RequestStream]) -> bool:
        return stream is self._stream and not stream.left and not self._closed

    def _forget_stream(self) -> None:
        """Forget the batches of the stream, if there is one; requests are answered with an error.
        With the lock.
        """
        if self._stream is None:
            return
        self._stream = self._taking_since = None
        self._in_streams += time.monotonic() - self._opened_at
        self._roster.bound = False
        if self._dispatch.in_order:
            self._dispatch.clear()
        else:
            self._dispatch.fail_all("the TeacherPool was closed before this request was answered")
        self._source.notify_all()
        self._student.notify_all()

    # --- requests ---------------------------------------------------------------------------

    def submit(self, stream: RequestStream, request: Request, until: float) -> int:
        """See RequestStream."""
        since = complained_at = time.monotonic()
        while True:
            with self._lock:
                if not self._is_current(stream):
                    raise ReaderError("this TeacherPool was closed")
                now = time.monotonic()
                if self._has_room():
                    number = self._dispatch.add(
                        request, request.rows, request.nbytes, self._config.task_rows, now
                    )
                    outstanding = self._dispatch.pending
                    if self._roster.resting:
                        stream.nudge()
                    self._wake()
                    break
                why = ""
                if now >= min(until, complained_at + COMPLAIN_EVERY):
                    why = (
                        f"{self._dispatch.pending} are outstanding: {self._dispatch.waits_for(now)}"
                    )
                if now >= until:
                    raise PoolFull(f"no room for a request within {now - since:.1f} s, {why}")
                if not why:
                    self._source.wait(min(0.5, until - now))
            if why:
                complained_at = now
                words = "a request has waited %.0f s to be sent, %s"
                logger.warning(words, now - since, why)
        self._note_outstanding(now, outstanding)
        return number

    def take_any(self, stream: RequestStream) -> Optional[Finished[Request]]:
        """See RequestStream."""
        while True:
            with self._lock:
                now = time.monotonic()
                complaint = self._judge_requests(now)
                finished = self._take() if self._dispatch.ready else None
                at_end = finished is None and stream is not self._stream
                outstanding = self._dispatch.pending
                if not (complaint or finished or at_end):
                    self._student.wait(0.5)
            if complaint:
                words = "the oldest of the requests to teachers has waited %.0f s: %s"
                logger.warning(words, now - self._request_wait.since, complaint)
            if finished is not None:
                self._note_outstanding(now, outstanding)
            if finished is not None or at_end:
                return finished

    def _judge_requests(self, now: float) -> str:
        """What is to be said of the oldest request, which fails if waiting longer is pointless."""
        dispatch, since = self._dispatch, self._dispatch.waiting_since
        if since is None:
            return ""
        self._request_wait.since = since
        try:
            return self._request_wait.complaint(dispatch, self._roster, now)
        except ReaderError as error:
            dispatch.fail_first(error)
            return ""

    def _has_room(self) -> bool:
        limits = self._config.requests
        few = limits is None or self._dispatch.pending < limits.outstanding
        return few and not self._dispatch.full

    def wanted(self) -> bool:
        """See RequestStream."""
        with self._lock:
            return self._has_room() and self._dispatch.wants_input()

    def unbind(self) -> None:
        """Let what is taken from now on be of another model, if nobody has the present one."""
        with self._lock:
            self._roster.bound = False
            io = self._follow()
        _do(io)

    def _note_outstanding(self, now: float, requests: int) -> None:
        if self._timeline is not None:
            self._timeline.outstanding(requests, now)

    # --- sight ------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The fingerprint of the model in use; empty while that is not decided."""
        with self._lock:
            return self._roster.model

    def stats(self) -> dict[str, Any]:
        """See DistillReader.stats, or TeacherPool.stats."""
        with self._lock:
            now, (waited, since) = time.monotonic(), self._waited
            stats = {
                **self._dispatch.stats(now),
                "unit": self._unit(),
                "want": self._demand.want,
                "student_waited": waited + (now - since if since is not None else 0.0),
                "student_seconds": self._in_streams
                + (now - self._opened_at if self._stream is not None else 0.0),
                "models": list(self._roster.models),
                "unusable": self._roster.problems(),
            }
            ways = self._ways()
            for name, teacher in stats["teachers"].items():
                teacher["way"] = ways.get(name, "")
            outstanding = self._dispatch.pending
        if self._dispatch.in_order:
            return stats
        del stats["buffer"], stats["student_waited"], stats["student_seconds"]
        return {"requests": stats.pop("batches"), "outstanding": outstanding, **stats}

    @property
    def resting(self) -> bool:
        """Whether the teachers of a shared service are left to others."""
        return self._roster.resting

    def _unit(self) -> str:
        """What work is counted in."""
        plans = [seat.plan for seat in self._seats.values() if seat.plan is not None]
        return "tokens" if any(plan.sequences for plan in plans) else "rows"

    def record(self) -> StudentRecord:
        """What others should know: how many teachers would suit, and which are seen how fast."""
        with self._lock:
            now, dispatch = time.monotonic(), self._dispatch
            low, high = dispatch.low, dispatch.high
            if not dispatch.in_order:  # what is finished is taken at once: it says nothing
                low, high = dispatch.waiting > 0, not dispatch.waiting
            if dispatch.pending or self._taking_since is not None:
                low &= dispatch.pending > 0  # otherwise it is the source that is slow
                waited = self._waiting(now) if dispatch.in_order else None
                self._demand.update(now, dispatch.counters.work, low=low, high=high, waited=waited)
            return self._record(now)

    def _record(self, now: float) -> StudentRecord:
        resting = self._roster.resting
        return StudentRecord(
            self._config.max_teachers,
            0.0 if resting else self._demand.want,
            self._dispatch.rates(),
            self._roster.avoided(now),
            0.0 if resting else round(self._demand.rows_per_second, 1),
            self._ways(),
            self._config.metrics,
            None if resting or self._demand.waits is None else round(self._demand.waits, 2),
        )

    def _ways(self) -> dict[str, str]:
        """How tensors travel to each teacher that is connected. With the lock."""
        seats = self._seats.items()
        return {name: seat.client.way for name, seat in seats if seat.client is not None}

    # --- what the registry says -------------------------------------------------------------

    def found(self, found: Found) -> None:
        """The teachers that there are now."""
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
            io += [
                seat.link.look_again
                for name, seat in self._seats.items()
                if name in before and before[name] != found.get(name)
            ]
        _do(io)

    def assigned(self, teachers: frozenset[str]) -> None:
        """The teachers that this student is to use."""
        with self._lock:
            self._roster.assigned(teachers)
            io = self._follow()
        _do(io)

    def _follow(self) -> Io:
        """Bring seats and dispatch in line with the roster, with the lock. Returns what is to be
        done without it.
        """
        if self._closed:
            return []
        now, roster, dispatch = time.monotonic(), self._roster, self._dispatch
        changes = roster.step(now)
        io: Io = [self._seats.pop(name).link.stop for name in changes.end]
        for name in changes.open:
            link = TeacherLink(self, name, self._wants)
            self._seats[name] = _Seat(link, threading.Condition(self._lock))
            io.append(link.start)
        admitted = roster.admitted
        for name in dispatch.teachers.keys() - admitted:
            dispatch.leave(name, "it serves another model", blame=False)
        if roster.model != self._answers_of:
            self._answers_of = roster.model
            dispatch.start_over()
        for name in admitted - dispatch.teachers.keys():
            dispatch.join(name, now)
        for name in admitted:
            dispatch.retire(name, roster.held[name].retiring)
            if roster.held[name].retiring:
                self._seats[name].turn.notify()
        dispatch.expect(roster.known)
        self._wake()
        return io + self._news.of(self._roster)

    # --- what links report (see link.Desk) --------------------------------------------------

    def entry(self, link: TeacherLink) -> str:
        """See Desk."""
        with self._lock:
            return self._entries.get(link.endpoint, "")

    def link_up(self, link: TeacherLink, client: Client, plan: Plan, said: Description) -> None:
        """See Desk."""
        with self._lock:
            seat = self._seats.get(link.endpoint)
            if seat is None or seat.link is not link:
                return
            seat.client, seat.plan = client, plan
            test = selftest.said(said)
            self._roster.connected(link.endpoint, said.fingerprint, time.monotonic(), test)
            io = self._follow()
        _do(io)
        logger.info("teacher %s is connected by %s", link.endpoint, client.way)

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

    def _lose(self, seat: _Seat, reason: str, unfit: bool = False) -> Io:
        """A connection has ended: its tasks go elsewhere. With the lock; returns what is to be done
        without it.
        """
        name, client = seat.link.endpoint, seat.client
        seat.client = seat.plan = None
        blame = client is not None and not self._roster.held[name].retiring
        self._dispatch.leave(name, f"{name}: {reason}", blame)
        self._roster.lost(name, reason, time.monotonic(), unfit=unfit)
        seat.turn.notify()
        io: Io = [] if client is None else [client.close]
        if name not in self._roster.held:
            del self._seats[name]
            io.append(seat.link.stop)
        io += self._follow()
        if blame:
            io.append(lambda: logger.warning("teacher %s is gone: %s", name, reason))
        return io

    def wait_for_tasks(self, link: TeacherLink, client: Client) -> Union[list[Work], Instead]:
        """See Desk."""
        name, ask_at = link.endpoint, time.monotonic() + _ASK_AGAIN_EVERY
        with self._lock:
            seat = self._seats.get(name)
            while seat is not None and seat.client is client:
                if client.broken is not None:
                    raise client.broken
                tasks = self._dispatch.next_tasks(name, time.monotonic())
                if tasks:
                    return [(task, self._dispatch.payload(task)) for task in tasks]
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

    def weighed(self, client: Client, task: Task, work: int) -> None:
        """See Desk."""
        with self._lock:
            seat = self._seats.get(client.endpoint)
            if seat is not None and seat.client is client:
                self._dispatch.weigh(client.endpoint, task.id, work)

    def answered(
        self,
        client: Client,
        answers: Sequence[tuple[Task, Answer]],
        timing: Optional[Timing] = None,
    ) -> None:
        """See Desk."""
        name, now = client.endpoint, time.monotonic()
        seat = self._seats.get(name)
        plan = seat.plan if seat is not None else None
        for task, answer in answers:
            problem = _problem(plan, task, answer)
            if problem:
                if seat is not None:
                    self.link_down(seat.link, client, problem)
                return
        with self._lock:
            if seat is None or seat.client is not client or seat.plan is not plan:
                return
            since = self._note(name, answers, now)
            self._wake()
            if self._roster.held[name].retiring:
                seat.turn.notify()
        if self._timeline is not None and timing is not None:
            for task, answer in answers:
                error = "" if isinstance(answer, dict) else type(answer).__name__
                read = since.get(task.id)
                self._timeline.answered(name, task, read, timing, now, error, way=client.way)

    def _note(
        self, name: str, answers: Sequence[tuple[Task, Answer]], now: float
    ) -> dict[int, float]:
        """With the lock. When the batches were read of tasks whose answers are kept, by ids."""
        dispatch = self._dispatch
        right = [(task, answer) for task, answer in answers if isinstance(answer, dict)]
        outputs = [
            Output(task.id, answer, sum([array.nbytes for array in answer.values()]))
            for task, answer in right
        ]
        kept = dispatch.answered(name, outputs, now)
        since = {task.id: dispatch.since(task) for (task, _), its in zip(right, kept) if its}
        for task, answer in answers:
            if isinstance(answer, RequestRefused):
                dispatch.refused(name, task.id, answer.message, now)
            elif isinstance(answer, TeacherUnavailable):
                dispatch.unavailable(name, task.id, answer.message, now)
            elif isinstance(answer, TeacherError):
                dispatch.failed(name, task.id, answer.message, now)
        return since

    def failed_together(self, client: Client, tasks: Sequence[Task], error: TeacherError) -> None:
        """See Desk."""
        logger.warning("%s (a request of %d batches; each is sent again alone)", error, len(tasks))
        with self._lock:
            seat = self._seats.get(client.endpoint)
            if seat is None or seat.client is not client:
                return
            ids = [task.id for task in tasks]
            self._dispatch.failed_together(client.endpoint, ids, time.monotonic())
            self._wake()

    def rejected(self, client: Client, task: Task, error: ReaderError) -> None:
        """See Desk."""
        with self._lock:
            self._dispatch.reject(client.endpoint, task.id, error)
            self._wake()

    # --- time, and waking -------------------------------------------------------------------

    def tick(self, pause: float) -> float:
        """Decide what is due, ``pause`` seconds after the last time if nothing has kept the
        interpreter to itself since; seconds until the next time.
        """
        io: Io = []
        with self._lock:
            now = time.monotonic()
            overslept, self._judged_at = now - self._judged_at - pause, now
            if self._stream is not None and self._stream.left:
                self._forget_stream()
            if isinstance(self._stream, RequestStream):
                for number in self._stream.withdrawn():
                    self._dispatch.withdraw(number)
            if overslept > _OVERSLEPT:
                self._dispatch.excuse(overslept, now)
            for name, reason in self._dispatch.overdue(now).items():
                io += self._lose(self._seats[name], reason)
            self._dispatch.expire_refusals(now)
            busy = self._stream is not None
            if busy and not self._dispatch.in_order:
                busy = self._dispatch.pending > 0
            if busy:
                self._rest_at = now + self._rest_after
            self._roster.resting = now >= self._rest_at
            io += self._follow()
            pause = _TICK if self._dispatch.pending else _IDLE_TICK
        _do(io)
        return pause

    def _wake(self) -> None:
        """Wake whoever may have something to do now. Called, with the lock, after every change."""
        dispatch = self._dispatch
        if dispatch.ready:
            self._student.notify()
        if dispatch.needs_input() if dispatch.in_order else self._has_room():
            self._source.notify()
        if self._idle and dispatch.pending:
            now = time.monotonic()
            wanted = dispatch.waiting or int(now >= dispatch.next_hedge())
            for name in dispatch.preferred(self._idle, now)[:wanted]:
                self._idle[name].turn.notify()


def _problem(plan: Optional[Plan], task: Task, answer: Answer) -> str:
    """Why the connection of an answer is of no more use, or an empty string."""
    if isinstance(answer, _LOST):
        return answer.message
    if isinstance(answer, dict) and plan is not None:
        return plan.check(answer, task.stop - task.start)
    if isinstance(answer, TeacherFailed):
        logger.warning("%s", answer)
    return ""


def _undecided(error: NoTeacherError, stored: Collection[str]) -> NoTeacherError:
    """The same, with what a store has in place of teachers."""
    if not stored:
        return NoTeacherError(f"{error}; the label store has no labels of these predictions")
    return NoTeacherError(
        f"{error}; the label store has labels of {len(stored)} models: say which with "
        f"store_model=, one of {', '.join(sorted(stored))}"
    )


def _do(io: Sequence[Callable[[], None]]) -> None:
    for action in io:
        try:
            action()
        except Exception:  # such as: no thread can be started; the others are due all the same
            logger.exception("acting on a change of teachers failed")
