"""A worker process: one predictor, fed through shared memory by the front process.

Started as ``python -m edl.serving.worker.main CONTROL_FD INPUT_FD OUTPUT_FD MEMORY_FD`` with these
four inherited. Messages (see ``control``):

==================================================  ===============================================
from the front                                      the worker's answer
==================================================  ===============================================
``{"load": PredictorOptions}``                      ``{"ready": description}`` or ``{"failed"}``
``{"run": [{feed: ref}, ...], "fetches": [[...]]}`` ``{"block": offset, "outputs": [{name: ref}]}``
                                                    or ``{"error": text}``, or, where the request
                                                    is to blame, ``{"refused": text}``
``{"free": [offset, ...]}``                         none: these blocks of the output arena are free
``{"map": number}``                                 none: the memory of a client, whose file
                                                    descriptor comes by the socket MEMORY_FD
``{"unmap": number}``                               none: it is not needed any longer
==================================================  ===============================================

A worker that waits for free blocks says ``{"news": "full"}`` first: the front holds back what it
need not know now. Batches may be given ahead of time: they lie in the socket until their turn.

Where clients have memory of their own mapped here, refs may point there, and "run" may have
"rooms": for each request where its outputs may be laid there (see ``messages.Room``), or null.

The worker ends when the front closes the control socket, however that happens.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from edl.errors import BadRequest, EdlError, ModelError
from edl.serving.model.predictor import Predictor, PredictorOptions, load_predictor
from edl.serving.wire.arena import Allocator, Arena, aligned
from edl.serving.worker import control
from edl.serving.worker.batch import lay_into, run_batch

logger = logging.getLogger(__name__)


class WorkerLoop:
    """The loop around one predictor. One owner, one thread."""

    def __init__(
        self, front: control.Front, memories: socket.socket, inputs: Arena, outputs: Arena
    ) -> None:
        self._front = front
        self._memories = memories
        self._shared: dict[int, Arena] = {}
        self._inputs = inputs
        self._outputs = outputs
        self._allocator = Allocator(outputs.size)
        self._predictor: Optional[Predictor] = None
        self._postponed: list[dict[str, Any]] = []

    def serve(self) -> None:
        """Answer messages until the front goes away."""
        while True:
            message = self._postponed.pop(0) if self._postponed else self._front.receive()
            if message is None:
                return
            if "run" in message:
                run = self._run(message["run"], message["fetches"], message.get("rooms"))
                self._front.send(run)
            elif "free" in message:
                self._free(message["free"])
            elif "map" in message:
                self._map(message["map"])
            elif "unmap" in message:
                self._shared.pop(message["unmap"], None)
            else:
                self._front.send(self._load(PredictorOptions(**message["load"])))

    def _load(self, options: PredictorOptions) -> dict[str, Any]:
        try:
            self._predictor = load_predictor(options)
        except EdlError as error:
            return {"failed": str(error)}
        except Exception as error:
            logger.exception("making the predictor failed")
            return {"failed": f"{type(error).__name__}: {error}"}
        control.ignore_signals()  # again: Paddle has changed them
        return {"ready": self._predictor.description.to_json()}

    def _map(self, number: int) -> None:
        """Map a client's memory, which the front has looked at. Its file descriptor is there."""
        _, fds, _, _ = socket.recv_fds(self._memories, 1, 1)
        try:
            self._shared[number] = Arena.attach(fds[0])
        except (OSError, ValueError) as error:  # its requests will fail, and nobody else's
            logger.warning("mapping a client's memory failed: %s", error)
        finally:
            os.close(fds[0])

    def _run(
        self,
        requests: list[dict[str, Any]],
        fetches: list[list[str]],
        rooms: Optional[Sequence[Optional[list[int]]]],
    ) -> dict[str, Any]:
        assert self._predictor is not None, "run before load"
        try:
            answers = run_batch(self._predictor, self._inputs, requests, fetches, self._shared)
            return self._store(answers, rooms or [None] * len(answers))
        except BadRequest as error:
            return {"refused": str(error)}
        except Exception as error:
            logger.warning("a batch failed: %s", error)
            return {"error": f"{type(error).__name__}: {error}"}

    def _store(
        self, answers: list[dict[str, np.ndarray]], rooms: Sequence[Optional[list[int]]]
    ) -> dict[str, Any]:
        """Lay the outputs of each request into its room, of all others into one block of the output
        arena.
        """
        laid = [lay_into(*each, self._shared) for each in zip(answers, rooms)]
        others = [outputs for outputs, refs in zip(answers, laid) if not refs]
        offset = block = self._allocate(
            sum(aligned(array.nbytes) for outputs in others for array in outputs.values())
        )
        for refs, outputs in zip((refs for refs in laid if not refs), others):
            for name, array in outputs.items():
                refs[name] = control.tensor_ref(offset, array)
                control.resolve(self._outputs, refs[name])[...] = array
                offset += aligned(array.nbytes)
        return {"block": block, "outputs": laid}

    def _allocate(self, size: int) -> int:
        """A block of the output arena; waits for the front to free some if it is full."""
        block = self._allocator.allocate(size)
        if block is None and self._allocator.used:
            self._front.send({"news": "full"})
        while block is None:
            if not self._allocator.used:
                raise ModelError(
                    f"outputs of {size} bytes do not fit the output arena of "
                    f"{self._outputs.size} bytes"
                )
            message = self._front.receive()
            if message is None:
                raise SystemExit(0)
            if "free" in message:
                self._free(message["free"])
            else:
                self._postponed.append(message)
            block = self._allocator.allocate(size)
        return block

    def _free(self, blocks: list[int]) -> None:
        for block in blocks:
            self._allocator.free(block)


def main() -> None:
    """Entry point of the worker process."""
    control.ignore_signals()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s worker[%(process)d] %(message)s")
    control_fd, *arenas, memory_fd = (int(argument) for argument in sys.argv[1:5])
    with socket.socket(fileno=control_fd) as sock, socket.socket(fileno=memory_fd) as memories:
        front = control.Front(sock)
        try:
            WorkerLoop(front, memories, *map(Arena.attach, arenas)).serve()
        except OSError:  # the front died in mid-message
            pass


if __name__ == "__main__":
    main()
