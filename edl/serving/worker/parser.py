"""The parser process as the server sees it (see ``parsing``)."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

from edl.errors import WireError
from edl.serving.wire.arena import Arena
from edl.serving.wire.messages import Request
from edl.serving.worker import control
from edl.serving.worker.child import Child, WorkerDied

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """A request's message in the input arena. ``compression``: "gzip", "zlib" or none. ``limit``:
    bytes that it may unpack to, and each of its arrays may take.
    """

    block: int
    size: int
    is_json: bool
    compression: str
    limit: int


class NoRoom(Exception):
    """There is no memory for what a message holds."""


class Parser:
    """Parses one message at a time, the shortest that waits first, so that who sends long ones
    harms those who do the same. ``timeout``: seconds for one.
    """

    def __init__(self, inputs: Arena, timeout: float = 60.0) -> None:
        self._inputs = inputs
        self._timeout = timeout
        self._child: Optional[Child] = None
        self._busy = False
        self._waiting: list[tuple[int, int, asyncio.Future]] = []
        self._numbers = itertools.count()

    @property
    def pid(self) -> Optional[int]:
        """The process id, while there is a process."""
        return self._child.pid if self._child else None

    async def parse(self, message: Message, reserve: Callable[[int], Optional[int]]) -> Request:
        """The request. Its arrays lie in the message's block, or in one more that ``reserve`` is
        asked for (so many bytes; None if there is no room) and that stays the caller's, whatever
        happens.

        Raises WireError for what is not a request, NoRoom if there is none for its arrays,
        WorkerDied if the process ends, or takes too long.
        """
        await self._turn(message.size)
        try:
            return await asyncio.wait_for(self._parse(message, reserve), self._timeout)
        except asyncio.TimeoutError:
            await self._end()
            raise WorkerDied(f"parsing it takes more than {self._timeout:g} s") from None
        except (WorkerDied, asyncio.CancelledError):
            await self._end()
            raise
        finally:
            self._next()

    async def stop(self) -> None:
        """End the process, by force if it has not left after a second; who waits for it gets
        WorkerDied.
        """
        await self._end(grace=1.0)

    async def _parse(self, message: Message, reserve: Callable[[int], Optional[int]]) -> Request:
        if self._child is not None and self._child.ended:
            await self._end()
        if self._child is None:
            self._child = await Child.start("edl.serving.worker.parsing", (self._inputs.fd,))
        child = self._child
        answer = await child.call(
            {
                "parse": [message.block, message.size],
                "json": message.is_json,
                "kind": message.compression,
                "limit": message.limit,
            }
        )
        if "error" in answer:
            raise WireError(answer["error"])
        block = reserve(answer["room"]) if answer["room"] else None
        if answer["room"] and block is None:
            await child.call({"drop": True})
            raise NoRoom
        answer = await child.call({"store": block})
        feeds: dict[str, Sequence[Any]] = answer["feeds"]
        arrays = {name: control.resolve(self._inputs, ref) for name, ref in feeds.items()}
        return Request(arrays, answer["fetches"], answer["log_id"], times=answer["times"])

    async def _turn(self, size: int) -> None:
        if not self._busy:
            self._busy = True
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (size, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()
            raise

    def _next(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False

    async def _end(self, grace: float = 0.0) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop(grace)
