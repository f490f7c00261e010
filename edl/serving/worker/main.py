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

import gc
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Optional

import numpy as np

from edl.errors import BadRequest, EdlError, ModelError
from edl.serving.model.answers import answer_all
from edl.serving.model.predictor import Predictor, PredictorOptions, load_predictor
from edl.serving.wire.arena import Allocator, Arena, aligned
from edl.serving.worker import control
from edl.serving.worker.batch import LARGE, Prepared, bytes_to_gather, places_in, prepare

logger = logging.getLogger(__name__)


class WorkerLoop:
    """The loop around one predictor, on the main thread.

    Where there is much to copy, another thread gathers the next batch and lays out the last one's
    answers while the predictor computes, as far as it lets go of the interpreter; the answers only
    if the predictor has said that their memory is theirs (see ``Predictor``). There is one batch at
    most that was gathered ahead, and one whose answers are laid out. Small ones are not worth the
    wake-ups.
    """

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
        self._postponed: deque[dict[str, Any]] = deque()
        self._copier = ThreadPoolExecutor(1, "edl-copy")
        self._gathered: Optional[Future[Prepared]] = None  # of the first that is postponed
        self._storing: Optional[Future[None]] = None  # the last answer that may not be sent yet

    def serve(self) -> None:
        """Answer messages until the front goes away."""
        while (message := self._next()) is not None:
            if "run" in message:
                self._run(message)
            elif not self._note(message):
                self._front.send(self._load(PredictorOptions(**message["load"])))

    def _next(self) -> Optional[dict[str, Any]]:
        return self._postponed.popleft() if self._postponed else self._front.receive()

    def _load(self, options: PredictorOptions) -> dict[str, Any]:
        try:
            self._predictor = load_predictor(options)
        except EdlError as error:
            return {"failed": str(error)}
        except Exception as error:
            logger.exception("making the predictor failed")
            return {"failed": f"{type(error).__name__}: {error}"}
        control.ignore_signals()  # again: Paddle has changed them
        gc.freeze()  # what is there now stays: collecting is for what batches leave behind
        return {"ready": self._predictor.description.to_json()}

    def _note(self, message: dict[str, Any]) -> bool:
        """See to what has no answer and no turn; whether the message is such."""
        if "free" in message:
            for block in message["free"]:
                self._allocator.free(block)
        elif "map" in message:
            self._map(message["map"])
        elif "unmap" in message:
            self._shared.pop(message["unmap"], None)
        else:
            return False
        return True

    def _map(self, number: int) -> None:
        """Map a client's memory, which the front has looked at. Its file descriptor is there."""
        _, fds, _, _ = socket.recv_fds(self._memories, 1, 1)
        try:
            self._shared[number] = Arena.attach(fds[0])
        except (OSError, ValueError) as error:  # its requests will fail, and nobody else's
            logger.warning("mapping a client's memory failed: %s", error)
        finally:
            os.close(fds[0])

    def _run(self, message: dict[str, Any]) -> None:
        """Compute a batch, and send its answer or have it sent."""
        assert self._predictor is not None, "run before load"
        gathered, self._gathered = self._gathered, None
        try:
            batch = self._prepare(message) if gathered is None else gathered.result()
            self._look_ahead()
            answers = answer_all(self._predictor, batch.feeds, batch.shares)
            self._answer(answers, message.get("rooms") or [None] * len(answers))
        except BadRequest as error:
            self._send({"refused": str(error)})
        except OSError:
            raise  # the front has gone
        except Exception as error:
            self._send(_failure(error))

    def _prepare(self, message: dict[str, Any]) -> Prepared:
        assert self._predictor is not None, "run before load"
        requests, fetches = message["run"], message["fetches"]
        return prepare(self._predictor, self._inputs, requests, fetches, self._shared)

    def _look_ahead(self) -> None:
        """Have the next batch gathered, if it is there already."""
        while not self._postponed:
            message = self._front.receive_now()
            if message is None:
                return
            if not self._note(message):
                self._postponed.append(message)
        message = self._postponed[0]
        if "run" in message and bytes_to_gather(message["run"]) >= LARGE:
            self._gathered = self._copier.submit(self._prepare, message)

    def _answer(
        self, answers: list[dict[str, np.ndarray]], rooms: Sequence[Optional[list[int]]]
    ) -> None:
        """Lay the outputs of each request into its room, of all others into one block of the output
        arena, and say so.
        """
        laid = [places_in(*each) for each in zip(answers, rooms)]
        others = [(refs, outputs) for refs, outputs in zip(laid, answers) if not refs]
        offset = block = self._allocate(
            sum(aligned(array.nbytes) for _, outputs in others for array in outputs.values())
        )
        for refs, outputs in others:
            for name, array in outputs.items():
                refs[name] = control.tensor_ref(offset, array)
                offset += aligned(array.nbytes)
        self._wait_until_sent()
        size = sum(array.nbytes for outputs in answers for array in outputs.values())
        if size >= LARGE and getattr(self._predictor, "fresh_outputs", False):
            self._storing = self._copier.submit(self._store, block, laid, answers)
        else:
            self._store(block, laid, answers)

    def _store(
        self,
        block: int,
        laid: list[dict[str, list[Any]]],
        answers: list[dict[str, np.ndarray]],
    ) -> None:
        message: dict[str, Any] = {"block": block, "outputs": laid}
        try:
            for refs, outputs in zip(laid, answers):
                for name, ref in refs.items():
                    number = control.number_of(ref)
                    arena = self._shared[number] if number else self._outputs
                    np.copyto(control.resolve(arena, ref), outputs[name])
        except Exception as error:  # such as an array of objects
            message = _failure(error)
        self._front.send(message)

    def _send(self, message: dict[str, Any]) -> None:
        """Say something behind the answers before it."""
        self._wait_until_sent()
        self._front.send(message)

    def _wait_until_sent(self) -> None:
        storing, self._storing = self._storing, None
        if storing is not None:
            storing.result()

    def _allocate(self, size: int) -> int:
        """A block of the output arena; waits for the front to free some if it is full."""
        block = self._allocator.allocate(size)
        if block is None and self._allocator.used:
            self._send({"news": "full"})  # behind what it can free
        while block is None:
            if not self._allocator.used:
                raise ModelError(
                    f"outputs of {size} bytes do not fit the output arena of "
                    f"{self._outputs.size} bytes"
                )
            message = self._front.receive()
            if message is None:
                raise SystemExit(0)
            if not self._note(message):
                self._postponed.append(message)
            block = self._allocator.allocate(size)
        return block


def _failure(error: Exception) -> dict[str, Any]:
    logger.warning("a batch failed: %s", error)
    return {"error": f"{type(error).__name__}: {error}"}


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
