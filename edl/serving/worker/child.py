"""A child process of the server and the control socket to it, whatever it does."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

from edl.errors import EdlError
from edl.serving.worker.channel import Channel

logger = logging.getLogger(__name__)

#: Threads of OpenMP that wait for work sleep: by default they spin, for a fifth of a second after
#: each batch, on the cores that the front process, other workers and students on this machine need.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}

#: Seconds after SIGKILL that a child may take to be gone. One that waits for a device or a file
#: system in the kernel cannot be killed; nobody waits for it any longer.
KILL_PATIENCE = 2.0


class WorkerDied(EdlError):
    """The worker process ended while it was needed."""


Heard = Callable[[dict[str, Any]], None]
OnAnswer = Callable[[Union[dict[str, Any], WorkerDied]], None]


class Child:
    """``python -m MODULE CONTROL_FD FDS...``, which ends when its control socket closes."""

    def __init__(
        self, process: subprocess.Popen, sock: socket.socket, heard: Optional[Heard]
    ) -> None:
        self._process = process
        self._channel = Channel(sock, self._on_message, self._on_end)
        self._heard = heard
        self._asked: deque[OnAnswer] = deque()
        self._on_loss: Optional[Callable[[], None]] = None
        self._mourning: Optional[asyncio.Task] = None
        self._killed_because = ""
        self._stopped = False

    @classmethod
    async def start(cls, module: str, fds: Sequence[int], heard: Optional[Heard] = None) -> Child:
        """Start it; it inherits ``fds`` and is told their numbers. ``heard`` gets what it says
        that is no answer: messages with the key "news".
        """
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), *fds)
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, inherited)],
                pass_fds=inherited,
                env={**_ENVIRONMENT, **os.environ},
            )
        return cls(process, ours, heard)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether nothing more can be asked of it."""
        return self._channel.closed

    def when_lost(self, on_loss: Callable[[], None]) -> None:
        """Call this once if it ends, or has ended, of itself while nothing is asked of it."""
        self._on_loss = on_loss
        if self.ended:
            asyncio.get_running_loop().call_soon(self._on_end)

    def ask(self, message: dict[str, Any], on_answer: OnAnswer) -> None:
        """Send a message; ``on_answer`` gets its answer, or WorkerDied, after this has returned."""
        self._asked.append(on_answer)
        if self._channel.closed:
            self._on_end()
        else:
            self._channel.send(message)

    async def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and wait for its answer. Raises WorkerDied."""
        answered: asyncio.Future = asyncio.get_running_loop().create_future()

        def on_answer(answer: Union[dict[str, Any], WorkerDied]) -> None:
            if not answered.done():
                answered.set_result(answer)

        self.ask(message, on_answer)
        answer = await answered
        if isinstance(answer, WorkerDied):
            raise answer
        return answer

    def tell(self, message: dict[str, Any], soon: bool = True) -> None:
        """Send a message that has no answer, if it is still there to get it; with the next one, if
        that is ``soon`` enough.
        """
        self._channel.hold(message)
        if not soon:
            self._channel.flush()

    def kill(self, reason: str) -> None:
        """Give it up: who waits for an answer gets WorkerDied with this reason, even if the process
        cannot be killed at once.
        """
        self._killed_because = reason
        self._process.kill()
        self._channel.close()
        self._on_end()

    async def stop(self, grace: float) -> None:
        """End it, by force if it has not left after ``grace`` seconds. One that not even that ends
        is left behind.
        """
        self._stopped = True
        self._channel.close()
        self._on_end()
        if await self._has_exited(grace):
            return
        self._process.kill()
        if not await self._has_exited(KILL_PATIENCE):
            logger.error("process %d does not end though it was killed: left behind", self.pid)

    async def cause_of_death(self) -> str:
        """Why it has ended, in words."""
        if self._killed_because:
            return self._killed_because
        if self._stopped:
            return "the worker process was stopped"
        if not await self._has_exited(2.0):
            return "the worker process closed its control socket"
        code = self._process.returncode
        if code < 0:
            return f"the worker process was killed by {signal.Signals(-code).name}"
        return f"the worker process exited with status {code}"

    def _on_message(self, message: dict[str, Any]) -> None:
        if "news" not in message:
            self._asked.popleft()(message)
        elif self._heard is not None:
            self._heard(message)

    def _on_end(self) -> None:
        """Nothing more will come: who waits for an answer is told why; else who wants to know."""
        if self._asked:
            if self._mourning is None:
                self._mourning = asyncio.get_running_loop().create_task(self._tell_of_death())
        elif self._on_loss is not None and not self._stopped:
            on_loss, self._on_loss = self._on_loss, None
            on_loss()

    async def _tell_of_death(self) -> None:
        cause = await self.cause_of_death()
        self._mourning = None
        while self._asked:
            self._asked.popleft()(WorkerDied(cause))

    async def _has_exited(self, patience: float) -> bool:
        """Whether it ends within ``patience`` seconds."""
        deadline = asyncio.get_running_loop().time() + patience
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True
