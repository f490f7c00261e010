"""A worker process: one predictor, fed through shared memory by the front process.

Started as ``python -m edl.serving.worker.main CONTROL_FD INPUT_FD OUTPUT_FD`` with these three
inherited. Messages (see ``control``):

==================================================  ===============================================
from the front                                      the worker's answer
==================================================  ===============================================
``{"load": PredictorOptions}``                      ``{"ready": description}`` or ``{"failed"}``
``{"run": [{feed: ref}, ...], "fetches": [[...]]}`` ``{"block": offset, "outputs": [{name: ref}]}``
                                                    or ``{"error": text}``, or, where the request
                                                    is to blame, ``{"refused": text}``
``{"free": [offset, ...]}``                         none: these blocks of the output arena are free
==================================================  ===============================================

A worker that waits for free blocks says ``{"news": "full"}`` first: the front holds back what it
need not know now. Batches may be given ahead of time: they lie in the socket until their turn.

The worker ends when the front closes the control socket, however that happens.
"""

from __future__ import annotations

import itertools
import logging
import socket
import sys
from typing import Any, Optional

import numpy as np

from edl.errors import BadRequest, EdlError, ModelError
from edl.serving.model.predictor import Predictor, PredictorOptions, load_predictor
from edl.serving.worker import control
from edl.serving.worker.arena import ALIGNMENT, Allocator, Arena
from edl.serving.worker.batch import run_batch

logger = logging.getLogger(__name__)


class WorkerLoop:
    """The loop around one predictor. One owner, one thread."""

    def __init__(self, front: control.Front, inputs: Arena, outputs: Arena) -> None:
        self._front = front
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
                self._front.send(self._run(message["run"], message["fetches"]))
            elif "free" in message:
                self._free(message["free"])
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

    def _run(self, requests: list[dict[str, Any]], fetches: list[list[str]]) -> dict[str, Any]:
        assert self._predictor is not None, "run before load"
        try:
            return self._store(run_batch(self._predictor, self._inputs, requests, fetches))
        except BadRequest as error:
            return {"refused": str(error)}
        except Exception as error:
            logger.warning("a batch failed: %s", error)
            return {"error": f"{type(error).__name__}: {error}"}

    def _store(self, answers: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Lay the outputs of all requests into one block of the output arena."""
        arrays = [array for outputs in answers for array in outputs.values()]
        starts = [0, *itertools.accumulate(_aligned(array.nbytes) for array in arrays)]
        block = self._allocate(starts[-1])
        places = iter(starts)
        refs = [
            {name: control.tensor_ref(block + next(places), a) for name, a in outputs.items()}
            for outputs in answers
        ]
        for ref, array in zip((ref for each in refs for ref in each.values()), arrays):
            control.resolve(self._outputs, ref)[...] = array
        return {"block": block, "outputs": refs}

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


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def main() -> None:
    """Entry point of the worker process."""
    control.ignore_signals()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s worker[%(process)d] %(message)s")
    control_fd, input_fd, output_fd = (int(argument) for argument in sys.argv[1:4])
    with socket.socket(fileno=control_fd) as sock:
        try:
            WorkerLoop(control.Front(sock), Arena.attach(input_fd), Arena.attach(output_fd)).serve()
        except OSError:  # the front died in mid-message
            pass


if __name__ == "__main__":
    main()
