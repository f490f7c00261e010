"""Which task goes to which teacher, and when: the one state machine behind DistillReader and
TeacherPool.

No threads, no sockets, no clock: every method is called with the time where it matters, changes the
state, and returns. ``pool`` drives it from the threads that do the I/O, under one lock.

The life of a batch::

    add ──► tasks waiting ──next_task──► in flight at a teacher ──answered──► finished ──take──►
                 ▲                            │
                 └── failed / lost / timed ◄──┘          (or sent a second time: a hedge)
                     out: first in line again

Batches are numbered in the order of the source and taken in that order. A batch is cut into tasks
of at most ``teacher_batch_size`` rows; tasks are numbered in the same order, so the lowest number
is always first in line.

Where somebody else waits for each batch, as for the requests to a TeacherPool, they are taken in
whatever order they are finished: then each of them holds somebody up, and may be hedged.

Flow control is that of EDL-Dist (arXiv 2207.06667, section 3): the volume of finished batches that
the student has not taken is held between a lower and an upper threshold. Below the lower one more
tasks are put in flight at each teacher; above the upper one nothing is sent, except for the batch
that the student will take next, without which the volume could never fall.
"""

from __future__ import annotations

import bisect
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import asdict
from itertools import chain
from typing import Any, Generic, NamedTuple, Optional

from edl.distill.state import (
    RECENT,
    AnswerRecord,
    BatchState,
    Counters,
    Finished,
    Latencies,
    Limits,
    Payload,
    Task,
    TeacherState,
    quantiles,
    rate,
)
from edl.distill.windows import TOGETHER, Window, half_of
from edl.errors import BatchRefused, ReaderError

_KNOWN_AFTER = 8  # answers, before what a teacher takes is more than a guess


class Output(NamedTuple):
    """What a teacher has said to a task: whatever it is, and its bytes."""

    task_id: int
    outputs: Any
    nbytes: int


class Dispatch(Generic[Payload]):
    """The state and every decision. Not thread-safe: the caller holds one lock around it.

    ``in_order``: batches are taken in the order in which they were added.
    """

    def __init__(self, limits: Optional[Limits] = None, in_order: bool = True) -> None:
        self.limits = limits or Limits()
        self.in_order = in_order
        self.counters = Counters()
        self.teachers: dict[str, TeacherState] = {}
        self._known: Set[str] = frozenset()
        self._batches: dict[int, BatchState[Payload]] = {}
        self._tasks: dict[int, Task] = {}
        self._waiting: list[int] = []  # task ids, sorted
        self._next_task_id = 0
        self._next_batch = 0
        self._head = 0  # the first batch that was not taken
        self._finished: dict[int, None] = {}  # batches not taken, in the order of finishing
        self._ready_bytes = 0
        self._held_bytes = 0
        self._usual_latency = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._latencies = Latencies()

    # --- the source -------------------------------------------------------------------------

    def wants_input(self) -> bool:
        """Whether to go on reading the source: volume is wanted, and there is room at the teachers
        for it, or will be soon.
        """
        if self.high or self.full:
            return False
        if not self._waiting:
            return True
        _, room, ahead = self._room()
        return len(self._waiting) <= max(room, ahead)

    def needs_input(self) -> bool:
        """Whether a source that was not wanted is wanted again: later than ``wants_input`` says so
        while teachers are busy, since its reader is worth waking for more than one small batch.
        """
        if self.high or self.full:
            return False
        if not self._waiting:
            return True
        total, room, ahead = self._room()
        waiting = len(self._waiting)
        return waiting <= ahead / 2 or (4 * room >= total and waiting <= room)

    def _room(self) -> tuple[int, int, int]:
        """Tasks that may be in flight, how many more there may be now, and how many may wait
        without being large.
        """
        total = room = ahead = 0
        for teacher in self.teachers.values():
            window = teacher.window
            total += window.size
            room += max(0, window.size - len(teacher.in_flight))
            ahead += half_of(window.size, window.nbytes)
        return total, room, ahead

    @property
    def full(self) -> bool:
        """Whether the batches that are held take as much memory as they may."""
        return bool(self._batches) and self._held_bytes >= self.limits.max_bytes

    def add(
        self,
        payload: Payload,
        rows: int,
        nbytes: int,
        task_rows: int,
        now: float = 0.0,
        spared: int = 0,
    ) -> int:
        """Append the source's next batch, cut into tasks of at most ``task_rows`` rows. ``spared``:
        how many more rows it has, about which nobody is asked.

        A batch without rows needs a teacher too: only it knows the outputs' shapes. Returns the
        batch's number.
        """
        batch: BatchState[Payload] = BatchState(
            self._next_batch, payload, nbytes, self._next_task_id, rows, task_rows, now
        )
        batch.spared = spared
        self._next_batch += 1
        self._batches[batch.number] = batch
        self._held_bytes += nbytes
        batch.parts = [None] * max(0 if spared else 1, -(-rows // task_rows))
        batch.missing = len(batch.parts)
        if not batch.missing:
            self._finish(batch)
        for part in range(batch.missing):
            self._waiting.append(self._new_task(batch, part))
        self._next_task_id += batch.missing
        return batch.number

    def _new_task(self, batch: BatchState[Payload], part: int) -> int:
        start = part * batch.task_rows
        stop = min(batch.rows, start + batch.task_rows)
        task = Task(batch.first_task + part, batch.number, part, start, stop)
        self._tasks[task.id] = task
        return task.id

    def add_error(self, error: BaseException) -> None:
        """The source raised: the error takes the next batch's place in the order."""
        batch: BatchState[Payload] = BatchState(self._next_batch, None, 0, error=error)
        self._next_batch += 1
        self._batches[batch.number] = batch
        self._finished[batch.number] = None

    # --- the student ------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Batches that were added and not taken."""
        return len(self._batches)

    @property
    def waiting(self) -> int:
        """Tasks that no teacher has yet."""
        return len(self._waiting)

    def payload(self, task: Task) -> Payload:
        """What ``add`` was given for the batch of a task that ``next_tasks`` has just returned."""
        payload = self._batches[task.batch].payload
        assert payload is not None, "a batch that is an error has no tasks"
        return payload

    def since(self, task: Task) -> float:
        """When the batch was added of a task whose answer has just been kept."""
        return self._batches[task.batch].since

    @property
    def ready(self) -> bool:
        """Whether ``take`` would return something."""
        return self._head in self._finished if self.in_order else bool(self._finished)

    @property
    def waiting_since(self) -> Optional[float]:
        """When the first batch that was not taken was added; None if there is none, or it is
        finished.
        """
        batch = self._batches.get(self._head)
        return None if batch is None or batch.complete else batch.since

    @property
    def head_since(self) -> Optional[float]:
        """When the first batch that was not taken was added; None if there is none."""
        batch = self._batches.get(self._head)
        return None if batch is None else batch.since

    def take(self) -> Optional[Finished[Payload]]:
        """The next batch in order, if it is finished; where the order is none, whichever is."""
        if not self.ready:
            return None
        batch = self._batches.pop(self._head if self.in_order else next(iter(self._finished)))
        del self._finished[batch.number]
        self._ready_bytes -= batch.nbytes
        self._held_bytes -= batch.nbytes
        while self._head < self._next_batch and self._head not in self._batches:
            self._head += 1
        if batch.error is None:
            self.counters.batches += 1
            self.counters.rows += batch.rows + batch.spared
            self.counters.work += batch.work
            self.counters.bytes += batch.nbytes
        tasks = range(batch.first_task, batch.first_task + len(batch.parts))
        return Finished(batch.payload, batch.parts, batch.error, batch.number, tasks)

    def withdraw(self, number: int) -> None:
        """Nobody waits for this batch any more: unless it is finished, it becomes an error."""
        batch = self._batches.get(number)
        if batch is not None and not batch.complete:
            self._fail(batch, ReaderError("it was withdrawn"))

    def clear(self) -> None:
        """Forget all batches (the student has left the epoch). Answers under way are ignored."""
        for teacher in self.teachers.values():
            teacher.unwanted.update(teacher.in_flight)
        self._batches.clear()
        self._tasks.clear()
        self._waiting.clear()
        self._finished.clear()
        self._head = self._next_batch
        self._ready_bytes = self._held_bytes = 0

    def start_over(self) -> None:
        """Forget all answers that were not taken: what is asked for is to be of another model. Call
        it when the teachers of the one before have left.
        """
        for batch in self._batches.values():
            if batch.error is None and batch.parts:
                self._start_over(batch)

    def _start_over(self, batch: BatchState[Payload]) -> None:
        if self._finished.pop(batch.number, 0) is None:
            self._ready_bytes -= batch.nbytes
        self._held_bytes -= batch.answer_bytes
        batch.nbytes -= batch.answer_bytes
        batch.answer_bytes = batch.work = 0
        for part in range(len(batch.parts)):
            if batch.first_task + part not in self._tasks:
                batch.parts[part] = None
                bisect.insort(self._waiting, self._new_task(batch, part))
        batch.missing = len(batch.parts)

    @property
    def ready_batches(self) -> int:
        """Finished batches that were not taken, in or out of order."""
        return len(self._finished)

    @property
    def low(self) -> bool:
        """Whether the finished volume is under the lower threshold."""
        limits = self.limits
        few = self.ready_batches < min(limits.low_batches, limits.high_batches)
        return few and self._ready_bytes < min(limits.low_bytes, limits.high_bytes)

    @property
    def high(self) -> bool:
        """Whether the finished volume has reached the upper threshold."""
        limits = self.limits
        return self.ready_batches >= limits.high_batches or self._ready_bytes >= limits.high_bytes

    # --- teachers come and go ---------------------------------------------------------------

    def expect(self, known: Set[str]) -> None:
        """Teachers that may still be asked, connected or not."""
        self._known = known

    def join(self, name: str, now: float) -> None:
        """A teacher is connected and can be sent tasks."""
        self.teachers[name] = TeacherState(name, Window(self.limits.window), last_heard=now)

    def leave(self, name: str, reason: str, blame: bool) -> None:
        """A teacher's connection has ended: what was in flight there is first in line again.

        ``blame``: the tasks may be the cause (the teacher died or broke with them, it did not just
        leave), so it counts as an attempt for the oldest of them, the one it was working on, and
        each travels alone from now on.
        """
        teacher = self.teachers.pop(name, None)
        if teacher is None:
            return
        self.counters.lost_teachers += blame
        suspects = list(teacher.in_flight) if blame else []
        for task_id in list(teacher.in_flight):
            task = self._release(teacher, task_id)
            if task is None:
                continue
            if suspects and task_id == suspects[0]:
                task.losses.append(reason)
            task.alone |= blame
            self._retry(task)

    def retire(self, name: str, retiring: bool) -> None:
        """Send a teacher nothing more (or, if it has come back, something again)."""
        if name in self.teachers:
            self.teachers[name].retiring = retiring

    # --- teachers and tasks -----------------------------------------------------------------

    def next_task(self, name: str, now: float) -> Optional[Task]:
        """The task that this teacher should be sent now, marked as in flight there; or None."""
        teacher = self.teachers.get(name)
        if teacher is None or not teacher.has_room(now):
            return None
        task = self._hedge_for(teacher, now)
        if task is None:
            task = self._first_in_line_for(teacher)
            if task is None:
                return None
            self._batches[task.batch].sent[task.id] = None
        teacher.in_flight[task.id] = now
        in_flight = len(teacher.in_flight)
        teacher.filled = not teacher.window.room(in_flight, now)
        if teacher.window.is_quiet(in_flight):
            teacher.quiet.add(task.id)
        task.sent_to[name] = now
        self.counters.tasks_sent += 1
        return task

    def next_tasks(self, name: str, now: float) -> list[Task]:
        """The same for as many as are sent together (see ``Window``): small ones, up to this
        teacher's share of those that wait. Empty if there is none.
        """
        tasks: list[Task] = []
        if name not in self.teachers:
            return tasks
        able = sum(teacher.has_room(now) for teacher in self.teachers.values())
        most = min(len(self._waiting) / max(1, able), self.teachers[name].together(now))
        nbytes = 0.0
        while not tasks or (len(tasks) < most and nbytes < TOGETHER):
            task = self.next_task(name, now)
            if task is None:
                break
            tasks.append(task)
            nbytes += self._bytes_of(task.id)
        return tasks

    def preferred(self, names: Iterable[str], now: float) -> list[str]:
        """Those of ``names`` with room for a task, by who would be done first with it."""
        teachers = [self.teachers[name] for name in names if name in self.teachers]
        able = [teacher for teacher in teachers if teacher.has_room(now)]
        able.sort(key=lambda teacher: (len(teacher.in_flight) + 1) * teacher.pace)
        return [teacher.name for teacher in able]

    def _first_in_line_for(self, teacher: TeacherState) -> Optional[Task]:
        only_head = self.high
        for index, task_id in enumerate(self._waiting):
            task = self._tasks[task_id]
            if only_head and task.batch != self._head:
                return None
            if self._may_take(teacher, task):
                del self._waiting[index]
                return task
        return None

    def _may_take(self, teacher: TeacherState, task: Task) -> bool:
        """Not one that it has refused; one that it has failed at only if all others have too."""
        if teacher.name in task.refusals:
            return False
        return teacher.name not in task.failures or task.failures.keys() >= self.teachers.keys()

    def _hedge_for(self, teacher: TeacherState, now: float) -> Optional[Task]:
        if now < self.next_hedge():
            return None
        for task_id in self._blocking():
            task = self._tasks[task_id]
            if teacher.name not in task.sent_to and self._may_take(teacher, task):
                self._batches[task.batch].sent.pop(task_id)
                self.counters.hedged += 1
                return task
        return None

    def _blocking(self) -> Iterable[int]:
        """Tasks in flight at one teacher, oldest first, without which the student cannot go on."""
        if not self.in_order:
            return chain.from_iterable(batch.sent for batch in self._batches.values())
        batch = self._batches.get(self._head)
        return () if batch is None or batch.complete else batch.sent

    def next_hedge(self) -> float:
        """When the oldest blocking task may be sent to a second teacher (infinity: not at all)."""
        allowed = 2 + self.limits.hedge_share * self.counters.tasks_sent
        if len(self.teachers) < 2 or self.counters.hedged >= allowed or not self._usual_latency:
            return float("inf")
        oldest = next(iter(self._blocking()), None)
        if oldest is None:
            return float("inf")
        sent_to = self._tasks[oldest].sent_to
        usual = self._usual_latency * max(self.teachers[name].patience(oldest) for name in sent_to)
        since = min(sent_to.values())
        return since + max(self.limits.hedge_min, self.limits.hedge_factor * usual)

    def weigh(self, name: str, task_id: int, work: int) -> None:
        """A task of sequences that this teacher has is of so much work (otherwise its rows are)."""
        teacher = self.teachers.get(name)
        if teacher is not None and task_id in teacher.in_flight:
            teacher.weights[task_id] = work

    def answered(self, name: str, outputs: Sequence[Output], now: float) -> list[bool]:
        """A teacher's answer to a request, of one task or several: for a task the first outputs
        win, and others are dropped. Which were kept.
        """
        teacher = self.teachers.get(name)
        if teacher is None:
            return [self._keep(output, self._rows_of(output.task_id), False) for output in outputs]
        in_flight = [each.task_id for each in outputs if each.task_id in teacher.in_flight]
        at_head = self._learn(teacher, in_flight, now) if in_flight else 0.0
        kept = []
        for output in outputs:
            task_id = output.task_id
            work, wanted = self._rows_of(task_id), False
            if task_id in teacher.in_flight:
                work = teacher.weights.get(task_id, work)
                wanted = task_id not in teacher.unwanted
                self._count(teacher, task_id, work, at_head, now)
                at_head = 0.0
                teacher.failures_in_a_row, teacher.unavailable = 0, ""
                self._release(teacher, task_id)
            kept.append(self._keep(output, work, wanted))
        return kept

    def _rows_of(self, task_id: int) -> int:
        """0 if nobody waits for the task now."""
        task = self._tasks.get(task_id)
        return task.stop - task.start if task else 0

    def _keep(self, output: Output, work: int, wanted: bool) -> bool:
        """Take a task's outputs, if these are the first; ``wanted``: if not, they are counted."""
        task_id, outputs, nbytes = output
        task = self._tasks.pop(task_id, None)
        if task is None:
            self.counters.duplicates += wanted
            return False
        self._stop_waiting(task_id)  # lost with its teacher, whose answer had arrived after all
        batch = self._batches[task.batch]
        batch.sent.pop(task_id, None)
        batch.parts[task.part] = outputs
        batch.work += work
        batch.missing -= 1
        batch.nbytes += nbytes
        batch.answer_bytes += nbytes
        self._held_bytes += nbytes
        if not batch.missing and batch.error is None:
            self._finish(batch)
        return True

    def _finish(self, batch: BatchState[Payload]) -> None:
        self._finished[batch.number] = None
        self._ready_bytes += batch.nbytes

    def _stop_waiting(self, task_id: int) -> None:
        index = bisect.bisect_left(self._waiting, task_id)
        if index < len(self._waiting) and self._waiting[index] == task_id:
            del self._waiting[index]

    def refused(self, name: str, task_id: int, message: str, now: float) -> None:
        """A teacher says that the request itself is wrong. Two of them, or all there are, decide.

        One that refuses what others take hosts another model: it is asked less and less.
        """
        task = self._unanswered(name, task_id, now)
        self._pause(name, now)
        self.counters.failed += 1
        if task is None:
            return
        task.refusals[name] = message
        task.refused_since = task.refused_since or now
        if len(task.refusals) >= 2 or task.refusals.keys() >= (self._known | self.teachers.keys()):
            self._give_up_refused(task)
        else:
            self._retry(task)

    def _give_up_refused(self, task: Task) -> None:
        said = "; ".join(f"{teacher}: {text}" for teacher, text in task.refusals.items())
        self._give_up(task, BatchRefused(f"{self._describe(task)} was refused: {said}"))

    def reject(self, name: str, task_id: int, error: ReaderError) -> None:
        """A task cannot be sent at all: the error takes its batch's place in the order."""
        teacher = self.teachers.get(name)
        if teacher is not None and task_id in teacher.in_flight:
            self._release(teacher, task_id)
        if task_id in self._tasks:
            self._give_up(self._tasks[task_id], error)

    def failed(self, name: str, task_id: int, message: str, now: float) -> None:
        """A teacher could not compute a task: another one tries, then all again. Whether the rows
        or the teachers are at fault cannot be told (Paddle Serving says the same of both), so a few
        answers of that kind decide. A teacher that keeps failing is given a pause.
        """
        task = self._unanswered(name, task_id, now)
        self._pause(name, now)
        self.counters.failed += 1
        if task is None:
            return
        task.failures.setdefault(name, []).append(message)
        if sum(map(len, task.failures.values())) < self.limits.max_failures:
            self._retry(task)
        else:
            said = "; ".join(
                f"{teacher}: {text}"
                for teacher, texts in task.failures.items()
                for text in dict.fromkeys(texts)
            )
            self._give_up(task, BatchRefused(f"{self._describe(task)} cannot be computed: {said}"))

    def _pause(self, name: str, now: float) -> None:
        """Leave a teacher alone, longer each time until it answers."""
        teacher = self.teachers.get(name)
        if teacher is not None:
            teacher.failures_in_a_row += 1
            teacher.suspended_until = now + min(1.0, 0.05 * 2 ** min(8, teacher.failures_in_a_row))

    def unavailable(self, name: str, task_id: int, message: str, now: float) -> None:
        """A teacher is busy or draining: the task goes elsewhere, and it is left alone a moment."""
        task = self._unanswered(name, task_id, now)
        teacher = self.teachers.get(name)
        if teacher is not None:
            teacher.suspended_until = now + 0.2
            teacher.unavailable = message
        if task is not None:
            self._retry(task)

    def failed_together(self, name: str, task_ids: Sequence[int], now: float) -> None:
        """A request of these tasks has failed, nobody knows because of which: each is sent again,
        alone. A teacher that fails at many of them is sent no more such.
        """
        self.counters.failed += 1
        if name in self.teachers:
            self.teachers[name].failures_together += 1
        for task_id in task_ids:
            task = self._unanswered(name, task_id, now)
            if task is not None:
                task.alone = True
                self._retry(task)

    def _unanswered(self, name: str, task_id: int, now: float) -> Optional[Task]:
        teacher = self.teachers.get(name)
        if teacher is None or task_id not in teacher.in_flight:
            return None
        teacher.last_heard = now
        return self._release(teacher, task_id)

    def _release(self, teacher: TeacherState, task_id: int) -> Optional[Task]:
        """No longer in flight at this teacher; the task, if its batch is still wanted."""
        del teacher.in_flight[task_id]
        teacher.weights.pop(task_id, None)
        teacher.unwanted.discard(task_id)
        teacher.quiet.discard(task_id)
        task = self._tasks.get(task_id)
        if task is not None:
            task.sent_to.pop(teacher.name, None)
            if not task.sent_to:
                self._batches[task.batch].sent.pop(task_id, None)
        return task

    def _retry(self, task: Task) -> None:
        """First in line again, unless it is in flight elsewhere or has used up its attempts."""
        if task.sent_to:
            return
        if len(task.losses) >= self.limits.max_attempts:
            said = "; ".join(dict.fromkeys(task.losses))
            error = ReaderError(
                f"{len(task.losses)} attempts at {self._describe(task)} failed: {said}"
            )
            self._give_up(task, error)
            return
        self.counters.resent += 1
        bisect.insort(self._waiting, task.id)

    def _give_up(self, task: Task, error: ReaderError) -> None:
        """The whole batch becomes an error, in its turn."""
        self._fail(self._batches[task.batch], error)

    def fail_first(self, error: ReaderError) -> None:
        """The first batch that was not taken becomes an error, if it is not finished."""
        batch = self._batches.get(self._head)
        if batch is not None and not batch.complete:
            self._fail(batch, error)

    def fail_all(self, why: str) -> None:
        """Every batch that is not finished becomes an error, each a ReaderError of its own."""
        for batch in self._batches.values():
            if not batch.complete:
                self._fail(batch, ReaderError(why))

    def _fail(self, batch: BatchState[Payload], error: ReaderError) -> None:
        self._drop_tasks(batch)
        batch.parts.clear()
        batch.error = error
        self._held_bytes -= batch.nbytes
        batch.nbytes = batch.answer_bytes = 0
        self._finished[batch.number] = None

    def _drop_tasks(self, batch: BatchState[Payload]) -> None:
        """Ask for nothing more of a batch. What teachers are at already is ignored."""
        for task_id in range(batch.first_task, batch.first_task + len(batch.parts)):
            task = self._tasks.pop(task_id, None)
            if task is not None:
                self._stop_waiting(task_id)
                for name in task.sent_to.keys() & self.teachers.keys():
                    self.teachers[name].unwanted.add(task_id)
        batch.sent.clear()

    def _describe(self, task: Task) -> str:
        kind = "batch" if self.in_order else "request"
        return f"rows {task.start} to {task.stop} of {kind} {task.batch}"

    def _learn(self, teacher: TeacherState, task_ids: Sequence[int], now: float) -> float:
        """Update what is usual of an answer (Jacobson's estimator, RFC 6298), to all these tasks.
        Seconds that it took at the queue's head.
        """
        at_head = now - max(teacher.last_heard, teacher.in_flight[task_ids[0]])
        teacher.last_heard = now
        if not teacher.answered:
            teacher.usual, teacher.deviation = at_head, at_head / 2
        else:
            teacher.deviation += (abs(at_head - teacher.usual) - teacher.deviation) / 4
            teacher.usual += (at_head - teacher.usual) / 8
        work = sum([teacher.weights.get(each, self._rows_of(each)) for each in task_ids])
        if work:  # not of what nobody waits for now
            usual_work = teacher.usual_work or work
            teacher.usual_work = usual_work + (work - usual_work) / 8
        return at_head

    def _count(
        self, teacher: TeacherState, task_id: int, work: int, at_head: float, now: float
    ) -> None:
        """Count a task, and update the teacher's window; ``at_head``: seconds after the one before
        it, or after it was sent.
        """
        sent, rows = teacher.in_flight[task_id], self._rows_of(task_id)
        teacher.recent.append(AnswerRecord(now, now - sent, rows, work))
        teacher.rows += rows
        self._recent.append(now - sent)
        self._latencies.add(now - sent)
        if teacher.answered % 8 == 0 or not self._usual_latency:
            self._usual_latency = statistics.median(self._recent)
        teacher.answered += 1
        nbytes = self._bytes_of(task_id)
        teacher.window.answered(now - sent, at_head, nbytes, task_id in teacher.quiet, now)
        teacher.window.adapt(self.low, self.high, teacher.filled)

    def _bytes_of(self, task_id: int) -> float:
        """What is sent for a task; 0 if nobody waits for it now."""
        task = self._tasks.get(task_id)
        batch = self._batches.get(task.batch) if task else None
        return (batch.nbytes - batch.answer_bytes) / len(batch.parts) if batch else 0.0

    def rates(self) -> dict[str, float]:
        """Work per second that each connected teacher delivers when it is kept busy."""
        return {
            teacher.name: round(teacher.usual_work / teacher.usual, 1)
            for teacher in self.teachers.values()
            if teacher.answered >= _KNOWN_AFTER and teacher.usual > 0 and teacher.usual_work
        }

    def stats(self, now: float) -> dict[str, Any]:
        """The counters, the buffer, and what each connected teacher does, as plain values."""
        teachers = {}
        for teacher in self.teachers.values():
            latencies = sorted(answer.latency for answer in teacher.recent)
            rows_per_second, work_per_second = rate(teacher.recent, now)
            teachers[teacher.name] = {
                "answered": teacher.answered,
                "rows": teacher.rows,
                "rows_per_second": rows_per_second,
                "work_per_second": work_per_second,
                "latency": quantiles(latencies),
                "in_flight": len(teacher.in_flight),
                "window": teacher.window.size,
            }
        level = "low" if self.low else "high" if self.high else "normal"
        limits, histogram = self.limits, self._latencies
        buffer = {"batches": self.ready_batches, "bytes": self._ready_bytes, "level": level}
        buffer["low_batches"] = min(limits.low_batches, limits.high_batches)
        buffer["high_batches"] = limits.high_batches
        latency = {"sum": histogram.sum, "buckets": histogram.buckets()}
        return {
            **asdict(self.counters),
            "buffer": buffer,
            "latency": {**quantiles(sorted(self._recent)), **latency},
            "teachers": teachers,
        }

    # --- time -------------------------------------------------------------------------------

    def excuse(self, seconds: float, now: float) -> None:
        """Nothing has run here for so many seconds until now (something kept the interpreter to
        itself): answers may lie unread, so the time counts against nobody.
        """
        for teacher in self.teachers.values():
            teacher.last_heard = min(now, teacher.last_heard + seconds)
            for task_id, sent in teacher.in_flight.items():
                teacher.in_flight[task_id] = min(now, sent + seconds)
        for task in self._tasks.values():
            for name, sent in task.sent_to.items():
                task.sent_to[name] = min(now, sent + seconds)

    @property
    def usable(self) -> bool:
        """Whether there is a teacher for what the student waits for: it takes work, and it has some
        of that, or may have it.
        """
        batch = self._batches.get(self._head)
        if batch is None or batch.complete:
            return bool(self.teachers)
        able = [teacher for teacher in self.teachers.values() if not teacher.unavailable]
        return any(
            teacher.name in task.sent_to or (not teacher.retiring and self._may_take(teacher, task))
            for task in self._head_tasks()
            for teacher in able
        )

    @property
    def blocked(self) -> bool:
        """Whether the student cannot go on before a teacher has answered."""
        batch = self._batches.get(self._head)
        return batch is not None and not batch.complete

    def _head_tasks(self) -> Iterator[Task]:
        """Tasks without which the student cannot go on."""
        batch = self._batches.get(self._head)
        if batch is not None:
            tasks = range(batch.first_task, batch.first_task + len(batch.parts))
            yield from (self._tasks[task_id] for task_id in tasks if task_id in self._tasks)

    def overdue(self, now: float) -> dict[str, str]:
        """Teachers that have been silent for too long, and how long that was, in words.

        The caller ends their connections and calls ``leave``.
        """
        late = {}
        for teacher in self.teachers.values():
            if not teacher.in_flight:
                continue
            silent = now - teacher.waiting_since()
            oldest = now - min(teacher.in_flight.values())
            if silent >= teacher.silence_limit(self.limits):
                late[teacher.name] = f"silent for {silent:.1f} s (usually {teacher.usual:.3f} s)"
            elif oldest >= self.limits.max_timeout:
                late[teacher.name] = f"a request was not answered for {oldest:.1f} s"
        return late

    def expire_refusals(self, now: float) -> None:
        """Give up on tasks that nobody connected takes, once other teachers had time to come."""
        for task in self._refused_by_all():
            if now >= task.refused_since + self.limits.refusal_patience:
                self._give_up_refused(task)

    def _refused_by_all(self) -> list[Task]:
        return [
            self._tasks[task_id]
            for task_id in self._waiting
            if self._tasks[task_id].refusals
            and self._tasks[task_id].refusals.keys() >= self.teachers.keys()
        ]

    def waits_for(self, now: float) -> str:
        """What keeps the student waiting, in words."""
        why = {
            f"{teacher.name} takes no work ({teacher.unavailable})": None
            for teacher in self.teachers.values()
            if teacher.unavailable
        }
        for task in self._head_tasks():
            for name, text in task.refusals.items():
                why[f"{name} refused it ({text})"] = None
            for name, texts in task.failures.items():
                why[f"{name} failed at it ({texts[-1]})"] = None
        return "; ".join([self._waits_for(now), *why])

    def _waits_for(self, now: float) -> str:
        if not self.teachers:
            return "no teacher is connected"
        batch = self._batches.get(self._head)
        if batch is None:
            return "the source has not yielded the next batch"
        held = [
            f"{name} for {now - since:.1f} s"
            for task in self._head_tasks()
            for name, since in task.sent_to.items()
        ]
        which = "the next batch" if self.in_order else "the oldest request"
        parts = f"{batch.missing} of {len(batch.parts)} parts of {which}"
        if held:
            return f"{parts} are at " + ", ".join(held)
        return f"{parts} wait for a teacher to have room"
