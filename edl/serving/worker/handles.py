"""Workers as the engine sees them: a process each, or a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Optional, Protocol, Union

import numpy as np

from edl._checks import check_count
from edl.errors import BadRequest, ConfigError, EdlError, ModelError
from edl.serving.model.predictor import Predictor, PredictorOptions
from edl.serving.wire.arena import Arena
from edl.serving.wire.description import Description
from edl.serving.wire.messages import Room
from edl.serving.worker import control
from edl.serving.worker.batch import Refs, lay_into, run_batch
from edl.serving.worker.child import Child, WorkerDied

logger = logging.getLogger(__name__)


class WorkerError(EdlError):
    """The predictor raised; the worker lives on. ``refused``: the request is to blame."""

    def __init__(self, text: str, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


@dataclass
class Result:
    """A batch's outputs, for each request: arrays that view ``block`` of the output arena of the
    process that has ``made`` them; a block says nothing to the process that came after it.
    """

    block: int
    outputs: list[dict[str, np.ndarray]]
    made_by: Optional[Child] = None


_ENDED = "the worker process has ended"

#: What has become of a batch.
BatchOutcome = Union[Result, WorkerError, WorkerDied]
OnDone = Callable[[BatchOutcome], None]


@dataclass(frozen=True)
class Lent:
    """Memory of clients that a batch lies in. ``memories``: by their numbers; ``rooms``: for each
    request where its outputs may be laid there, if anywhere.
    """

    memories: Mapping[int, Arena]
    rooms: Sequence[Optional[Room]]


class Worker(Protocol):
    """Something that computes batches, one at a time, in their order. It can be given one while it
    computes another.
    """

    @property
    def pid(self) -> Optional[int]:
        """The process id, while there is a process."""

    async def start(self, timeout: float) -> Description:
        """Load the model. Raises ModelError if that fails or takes longer than ``timeout`` s."""

    def run(
        self,
        requests: Sequence[Refs],
        fetches: Sequence[Sequence[str]],
        on_done: OnDone,
        lent: Optional[Lent] = None,
    ) -> None:
        """Compute one batch, made of the requests' rows one after the other.

        A request says for each feed where it lies (see ``control``): in the input arena, or in
        memory that is ``lent``; ``fetches`` says what each of them wants. ``on_done`` gets the
        result, after this has returned: WorkerError if the predictor raised, WorkerDied if the
        worker is gone.
        """

    def free(self, result: Result) -> None:
        """A result has been sent; its memory can be used again. The worker may learn of it later,
        with its next batch.
        """

    def unmap(self, number: int) -> None:
        """The client's memory of this number is not needed any longer."""

    def when_lost(self, on_loss: Callable[[], None]) -> None:
        """Call this once if it ends while it computes nothing, until it is started again."""

    async def cause_of_death(self) -> str:
        """Why it has ended, in words."""

    def kill(self, reason: str) -> None:
        """Give the worker up: what it computes now ends with WorkerDied."""

    async def stop(self, grace: float = 1.0) -> None:
        """End the worker, by force if it has not left after ``grace`` seconds."""


class WorkerProcess:
    """A worker in a process of its own: predictors hold the GIL while they compute."""

    def __init__(self, options: PredictorOptions, inputs: Arena, output_bytes: int) -> None:
        self._options = options
        self._inputs = inputs
        self._output_bytes = output_bytes
        self._outputs: Optional[Arena] = None
        self._child: Optional[Child] = None
        self._starved = False
        self._memories: Optional[socket.socket] = None  # by which it gets clients' memory
        self._mapped: set[int] = set()

    @property
    def pid(self) -> Optional[int]:
        """See Worker."""
        return self._child.pid if self._child else None

    async def start(self, timeout: float) -> Description:
        """See Worker."""
        self._outputs = Arena.create(self._output_bytes, "edl-outputs")
        self._memories, theirs = socket.socketpair()
        self._memories.setblocking(False)
        self._mapped.clear()
        with theirs:
            inherited = (self._inputs.fd, self._outputs.fd, theirs.fileno())
            self._child = child = await Child.start(
                "edl.serving.worker.main", inherited, self._heard
            )
        try:
            answer = await asyncio.wait_for(child.call({"load": asdict(self._options)}), timeout)
        except (WorkerDied, asyncio.TimeoutError) as error:
            await self.stop()
            reason = "died" if isinstance(error, WorkerDied) else f"was not ready in {timeout:g} s"
            raise ModelError(f"the worker {reason} while loading the model: {error}") from error
        if "failed" in answer:
            await self.stop()
            raise ModelError(answer["failed"])
        return Description.from_json(answer["ready"])

    def run(
        self,
        requests: Sequence[Refs],
        fetches: Sequence[Sequence[str]],
        on_done: OnDone,
        lent: Optional[Lent] = None,
    ) -> None:
        """See Worker."""
        child, outputs = self._child, self._outputs
        if child is None or outputs is None:
            died = WorkerDied(_ENDED)
            asyncio.get_running_loop().call_soon(on_done, died)
            return
        arenas = {0: outputs}
        message: dict[str, Any] = {"run": list(requests), "fetches": list(fetches)}
        if lent is not None:
            arenas.update(lent.memories)
            message["rooms"] = list(lent.rooms)
            try:
                for number, memory in lent.memories.items():
                    self._map(child, number, memory)
            except WorkerError as error:
                asyncio.get_running_loop().call_soon(on_done, error)
                return

        def on_answer(answer: Union[dict[str, Any], WorkerDied]) -> None:
            self._starved = False
            on_done(answer if isinstance(answer, WorkerDied) else _read(answer, arenas, child))

        child.ask(message, on_answer)

    def _map(self, child: Child, number: int, memory: Arena) -> None:
        """Pass a client's memory on, unless that was done. Raises WorkerError."""
        if number in self._mapped:
            return
        assert self._memories is not None
        try:
            socket.send_fds(self._memories, [b"m"], [memory.fd])
        except OSError as error:  # such as too many files that are on their way
            raise WorkerError(f"a client's memory cannot be passed on: {error}") from error
        self._mapped.add(number)
        child.tell({"map": number})

    def unmap(self, number: int) -> None:
        """See Worker."""
        if number in self._mapped and self._child is not None:
            self._child.tell({"unmap": number}, soon=False)
        self._mapped.discard(number)

    def free(self, result: Result) -> None:
        """See Worker."""
        result.outputs.clear()
        if self._child is not None and self._child is result.made_by:
            self._child.tell({"free": [result.block]}, soon=not self._starved)

    def _heard(self, news: dict[str, Any]) -> None:
        """Its output memory is full: it waits until results are free, and must know of each."""
        self._starved = True
        if self._child is not None:
            self._child.tell({"free": []}, soon=False)

    def when_lost(self, on_loss: Callable[[], None]) -> None:
        """See Worker."""
        if self._child is not None:
            self._child.when_lost(on_loss)

    async def cause_of_death(self) -> str:
        """See Worker."""
        return _ENDED if self._child is None else await self._child.cause_of_death()

    def kill(self, reason: str) -> None:
        """See Worker."""
        if self._child is not None:
            self._child.kill(reason)

    async def stop(self, grace: float = 1.0) -> None:
        """See Worker. The process leaves when its control socket closes."""
        child, self._child = self._child, None
        if child is not None:
            await child.stop(grace)
        if self._outputs is not None:
            self._outputs.close()  # replies that still view the mapping keep it alive
            self._outputs = None
        if self._memories is not None:
            self._memories.close()
            self._memories = None


def _read(
    answer: dict[str, Any], arenas: Mapping[int, Arena], child: Child
) -> Union[Result, WorkerError]:
    """What a worker process has answered to a batch."""
    if "refused" in answer:
        return WorkerError(answer["refused"], refused=True)
    if "error" in answer:
        return WorkerError(answer["error"])
    arrays = [
        {name: control.resolve(arenas[control.number_of(ref)], ref) for name, ref in refs.items()}
        for refs in answer["outputs"]
    ]
    return Result(answer["block"], arrays, child)


class WorkerThread:
    """A worker for a predictor of this process, which runs on a thread beside the event loop."""

    def __init__(self, predictor: Predictor, inputs: Arena) -> None:
        self._predictor = predictor
        self._inputs = inputs
        self._thread = ThreadPoolExecutor(1, "edl-predictor")
        self._running: dict[Future, OnDone] = {}

    @property
    def pid(self) -> Optional[int]:
        """See Worker. There is no process."""
        return None

    async def start(self, timeout: float) -> Description:
        """See Worker. The predictor is there already."""
        return self._predictor.description

    def run(
        self,
        requests: Sequence[Refs],
        fetches: Sequence[Sequence[str]],
        on_done: OnDone,
        lent: Optional[Lent] = None,
    ) -> None:
        """See Worker."""
        loop = asyncio.get_running_loop()
        work = (self._predictor, self._inputs, requests, fetches, lent)
        running = self._thread.submit(_compute, *work)
        self._running[running] = on_done

        def done(running: Future) -> None:
            with contextlib.suppress(RuntimeError):  # nobody waits: the loop is closed
                loop.call_soon_threadsafe(self._finished, running)

        running.add_done_callback(done)

    def _finished(self, running: Future) -> None:
        on_done = self._running.pop(running, None)
        if on_done is not None:  # not given up
            on_done(running.result())

    def free(self, result: Result) -> None:
        """See Worker. Outputs are the garbage collector's."""
        result.outputs.clear()

    def unmap(self, number: int) -> None:
        """See Worker. Nothing is mapped for it."""

    def when_lost(self, on_loss: Callable[[], None]) -> None:
        """See Worker. A thread does not end of itself."""

    async def cause_of_death(self) -> str:
        """See Worker."""
        return _ENDED

    def kill(self, reason: str) -> None:
        """See Worker. A thread cannot be killed: it is left behind, and another takes its place."""
        given_up, self._running = self._running, {}
        for on_done in given_up.values():
            asyncio.get_running_loop().call_soon(on_done, WorkerDied(reason))
        self._replace_thread()

    async def stop(self, grace: float = 1.0) -> None:
        """See Worker."""
        self._replace_thread()

    def _replace_thread(self) -> None:
        """Leave the thread to end when it can, with another for what may come."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._thread = ThreadPoolExecutor(1, "edl-predictor")


def _compute(
    predictor: Predictor,
    inputs: Arena,
    requests: Sequence[Refs],
    fetches: Sequence[Sequence[str]],
    lent: Optional[Lent],
) -> Union[Result, WorkerError]:
    """A batch, on a thread beside the loop: the outputs, those in clients' memory that have room
    there. What a predictor passes through is copied: answers are sent when their requests' memory
    may be used again.
    """
    memories = lent.memories if lent is not None else {}
    try:
        answers = run_batch(predictor, inputs, requests, fetches, memories)
        arenas = [inputs, *memories.values()]
        for outputs in answers:
            for name, array in outputs.items():
                if any(arena.offset_of(array) is not None for arena in arenas):
                    outputs[name] = array.copy()
        if lent is not None:
            for outputs, room in zip(answers, lent.rooms):
                for name, ref in lay_into(outputs, room, memories).items():
                    outputs[name] = control.resolve(memories[control.number_of(ref)], ref)
        return Result(0, answers)
    except BadRequest as error:
        return WorkerError(str(error), refused=True)
    except Exception as error:
        return WorkerError(f"{type(error).__name__}: {error}")


def processes(
    options: PredictorOptions, count: int = 0, output_bytes: int = 1 << 30
) -> Callable[[Arena], list[Worker]]:
    """What makes ``count`` worker processes, given the arena that requests lie in.

    ``options.device`` may name several devices, comma-separated: workers take them in turn. 0: one
    worker for each. Several workers on the CPU get an equal share of the CPUs each.
    ``output_bytes``: shared memory reserved for each worker's outputs; only what is used costs
    memory. Raises ConfigError for what is not a list of devices, or not a number of workers.
    """
    check_count("workers", count, 0)
    each = [replace(options, **share) for share in _shares(options, count)]
    return lambda inputs: [WorkerProcess(worker, inputs, output_bytes) for worker in each]


def _shares(options: PredictorOptions, count: int) -> list[dict[str, Any]]:
    """For each worker, its device and its CPUs."""
    devices = [device.strip() for device in options.device.split(",")]
    if "" in devices:
        raise ConfigError(f"device {options.device!r} is not a comma-separated list of devices")
    count = count or len(devices)
    cpus = sorted(os.sched_getaffinity(0))
    workers: list[dict[str, Any]] = []
    for number in range(count):
        workers.append({"device": devices[number % len(devices)]})
        if count > 1 and set(devices) == {"cpu"} and len(cpus) >= count:
            first, last = (len(cpus) * edge // count for edge in (number, number + 1))
            workers[-1]["cpus"] = cpus[first:last]
    return workers
