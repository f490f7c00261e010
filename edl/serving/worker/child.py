"""A child process of the server and the control socket to it, whatever it does."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from edl.errors import EdlError
from edl.serving.worker import control

logger = logging.getLogger(__name__)

#: Seconds after SIGKILL that a child may take to be gone. One that waits for a device or a file
#: system in the kernel cannot be killed; nobody waits for it any longer.
KILL_PATIENCE = 2.0


class WorkerDied(EdlError):
    """The worker process ended while it was needed."""


class Child:
    """``python -m MODULE CONTROL_FD FDS...``, which ends when its control socket closes."""

    def __init__(
        self,
        process: subprocess.Popen,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._killed_because = ""
        self._stopped = False

    @classmethod
    async def start(cls, module: str, fds: Sequence[int]) -> Child:
        """Start it; it inherits ``fds`` and is told their numbers."""
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), *fds)
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, inherited)], pass_fds=inherited
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and wait for its answer. Raises WorkerDied."""
        try:
            self._writer.write(control.pack(message))
            await self._writer.drain()
            (size,) = control.LENGTH.unpack(await self._reader.readexactly(control.LENGTH.size))
            return json.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise WorkerDied(await self._cause_of_death()) from error

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message that has no answer, if it is still there to get it."""
        if not self._writer.is_closing():
            self._writer.write(control.pack(message))

    def kill(self, reason: str) -> None:
        """Give it up: who waits for an answer gets WorkerDied with this reason, even if the process
        cannot be killed at once.
        """
        self._killed_because = reason
        self._process.kill()
        self._writer.transport.abort()

    async def stop(self, grace: float) -> None:
        """End it, by force if it has not left after ``grace`` seconds. One that not even that ends
        is left behind.
        """
        self._stopped = True
        self._writer.close()
        if await self._has_exited(grace):
            return
        self._process.kill()
        if not await self._has_exited(KILL_PATIENCE):
            logger.error("process %d does not end though it was killed: left behind", self.pid)

    async def _has_exited(self, patience: float) -> bool:
        """Whether it ends within ``patience`` seconds."""
        deadline = asyncio.get_running_loop().time() + patience
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    async def _cause_of_death(self) -> str:
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
