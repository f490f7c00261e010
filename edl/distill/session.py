"""The threads around the dispatch: source, links, supervisor; and the student's wait.

One lock guards the dispatch state. Threads do I/O outside it, and inside it report what happened
and ask what to do. Who may have something to do next is woken in one place, ``_wake``.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from edl.discovery.records import StudentRecord
from edl.distill.batches import ArrayBatch, SampleBatch
from edl.distill.demand import Demand
from edl.distill.dispatch import Dispatch
from edl.distill.link import Answer, TeacherLink
from edl.distill.plan import Columns
from edl.distill.state import Finished, Limits, Task
from edl.distill.teachers import Found, Place, Teachers, choose
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
from edl.serving.wire.description import Description

logger = logging.getLogger(__name__)

Batch = Union[SampleBatch, ArrayBatch]

#: Answers that say that the connection is of no more use.
_LOST = (TeacherConnectionLost, TeacherTimeout, TeacherProtocolError, AccessDenied)

#: Seconds that a student waits for an assignment before it chooses teachers for itself, and that
#: it calls a teacher unusable that has failed it.
_PATIENCE_UNASSIGNED = 3.0
_AVOID_FOR = 15.0

_ASK_EVERY = 1.0
_TICK = 0.05
_COMPLAIN_EVERY = 5.0
_REPORT_EVERY = 30.0
_JOIN_PATIENCE = 5.0


@dataclass(frozen=True)
class SessionConfig:
    """Everything a session needs to know; see DistillReader for the meaning of each."""

    teachers: Teachers
    ins: Sequence[Optional[str]]
    predicts: Sequence[str]
    task_rows: int
    max_teachers: Optional[int] = None
    fallback: Optional[Description] = None
    limits: Limits = field(default_factory=Limits)
    no_teacher_timeout: float = 600.0
    token: str = ""


@dataclass
class _Epoch:
    batches: Iterator[Batch]
    thread: Optional[threading.Thread] = None
    exhausted: bool = False


class Session:
    """Connections and state of one reader, kept from one epoch to the next.

    Everything runs in daemon threads that ``close`` ends.
    """

    def __init__(self, config: SessionConfig, trace: Optional[Trace] = None) -> None:
        self._config = config
        self._trace = trace
        self._student_waited = 0.0
        self._lock = threading.Lock()
        self._student = threading.Condition(self._lock)
        self._source = threading.Condition(self._lock)
        self._tick = threading.Condition(self._lock)
        self._dispatch: Dispatch[Batch] = Dispatch(config.limits)
        self._links: dict[str, TeacherLink] = {}
        self._retired: set[TeacherLink] = set()
        self._idle: dict[str, TeacherLink] = {}
        self._found: Found = {}
        self._heard_of_teachers = False
        self._reader_id = uuid.uuid4().hex
        self._epoch: Optional[_Epoch] = None
        self._alone_since = time.monotonic()
        self._closed = False
        self._place: Optional[Place] = None
        self._assigned: Optional[frozenset[str]] = None
        self._unassigned_since = time.monotonic()
        self._demand = Demand()
        self._avoided: dict[str, float] = {}  # teachers that failed us, and when
        self._supervisor = threading.Thread(
            target=self._supervise, name="edl-supervise", daemon=True
        )

    def start(self) -> None:
        """Look for teachers and connect to them, in the background."""
        self._supervisor.start()
        self._place = self._config.teachers.join(
            self._reader_id,
            StudentRecord(self._config.max_teachers),
            self._on_found,
            self._on_assigned,
        )

    def close(self) -> None:
        """End every thread and connection. Safe to call twice, and from any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            links = [*self._links.values(), *self._retired]
            self._end_epoch_locked()
            self._notify_all()
        if self._place is not None:
            self._place.close()
        for link in links:
            link.stop()
        for link in links:
            link.join(_JOIN_PATIENCE)
        if self._supervisor is not threading.current_thread():
            self._supervisor.join(_JOIN_PATIENCE)

    # --- the student ------------------------------------------------------------------------

    def begin_epoch(self, batches: Iterator[Batch]) -> None:
        """Start to read ``batches`` ahead of the student, who has ended the epoch before."""
        epoch = _Epoch(batches)
        epoch.thread = threading.Thread(
            target=self._read_source, args=(epoch,), name="edl-source", daemon=True
        )
        with self._lock:
            self._epoch = epoch
        epoch.thread.start()

    def take(self) -> Optional[Finished[Batch]]:
        """The next batch in order; None when the epoch is over. Blocks.

        Every few seconds of waiting are logged with their reason. Raises NoTeacherError when there
        has been no teacher for longer than the limit, ReaderError if no teacher there is fits.
        """
        with self._lock:
            waiting_since = time.monotonic()
            complain_at = waiting_since + _COMPLAIN_EVERY
            while True:
                if self._dispatch.ready:
                    finished = self._dispatch.take()
                    self._note_wait(waiting_since)
                    self._wake()
                    return finished
                epoch = self._epoch
                if self._closed or epoch is None:
                    raise ReaderError("the reader was closed while it was being iterated")
                if epoch.exhausted and not self._dispatch.pending:
                    return None
                now = time.monotonic()
                self._check_for_hope(now)
                if now >= complain_at:
                    complain_at = now + _COMPLAIN_EVERY
                    logger.warning(
                        "the student has waited %.0f s for its next batch: %s",
                        now - waiting_since,
                        self._explain(now),
                    )
                self._student.wait(0.5)

    def _note_wait(self, since: float) -> None:
        now = time.monotonic()
        self._student_waited += now - since
        if self._trace is not None:
            self._trace.span("student", "wait", since, now)
            self._trace.counter("batches ready", now, batches=self._dispatch.ready_batches)

    def end_epoch(self) -> None:
        """The student leaves the epoch: forget its batches, and let the source's thread end."""
        with self._lock:
            epoch = self._epoch
            self._end_epoch_locked()
        thread = epoch.thread if epoch else None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_PATIENCE)
            if thread.is_alive():
                logger.warning(
                    "the source is still busy with its next batch; it is left to itself and will "
                    "be closed when it returns"
                )

    def stats(self) -> dict[str, Any]:
        """See DistillReader.stats."""
        with self._lock:
            stats = self._dispatch.stats(time.monotonic())
            want = self._demand.want
        return {**stats, "want": want, "student_waited": self._student_waited}

    def _end_epoch_locked(self) -> None:
        self._epoch = None
        self._dispatch.clear()
        self._source.notify_all()
        self._student.notify_all()

    def _check_for_hope(self, now: float) -> None:
        """Raise if waiting longer is pointless."""
        links = list(self._links.values())
        if links and all(link.unfit for link in links):
            reasons = "; ".join(f"{link.endpoint}: {link.problem}" for link in links)
            raise ReaderError(f"no teacher of {self._config.teachers} fits this reader: {reasons}")
        if self._dispatch.teachers:
            return
        alone = now - self._alone_since
        if alone > self._config.no_teacher_timeout:
            raise NoTeacherError(f"no teacher for {alone:.0f} s: {self._explain(now)}")

    def _explain(self, now: float) -> str:
        if self._dispatch.teachers:
            return self._dispatch.waits_for(now)
        where = self._config.teachers
        if not self._heard_of_teachers:
            return f"no answer yet about {where}"
        if not self._links:
            return f"no teacher is registered for {where}"
        tried = "; ".join(f"{link.endpoint}: {link.problem}" for link in self._links.values())
        return f"no teacher of {where} can be used ({tried})"

    # --- the source -------------------------------------------------------------------------

    def _read_source(self, epoch: _Epoch) -> None:
        error: Optional[BaseException] = None
        try:
            while self._wait_until_wanted(epoch):
                started = time.monotonic()
                batch = next(epoch.batches, None)
                if self._trace is not None:
                    self._trace.span("source", "read", started, time.monotonic())
                if batch is None or not self._add(epoch, batch):
                    break
        except BaseException as failure:  # the user's own errors reach the student in their turn
            error = failure
        with self._lock:
            if epoch is self._epoch:
                if error is not None:
                    self._dispatch.add_error(error)
                epoch.exhausted = True
                self._wake()
                self._student.notify_all()
        close = getattr(epoch.batches, "close", None)
        if close is not None:
            close()

    def _wait_until_wanted(self, epoch: _Epoch) -> bool:
        with self._lock:
            while epoch is self._epoch and not self._dispatch.wants_input():
                self._source.wait(1.0)
            return epoch is self._epoch

    def _add(self, epoch: _Epoch, batch: Batch) -> bool:
        with self._lock:
            if epoch is not self._epoch:
                return False
            self._dispatch.add(batch, batch.rows, batch.nbytes, self._config.task_rows)
            self._wake()
            return True

    # --- teachers found and lost ------------------------------------------------------------

    def _on_found(self, found: Found) -> None:
        with self._lock:
            self._found = found
            self._heard_of_teachers = True
            for endpoint, link in self._links.items():
                link.registered = found.get(endpoint, link.registered)
            self._choose_teachers()

    def _choose_teachers(self) -> None:
        """Open and close links so that they are those of the teachers to be used."""
        if self._closed:
            return
        self._retired = {link for link in self._retired if link.alive}
        chosen = self._wanted()
        self._dispatch.known = set(chosen)
        for endpoint, link in list(self._links.items()):
            if endpoint not in chosen:
                del self._links[endpoint]
                self._retire(link)
        for endpoint in chosen - self._links.keys():
            self._links[endpoint] = self._open(endpoint)

    def _on_assigned(self, teachers: frozenset[str]) -> None:
        with self._lock:
            self._assigned = teachers
            self._choose_teachers()

    def _wanted(self) -> set[str]:
        """The teachers to use: those assigned to this student; without an assignment for long, some
        of its own choice, a different one for each student.
        """
        found = self._found
        assigned = found.keys() & (self._assigned or ())
        now = time.monotonic()
        if assigned:
            self._unassigned_since = now
            return set(assigned)
        if self._config.teachers.balanced and now - self._unassigned_since < _PATIENCE_UNASSIGNED:
            return found.keys() & self._links.keys()
        failing = [link.endpoint for link in self._links.values() if link.failing]
        return choose(list(found), self._config.max_teachers, self._reader_id, failing)

    def _open(self, endpoint: str) -> TeacherLink:
        for link in self._retired:
            if link.endpoint == endpoint and link.client is not None:  # it came back in time
                self._retired.discard(link)
                link.retiring = False
                self._dispatch.retire(endpoint, False)
                link.condition.notify()
                return link
        config = self._config
        link = TeacherLink(
            self,
            endpoint,
            self._found.get(endpoint, ""),
            config.token,
            config.ins,
            config.predicts,
            config.fallback,
            self._lock,
        )
        link.start()
        return link

    def _retire(self, link: TeacherLink) -> None:
        """Let go of a teacher once it has answered what it was sent."""
        link.retiring = True
        self._retired.add(link)
        self._dispatch.retire(link.endpoint, True)
        link.condition.notify()
        if link.client is None:
            link.stop()

    # --- what links report (see link.Desk) --------------------------------------------------

    def link_up(self, link: TeacherLink) -> None:
        """See Desk."""
        with self._lock:
            link.problem, link.failing = "", False
            if link.retiring or self._closed:
                return
            self._dispatch.join(link.endpoint, time.monotonic())
            logger.info("teacher %s is connected", link.endpoint)
            self._wake()

    def link_down(self, link: TeacherLink, client: Optional[Client], reason: str) -> None:
        """See Desk."""
        with self._lock:
            if client is not None and link.client is not client:
                return  # known already
            had_client, link.client = link.client is not None, None
            link.problem, link.failing = reason, True
            if link.retiring:
                self._retired.discard(link)
            if had_client:
                self._lost(link, reason)
            if not link.retiring:
                if not link.unfit:  # that would be this student's mistake
                    self._avoided[link.endpoint] = time.monotonic()
                if self._config.max_teachers is not None:
                    self._choose_teachers()  # another one may do better

    def _lost(self, link: TeacherLink, reason: str) -> None:
        blame = not (link.retiring or link.stopped or self._closed)
        self._dispatch.leave(link.endpoint, f"{link.endpoint}: {reason}", blame)
        if not self._dispatch.teachers:
            self._alone_since = time.monotonic()
        if blame:
            logger.warning("teacher %s is gone: %s", link.endpoint, reason)
        link.condition.notify()
        self._wake()

    def wait_for_task(self, link: TeacherLink, client: Client) -> Optional[tuple[Task, Columns]]:
        """See Desk."""
        with self._lock:
            while link.client is client and not self._closed and not link.stopped:
                task = self._dispatch.next_task(link.endpoint, time.monotonic())
                if task is not None:
                    batch = self._dispatch.payload(task)
                    assert batch is not None
                    return task, batch
                teacher = self._dispatch.teachers.get(link.endpoint)
                if link.retiring and (teacher is None or not teacher.in_flight):
                    return None
                self._idle[link.endpoint] = link
                try:
                    link.condition.wait(1.0)
                finally:
                    self._idle.pop(link.endpoint, None)
            return None

    def answered(self, link: TeacherLink, client: Client, task: Task, answer: Answer) -> None:
        """See Desk."""
        name = link.endpoint
        problem = ""
        if isinstance(answer, dict):
            assert link.plan is not None
            problem = link.plan.check(answer, task.stop - task.start)
        elif isinstance(answer, _LOST):
            self.link_down(link, client, answer.message)
            return
        with self._lock:
            if link.client is not client:
                return
            now = time.monotonic()
            if self._trace is not None:
                self._trace_answer(name, task, answer, now)
            if problem:
                pass  # below, outside the lock
            elif isinstance(answer, dict):
                nbytes = sum(array.nbytes for array in answer.values())
                self._dispatch.answered(name, task.id, answer, nbytes, now)
            elif isinstance(answer, RequestRefused):
                self._dispatch.refused(name, task.id, answer.message, now)
            elif isinstance(answer, TeacherUnavailable):
                self._dispatch.unavailable(name, task.id, now)
            else:
                assert isinstance(answer, TeacherFailed)
                logger.warning("%s", answer)
                self._dispatch.failed(name, task.id, str(answer), now)
            self._wake()
            if link.retiring:
                link.condition.notify()
        if problem:
            self.link_down(link, client, problem)
            client.close()

    def _trace_answer(self, name: str, task: Task, answer: Answer, now: float) -> None:
        assert self._trace is not None
        sent = task.sent_to.get(name, now)
        label = f"batch {task.batch}" if isinstance(answer, dict) else type(answer).__name__
        self._trace.span(name, label, sent, now, rows=task.stop - task.start, task=task.id)

    def rejected(self, link: TeacherLink, task: Task, error: ReaderError) -> None:
        """See Desk."""
        with self._lock:
            self._dispatch.reject(link.endpoint, task.id, error)
            self._wake()

    # --- time, and waking -------------------------------------------------------------------

    def _supervise(self) -> None:
        """What happens because time passes: timeouts, hedges, suspended teachers."""
        report_at = time.monotonic() + _REPORT_EVERY
        ask_at = 0.0
        while True:
            if time.monotonic() >= report_at:
                report_at += _REPORT_EVERY
                self._report()
            if time.monotonic() >= ask_at:
                ask_at = time.monotonic() + _ASK_EVERY
                self._ask_for_teachers()
            with self._lock:
                if self._closed:
                    return
                now = time.monotonic()
                late = [
                    (self._links.get(name), reason)
                    for name, reason in self._dispatch.overdue(now).items()
                ]
                self._dispatch.expire_refusals(now)
                self._wake()
            for link, reason in late:
                client = link.client if link else None
                if link is not None and client is not None:
                    self.link_down(link, client, reason)
                    client.close()
            with self._lock:
                if not self._closed:
                    self._tick.wait(_TICK if self._dispatch.pending else 10 * _TICK)

    def _ask_for_teachers(self) -> None:
        """Tell the others how many teachers would suit, and which ones we see how fast."""
        with self._lock:
            now, dispatch = time.monotonic(), self._dispatch
            if dispatch.pending:
                self._demand.update(
                    now, dispatch.counters.rows, low=dispatch.low, high=dispatch.high
                )
            self._avoided = {
                endpoint: since
                for endpoint, since in self._avoided.items()
                if endpoint not in dispatch.teachers and now - since < _AVOID_FOR
            }
            record = StudentRecord(
                self._config.max_teachers,
                self._demand.want,
                dispatch.rates(),
                tuple(sorted(self._avoided)),
                round(self._demand.rows_per_second, 1),
            )
            if self._config.teachers.balanced and not self._assigned:
                self._choose_teachers()
            place = self._place
        if place is not None:
            place.report(record)

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
                self._idle[name].condition.notify()

    def _notify_all(self) -> None:
        for condition in (self._student, self._source, self._tick):
            condition.notify_all()
        for link in [*self._links.values(), *self._retired]:
            link.condition.notify_all()
