"""Requests in, outputs out: shared memory, batches, workers. Knows nothing of sockets.

A request's arrays lie in the input arena (or are copied there); what a worker is told is where.
One asyncio loop owns all state.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, Optional, Union

import numpy as np

from edl.errors import ConfigError, WireError
from edl.serving.server.batching import Batcher, batch_key, sequence_length
from edl.serving.server.gate import Guest
from edl.serving.server.memory import RequestMemory
from edl.serving.server.metrics import Metrics
from edl.serving.server.rate import Rate
from edl.serving.server.sharing import Lease
from edl.serving.wire import frame, labels, narrow, times
from edl.serving.wire.description import BATCH_ROWS, Description, TensorSpec
from edl.serving.wire.fetches import answer_specs, resolve
from edl.serving.wire.labels import LabelForm
from edl.serving.wire.messages import Request, Room
from edl.serving.wire.tensor import Place, as_text_array
from edl.serving.wire.times import ServerTimes
from edl.serving.worker import control
from edl.serving.worker.child import WorkerDied
from edl.serving.worker.handles import BatchOutcome, Lent, Result, Worker, WorkerError

logger = logging.getLogger(__name__)

LOADING = "busy: this teacher is still loading its model"

_WATCH_EVERY = 5.0

#: Seconds until a worker that died of nothing is replaced: one that always does takes no core.
_REPLACED_AFTER = 0.5

#: Batches at one worker: the one that it computes, the next, which it gathers meanwhile, and one
#: that is there when that begins. Only full ones are given ahead of time.
_BATCHES_AT = 3

#: Lists of so many fetches of which it is remembered what they come to.
_MOST_REMEMBERED, _MOST_FETCHES = 256, 32


class Refusal(Exception):
    """A request that gets an error answer: brpc's error code, and a text for people."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Course:
    """When what happened to a request, by ``time.monotonic``: it was ``queued``, a worker had
    ``begun`` with its batch, and ``computed`` it. The batch had so many ``rows`` and ``requests``.
    ``worker``: which one, from 0.
    """

    queued: float
    begun: float
    computed: float
    rows: int
    requests: int
    worker: int

    def times(self, arrived: float, encoded: float) -> ServerTimes:
        """What is told of it, when it arrived and its answer was encoded then."""
        decode, queue = self.queued - arrived, self.begun - self.queued
        compute, encode = self.computed - self.begun, encoded - self.computed
        return ServerTimes(decode, queue, compute, encode, self.rows, self.requests, self.worker)


@dataclass
class Outputs:
    """A request's outputs by fetch name. They lie in shared memory until ``release`` is called.
    ``places``: where those lie that are in the client's own. ``course``: of a request that has
    asked for times, and was computed.
    """

    arrays: dict[str, np.ndarray]
    release: Callable[[], None]
    places: Mapping[str, Place] = field(default_factory=dict)
    course: Optional[Course] = None


Outcome = Union[Outputs, Refusal]


@dataclass
class Job:
    """One accepted request. ``blocks`` of the input arena are the engine's to free. ``suspect``:
    it was in a batch that failed or killed a worker, so it is computed alone from now on.
    ``length``: tokens of a row; 0 where rows are no sequences. ``lease``: the client's own memory,
    if it has handed any over; ``room``: where the answer may be laid there. ``times``: it is to be
    told where its time went.
    """

    client: Guest
    fetches: list[str]
    rows: int
    blocks: list[int]
    finish: Callable[[Outcome], None]
    since: float
    lease: Optional[Lease] = None
    room: Optional[Room] = None
    key: Hashable = None
    refs: dict[str, list[Any]] = field(default_factory=dict)
    suspect: bool = False
    length: int = 0
    times: bool = False


@dataclass(eq=False)
class Batch:
    """Requests that a worker computes together, first in line there ``since`` then. ``work``: rows
    or tokens, whichever is counted.
    """

    jobs: list[Job]
    work: int
    since: float


class Engine:
    """Computes requests on workers, several requests in a batch where that is possible.

    ``load_timeout``, ``run_timeout``: seconds that a worker may take for loading its model and for
    one batch; one that takes longer is killed and replaced.
    """

    def __init__(
        self,
        memory: RequestMemory,
        workers: Sequence[Worker],
        batcher: Batcher[Job],
        metrics: Metrics,
        load_timeout: float,
        run_timeout: float,
    ) -> None:
        self._memory = memory
        self._inputs = memory.arena
        self._workers = list(workers)
        self._ready: set[Worker] = set()
        self._batcher = batcher
        self._metrics = metrics
        self._load_timeout = load_timeout
        self._run_timeout = run_timeout
        self._running: dict[Worker, deque[Batch]] = {}  # of those at work, in their order
        self._broken = ""
        self._rate = Rate()
        self._timer: Optional[asyncio.TimerHandle] = None
        self._tasks: set[asyncio.Task] = set()
        self._asked: dict[tuple[str, ...], Asked] = {}
        self.loaded = False
        self.description = Description({}, {})
        metrics.queued_requests.set_function(lambda: len(batcher))
        metrics.queued_rows.set_function(lambda: batcher.rows)
        metrics.workers_ready.set_function(lambda: len(self._ready))

    @property
    def ready(self) -> bool:
        """Whether at least one worker can compute."""
        return bool(self._ready)

    @property
    def rate(self) -> float:
        """Rows per second (tokens per second, where rows are sequences) that all workers together
        compute when they are kept busy; 0 until that is known.
        """
        seconds = self._rate.seconds_each
        return len(self._ready) / seconds if seconds > 0 else 0.0

    def say(self, key: str, value: Any) -> None:
        """Add something to the description (plain values)."""
        self.description = replace(self.description, extra={**self.description.extra, key: value})

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def start(self) -> None:
        """Load the model in every worker. Raises ModelError if one cannot."""
        descriptions = await asyncio.gather(
            *(worker.start(self._load_timeout) for worker in self._workers)
        )
        first = descriptions[0]
        able = {each.DESCRIBED: each.VERSION for each in (labels, narrow, times)}
        rows = self._batcher.max_rows
        self.description = replace(first, extra={**first.extra, **able, BATCH_ROWS: rows})
        for worker in self._workers:
            self._add(worker)
        self.loaded = True
        self._spawn(self._watch())

    async def stop(self) -> None:
        """End the workers at once; what they compute is not answered."""
        self._ready.clear()
        self._running.clear()
        if self._timer:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    # --- requests ---------------------------------------------------------------------------

    def submit(
        self,
        request: Request,
        blocks: list[int],
        client: Guest,
        finish: Callable[[Outcome], None],
        lease: Optional[Lease] = None,
    ) -> bool:
        """Accept a request; ``finish`` gets its outcome exactly once, perhaps before this returns.

        ``blocks`` and ``lease``, where the request's arrays may lie, are the engine's from here on.
        ``client`` is whom the teacher's time is shared by. Whether the request was right, even if
        it could not be taken.
        """
        now = asyncio.get_running_loop().time()
        job = Job(client, [], 0, list(blocks), finish, now, lease, times=request.times)
        try:
            if lease is not None and request.room is not None:
                job.room = lease.room(request.room)
            outcome = self._prepare(job, request)
        except Refusal as refusal:
            outcome = refusal
        except Exception as error:
            logger.exception("taking a request of %s failed", client.peer)
            outcome = Refusal(frame.EINTERNAL, f"the teacher failed: {_said(error)}")
        if outcome is not None:
            self._finish(job, outcome)
        else:
            self._enqueue(job)
            self._dispatch()
        return job.rows > 0

    def _prepare(self, job: Job, request: Request) -> Optional[Outcome]:
        """Check a request and place it for the workers; its outcome, if it has one already. Raises
        Refusal.
        """
        if not self.loaded:
            raise Refusal(frame.ELIMIT, LOADING)
        asked = self._read_fetches(tuple(request.fetches))
        job.fetches = asked.fetches
        job.rows, job.length = check_feeds(self.description, asked.feeds, request)
        if not job.rows:
            return Outputs(self._no_rows(job.fetches), _nothing)
        if self._batcher.is_full(job.client):
            raise Refusal(frame.ELIMIT, f"busy: {len(self._batcher)} requests wait already")
        if self._broken:
            raise Refusal(frame.ELIMIT, self._broken)
        placed = {name: self._place(job, name, array) for name, array in request.feeds.items()}
        own = {name: array for name, array in placed.items() if name in self.description.feeds}
        job.key = batch_key(own, asked.outputs, self.description.feeds)
        return None

    def _read_fetches(self, names: tuple[str, ...]) -> Asked:
        """See ``read_fetches``; most requests ask for the same."""
        asked = self._asked.get(names)
        if asked is None:
            asked = read_fetches(self.description, names)
            if len(self._asked) >= _MOST_REMEMBERED:
                self._asked.clear()
            if len(names) <= _MOST_FETCHES:
                self._asked[names] = asked
        return asked

    def _enqueue(self, job: Job, again: bool = False) -> None:
        key = id(job) if job.suspect else job.key
        now = asyncio.get_running_loop().time()
        self._batcher.add(job, job.rows, key, job.client, now, job.length, again)

    def _place(self, job: Job, name: str, array: np.ndarray) -> np.ndarray:
        """A feed as it lies in the input arena, or in the client's memory; one that lies in neither
        is copied to the arena.
        """
        self._check_width(name, array)
        offset = self._inputs.offset_of(array)
        place = job.lease.place(array) if offset is None and job.lease is not None else None
        if place is not None:
            job.refs[name] = control.tensor_ref(place[1], array, place[0])
            return array
        if offset is None:
            try:
                array = as_text_array(name, array, self._memory.budget.largest_claim)
            except WireError as error:
                raise _refusal(str(error)) from None
            block = self._memory.try_block(job.client, array.nbytes)
            if block is None:
                raise Refusal(frame.ELIMIT, "busy: this teacher's request memory is full")
            job.blocks.append(block)
            offset = block
            control.resolve(self._inputs, control.tensor_ref(offset, array))[...] = array
        job.refs[name] = control.tensor_ref(offset, array)
        return array

    def _check_width(self, name: str, array: np.ndarray) -> None:
        """Raises Refusal for a feed that takes too much memory once it is widened."""
        spec, limit = self.description.feeds.get(name), self._memory.budget.largest_body
        if spec is not None and narrow.widened_bytes(spec, array) > max(limit, array.nbytes):
            raise _refusal(
                f"feed {name!r} would take more than {limit >> 20} MiB as {spec.dtype}: send fewer "
                "rows at a time"
            )

    def _no_rows(self, fetches: list[str]) -> dict[str, np.ndarray]:
        """What any model answers to no rows: outputs of no rows."""
        specs = output_specs(self.description, fetches)
        return {
            name: np.empty((0, *(max(size, 0) for size in spec.shape)), spec.dtype)
            for name, spec in specs.items()
        }

    def _finish(self, job: Job, outcome: Outcome) -> None:
        for block in job.blocks:
            self._memory.free(block)
        job.blocks.clear()
        if job.lease is not None:
            if isinstance(outcome, Outputs):
                outcome.places = job.lease.places(outcome.arrays, job.room)
            job.lease.end()
        if isinstance(outcome, Refusal):
            self._metrics.last_error = str(outcome)
        job.finish(outcome)

    def unmap(self, number: int) -> None:
        """A client's memory is not needed any longer (see ``sharing``)."""
        for worker in self._workers:
            worker.unmap(number)

    def _refuse_all(self, jobs: list[Job], text: str) -> None:
        for job in jobs:
            self._finish(job, Refusal(frame.EINTERNAL, text))

    # --- batches ----------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give workers what is due. The only place that decides this.

        One that computes is given the next batch already if that is full. What is not full is kept
        while it cannot be computed: others may join it.
        """
        loop = asyncio.get_running_loop()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while len(self._batcher) and (worker := self._with_room()) is not None:
            now, idle = loop.time(), worker not in self._running
            jobs = self._batcher.take(now, ahead=not idle)
            if jobs:
                self._compute(worker, jobs, now)
                continue
            due = self._batcher.due()
            if idle and due is not None:
                self._timer = loop.call_at(due, self._dispatch)
            return

    def _with_room(self) -> Optional[Worker]:
        """The worker that has least to do, if it can be given a batch."""
        worker = min(self._ready, key=self._batches_at, default=None)
        return None if worker is None or self._batches_at(worker) >= _BATCHES_AT else worker

    def _batches_at(self, worker: Worker) -> int:
        return len(self._running.get(worker, ()))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("the engine's work ended with an error", exc_info=task.exception())

    def _compute(self, worker: Worker, jobs: list[Job], now: float) -> None:
        """Give a worker a batch."""
        rows = sum(job.rows for job in jobs)
        tokens = sum(job.rows * job.length for job in jobs)
        self._metrics.rows.inc(rows)
        self._metrics.tokens.inc(tokens)
        self._metrics.batch_rows.observe(rows)
        for job in jobs:
            self._metrics.queue_seconds.observe(now - job.since)
        batch = Batch(jobs, tokens or rows, now)
        self._running.setdefault(worker, deque()).append(batch)
        on_done = partial(self._computed, worker, batch)
        try:
            refs, fetches = [job.refs for job in jobs], [job.fetches for job in jobs]
            worker.run(refs, fetches, on_done, _lent(jobs))
        except Exception as error:  # nobody knows what state it is in
            logger.exception("talking to a worker failed")
            died = WorkerDied(f"talking to the worker failed: {_said(error)}")
            asyncio.get_running_loop().call_soon(on_done, died)

    def _computed(self, worker: Worker, batch: Batch, outcome: BatchOutcome) -> None:
        """What has become of a batch."""
        running = self._running.get(worker)
        if (
            running is None or batch not in running
        ):  # its worker was lost before it, or the engine has stopped
            return
        now = asyncio.get_running_loop().time()
        if isinstance(outcome, WorkerDied):
            del self._running[worker]
            self._bury(worker, list(running), outcome)
        else:
            first = batch is running[0]  # unless it could not be given to the worker
            running.remove(batch)
            if not running:
                del self._running[worker]
            elif first:
                running[0].since = now
            if isinstance(outcome, WorkerError):
                self._compute_each(batch.jobs, outcome)
            else:
                self._metrics.compute_seconds.observe(now - batch.since)
                self._rate.observe(batch.work, now - batch.since)
                self._answer(worker, batch, outcome, now)
        self._dispatch()

    def _compute_each(self, jobs: list[Job], error: WorkerError) -> None:
        """After a batch has failed: each of its requests alone, so that one that is at fault harms
        no other.
        """
        if len(jobs) == 1:
            self._finish(jobs[0], _failure(error))
            return
        for job in jobs:
            job.suspect = True
            self._enqueue(job, again=True)

    async def _watch(self) -> None:
        """Say which batches take long, and kill workers whose batch takes too long."""
        while True:
            await asyncio.sleep(min(_WATCH_EVERY, self._run_timeout / 2))
            now = asyncio.get_running_loop().time()
            for worker, batches in list(self._running.items()):
                since = batches[0].since
                if now - since > self._run_timeout:
                    worker.kill(f"the worker took more than {self._run_timeout:g} s")
                elif now - since > 2 * _WATCH_EVERY:
                    logger.warning("worker %s has computed for %.0f s", worker.pid, now - since)

    def _add(self, worker: Worker) -> None:
        """A worker that has loaded its model is given batches."""
        self._ready.add(worker)
        worker.when_lost(partial(self._lost, worker))

    def _lost(self, worker: Worker) -> None:
        """A worker has ended that computed nothing: no request is to blame, or to wait for it."""
        if worker in self._ready:
            self._ready.discard(worker)
            self._spawn(self._replace(worker))

    async def _replace(self, worker: Worker) -> None:
        logger.error("%s while it computed nothing", await worker.cause_of_death())
        await asyncio.sleep(_REPLACED_AFTER)
        await self._restart(worker)

    def _bury(self, worker: Worker, batches: list[Batch], error: WorkerDied) -> None:
        """A worker has died of the first batch that it had: a single request is refused, several
        are tried again alone, once, to find the one that does it. The others go elsewhere.
        """
        jobs = batches[0].jobs
        logger.error("%s while computing %d requests", error, len(jobs))
        self._ready.discard(worker)
        self._spawn(self._restart(worker))
        for job in (job for batch in batches[1:] for job in batch.jobs):
            self._enqueue(job, again=True)
        if len(jobs) == 1:
            self._refuse_all(jobs, f"{error} while computing this request")
            return
        for job in jobs:
            job.suspect = True
            self._enqueue(job, again=True)

    def _answer(self, worker: Worker, batch: Batch, result: Result, now: float) -> None:
        """Hand the outputs out."""
        jobs = batch.jobs
        unsent = len(jobs)

        def sent() -> None:
            nonlocal unsent
            unsent -= 1
            if not unsent:
                worker.free(result)

        for job, arrays in zip(jobs, list(result.outputs)):
            outputs = Outputs(arrays, sent)
            if job.times:
                outputs.course = self._course(worker, batch, job, now)
            self._finish(job, outputs)

    def _course(self, worker: Worker, batch: Batch, job: Job, now: float) -> Course:
        rows, number = sum(each.rows for each in batch.jobs), self._workers.index(worker)
        return Course(job.since, batch.since, now, rows, len(batch.jobs), number)

    async def _restart(self, worker: Worker) -> None:
        for delay in itertools.chain((0.0, 0.0, 1.0, 5.0), itertools.repeat(30.0)):
            await worker.stop(grace=0.0)
            await asyncio.sleep(delay)
            try:
                await worker.start(self._load_timeout)
            except Exception as error:  # ModelError, or no process or memory to be had
                logger.error("restarting a worker failed: %s", error)
                if delay and not self._ready:  # not just a start that was disturbed
                    self._broken = f"busy: no worker can be started ({error})"
                    for job in self._batcher.clear():
                        self._finish(job, Refusal(frame.ELIMIT, self._broken))
                continue
            self._broken = ""
            logger.warning("a worker has been restarted (pid %s)", worker.pid)
            self._metrics.worker_restarts.inc()
            self._add(worker)
            self._dispatch()
            return


def _lent(jobs: Sequence[Job]) -> Optional[Lent]:
    """The memory of clients that a batch lies in, if any."""
    memories = {
        memory.number: memory.arena
        for job in jobs
        if job.lease is not None
        for memory in job.lease.memories
    }
    return Lent(memories, [job.room for job in jobs]) if memories else None


@dataclass(frozen=True)
class Asked:
    """What a list of fetches comes to: without what was said twice, the feeds that it takes, and
    the model's own outputs.
    """

    fetches: list[str]
    feeds: dict[str, TensorSpec]
    outputs: list[str]


def read_fetches(description: Description, names: Sequence[str]) -> Asked:
    """Raises Refusal that names the fetch that is wrong. None: all that there are."""
    fetches = list(dict.fromkeys(names)) or list(description.fetches)
    try:
        feeds = {**description.feeds, **_label_feeds(description, fetches)}
        output_specs(description, fetches)
    except ConfigError as error:
        raise _refusal(str(error)) from None
    return Asked(fetches, feeds, [resolve(description, name)[0] for name in fetches])


def check_feeds(
    description: Description, wanted: Mapping[str, TensorSpec], request: Request
) -> tuple[int, int]:
    """A request's number of rows, and the tokens of each (see ``sequence_length``).

    Raises Refusal that names the feed that is wrong, and what was expected.
    """
    for name in request.feeds:
        if name not in wanted:
            raise _refusal(f"unknown feed {name!r}; this teacher's feeds: {_names(wanted)}")
    rows = set()
    for name, spec in wanted.items():
        own = name in description.feeds
        if name not in request.feeds:
            if spec.optional:
                continue
            needed = [name for name, spec in wanted.items() if not spec.optional]
            raise _refusal(f"feed {name!r} is missing; this teacher needs {_names(needed)}")
        array = request.feeds[name]
        wrong = narrow.mismatch(spec, array) if own else spec.mismatch(array)
        if wrong:
            raise _refusal(f"feed {name!r}: {wrong}")
        rows.add(len(request.feeds[name]))
    if len(rows) != 1:
        counts = ", ".join(f"{name}: {len(array)}" for name, array in request.feeds.items())
        raise _refusal(f"feeds differ in their number of rows ({counts})")
    try:
        length = sequence_length(request.feeds, wanted)
    except ValueError as error:
        raise _refusal(str(error)) from None
    return rows.pop(), length


def _label_feeds(description: Description, fetches: list[str]) -> dict[str, TensorSpec]:
    """What is fed beside the model's own, for the labels that are asked for. Raises ConfigError."""
    feeds: dict[str, TensorSpec] = {}
    for name, form in (resolve(description, fetch) for fetch in fetches):
        if isinstance(form, LabelForm):
            feeds.update(labels.feed_specs(description.fetches[name], form))
    return feeds


def output_specs(description: Description, fetches: list[str]) -> dict[str, TensorSpec]:
    """What is answered, as users see it. Raises ConfigError for fetches that the model does not
    have, and for two whose answers have the same name.
    """
    specs: dict[str, TensorSpec] = {}
    for fetch in fetches:
        name, form = resolve(description, fetch)
        for output, kind in answer_specs(name, description.fetches[name], form).items():
            if output in specs:
                raise ConfigError(f"{output!r} is asked for twice, once by {fetch[:80]!r}")
            specs[output] = kind
    return specs


def _failure(error: WorkerError) -> Refusal:
    if error.refused:
        return _refusal(str(error))
    return Refusal(frame.EINTERNAL, f"the model failed on this request: {error}")


def _refusal(text: str) -> Refusal:
    return Refusal(frame.EREQUEST, text)


def _said(error: Exception) -> str:
    return "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"


def _names(specs: Any) -> str:
    return ", ".join(repr(name) for name in specs)


def _nothing() -> None:
    """The release of outputs that lie in no shared memory."""
