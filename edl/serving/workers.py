"""Worker processes as the front process sees them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

import numpy as np

from edl.errors import EdlError, ModelError
from edl.serving import channel
from edl.serving.arena import Arena
from edl.serving.description import Description
from edl.serving.predictor import PredictorOptions

logger = logging.getLogger(__name__)


class WorkerDied(EdlError):
    """The worker process ended while it was needed."""


class WorkerError(EdlError):
    """The predictor raised; the worker lives on."""


@dataclass
class Result:
    """A batch's outputs: arrays that view ``block`` of the worker's output arena."""

    block: int
    outputs: dict[str, np.ndarray]


class WorkerProcess:
    """One worker: start it, run batches on it one at a time, free their outputs, stop it."""

    def __init__(self, options: PredictorOptions, inputs: Arena, output_bytes: int) -> None:
        self._options = options
        self._inputs = inputs
        self._output_bytes = output_bytes
        self._outputs: Optional[Arena] = None
        self._process: Optional[subprocess.Popen] = None
        self._reader: Optional[asyncio.StreamReader] = None
        self._writer: Optional[asyncio.StreamWriter] = None

    @property
    def pid(self) -> Optional[int]:
        """The process id, while there is a process."""
        return self._process.pid if self._process else None

    async def start(self, timeout: float) -> Description:
        """Start the process and load the model. Raises ModelError if that fails or takes longer
        than ``timeout`` seconds.
        """
        ours, theirs = socket.socketpair()
        self._outputs = Arena.create(self._output_bytes, "edl-outputs")
        fds = (theirs.fileno(), self._inputs.fd, self._outputs.fd)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edl.serving.worker", *map(str, fds)], pass_fds=fds
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            answer = await asyncio.wait_for(self._call({"load": asdict(self._options)}), timeout)
        except (WorkerDied, asyncio.TimeoutError) as error:
            await self.stop()
            reason = "died" if isinstance(error, WorkerDied) else f"was not ready in {timeout:g} s"
            raise ModelError(f"the worker {reason} while loading the model: {error}") from error
        if "failed" in answer:
            await self.stop()
            raise ModelError(answer["failed"])
        return Description.from_json(answer["ready"])

    async def run(self, requests: Sequence[dict[str, list[Any]]], fetches: Sequence[str]) -> Result:
        """Compute one batch, made of the requests' rows one after the other.

        Raises WorkerError if the predictor raised, WorkerDied if the process is gone.
        """
        answer = await self._call({"run": list(requests), "fetches": list(fetches)})
        if "error" in answer:
            raise WorkerError(answer["error"])
        assert self._outputs is not None
        outputs = {
            name: channel.resolve(self._outputs, ref) for name, ref in answer["outputs"].items()
        }
        return Result(answer["block"], outputs)

    def free(self, result: Result) -> None:
        """Tell the worker that a result has been sent and its memory can be used again."""
        result.outputs.clear()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(channel.pack({"free": result.block}))

    async def stop(self, grace: float = 1.0) -> None:
        """End the process: it leaves when its control socket closes, or is killed."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process, self._process = self._process, None
        if process is None:
            return
        try:
            await asyncio.wait_for(_exited(process), grace)
        except asyncio.TimeoutError:
            process.kill()
            process.wait()
        if self._outputs is not None:
            os.close(self._outputs.fd)  # replies that still view the mapping keep it alive
            self._outputs = None

    async def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._reader is None or self._writer is None:
            raise WorkerDied("the worker process has ended")
        try:
            self._writer.write(channel.pack(message))
            await self._writer.drain()
            (size,) = channel.LENGTH.unpack(await self._reader.readexactly(channel.LENGTH.size))
            return json.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise WorkerDied(await self._cause_of_death()) from error

    async def _cause_of_death(self) -> str:
        process = self._process
        if process is None:
            return "the worker process was stopped"
        try:
            await asyncio.wait_for(_exited(process), 2.0)
        except asyncio.TimeoutError:
            return "the worker process closed its control socket"
        code = process.returncode
        if code is not None and code < 0:
            return f"the worker process was killed by {signal.Signals(-code).name}"
        return f"the worker process exited with status {code}"


async def _exited(process: subprocess.Popen) -> None:
    while process.poll() is None:
        await asyncio.sleep(0.01)
