"""Workers as the engine sees them: a process each, or a thread of this process."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Optional, Protocol

import numpy as np

from edl._checks import check_count
from edl.errors import BadRequest, ConfigError, EdlError, ModelError
from edl.serving.model.predictor import Predictor, PredictorOptions
from edl.serving.wire.description import Description
from edl.serving.worker import control
from edl.serving.worker.arena import Arena
from edl.serving.worker.batch import Refs, run_batch
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


class Worker(Protocol):
    """Something that computes batches, one at a time."""

    @property
    def pid(self) -> Optional[int]:
        """The process id, while there is a process."""

    async def start(self, timeout: float) -> Description:
        """Load the model. Raises ModelError if that fails or takes longer than ``timeout`` s."""

    async def run(self, requests: Sequence[Refs], fetches: Sequence[Sequence[str]]) -> Result:
        """Compute one batch, made of the requests' rows one after the other.

        A request says for each feed where in the input arena it lies (see ``control``); ``fetches``
        says what each of them wants. Raises WorkerError if the predictor raised, WorkerDied if the
        worker is gone.
        """

    def free(self, result: Result) -> None:
        """A result has been sent; its memory can be used again."""

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

    @property
    def pid(self) -> Optional[int]:
        """See Worker."""
        return self._child.pid if self._child else None

    async def start(self, timeout: float) -> Description:
        """See Worker."""
        self._outputs = Arena.create(self._output_bytes, "edl-outputs")
        self._child = child = await Child.start(
            "edl.serving.worker.main", (self._inputs.fd, self._outputs.fd)
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

    async def run(self, requests: Sequence[Refs], fetches: Sequence[Sequence[str]]) -> Result:
        """See Worker."""
        if self._child is None or self._outputs is None:
            raise WorkerDied("the worker process has ended")
        outputs = self._outputs
        answer = await self._child.call({"run": list(requests), "fetches": list(fetches)})
        if "refused" in answer:
            raise WorkerError(answer["refused"], refused=True)
        if "error" in answer:
            raise WorkerError(answer["error"])
        arrays = [
            {name: control.resolve(outputs, ref) for name, ref in refs.items()}
            for refs in answer["outputs"]
        ]
        return Result(answer["block"], arrays, self._child)

    def free(self, result: Result) -> None:
        """See Worker."""
        result.outputs.clear()
        if self._child is not None and self._child is result.made_by:
            self._child.tell({"free": result.block})

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


class WorkerThread:
    """A worker for a predictor of this process, which runs on a thread beside the event loop."""

    def __init__(self, predictor: Predictor, inputs: Arena) -> None:
        self._predictor = predictor
        self._inputs = inputs
        self._thread = ThreadPoolExecutor(1, "edl-predictor")
        self._given_up: Optional[asyncio.Future] = None

    @property
    def pid(self) -> Optional[int]:
        """See Worker. There is no process."""
        return None

    async def start(self, timeout: float) -> Description:
        """See Worker. The predictor is there already."""
        self._given_up = asyncio.get_running_loop().create_future()
        return self._predictor.description

    async def run(self, requests: Sequence[Refs], fetches: Sequence[Sequence[str]]) -> Result:
        """See Worker."""
        assert self._given_up is not None, "run before start"
        running = asyncio.get_running_loop().run_in_executor(
            self._thread, run_batch, self._predictor, self._inputs, requests, fetches
        )
        await asyncio.wait({running, self._given_up}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise WorkerDied(self._given_up.result())
        try:
            return Result(0, running.result())
        except BadRequest as error:
            raise WorkerError(str(error), refused=True) from error
        except Exception as error:
            raise WorkerError(f"{type(error).__name__}: {error}") from error

    def free(self, result: Result) -> None:
        """See Worker. Outputs are the garbage collector's."""
        result.outputs.clear()

    def kill(self, reason: str) -> None:
        """See Worker. A thread cannot be killed: it is left behind, and another takes its place."""
        if self._given_up is not None and not self._given_up.done():
            self._given_up.set_result(reason)
            self._replace_thread()

    async def stop(self, grace: float = 1.0) -> None:
        """See Worker."""
        self._replace_thread()

    def _replace_thread(self) -> None:
        """Leave the thread to end when it can, with another for what may come."""
        self._thread.shutdown(wait=False)
        self._thread = ThreadPoolExecutor(1, "edl-predictor")


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
