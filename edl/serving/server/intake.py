"""From a message in request memory to a request: decoded at once if that is quick, else by the
parser process, so that nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Optional

from edl.errors import WireError
from edl.serving.server.engine import Refusal
from edl.serving.server.gate import Guest
from edl.serving.server.memory import RequestMemory
from edl.serving.wire import frame, json_codec
from edl.serving.wire.compression import decompress
from edl.serving.wire.messages import Request, decode_request
from edl.serving.wire.tensor import Effort, Memories, TooMuchEffort
from edl.serving.worker.child import WorkerDied
from edl.serving.worker.parser import Message, NoRoom, Parser

logger = logging.getLogger(__name__)

#: What is decoded on the loop, which it keeps from others for some milliseconds: bytes of a
#: protobuf message that need conversion (see ``Effort``), of a JSON body, and of a compressed one,
#: which unpacks to a thousand times as much at most.
_QUICK = 512 << 10
_QUICK_JSON = 64 << 10
_QUICK_COMPRESSED = 4 << 10


class Intake:
    """Decodes messages of at most ``max_body`` bytes."""

    def __init__(self, memory: RequestMemory, max_body: int) -> None:
        self.memory = memory
        self.max_body = min(max_body, memory.budget.largest_body)
        self._parser = Parser(memory.arena)

    async def stop(self) -> None:
        """End the parser process, if there is one."""
        await self._parser.stop()

    def limit(self, is_json: bool) -> int:
        """Bytes that a message may have, compressed or not."""
        return min(self.max_body, json_codec.MAX_JSON) if is_json else self.max_body

    def too_large(self, size: int, is_json: bool) -> str:
        """What to say of a message of ``size`` bytes that is beyond ``limit``."""
        limit = self.limit(is_json)
        text = f"a request of {_megabytes(size)} is beyond this teacher's limit of "
        if is_json and limit < self.max_body:
            return (
                f"{text}{_megabytes(limit)} for JSON; send it as application/proto, for which the "
                f"limit is {_megabytes(self.max_body)}"
            )
        return f"{text}{_megabytes(limit)}; send fewer rows at a time"

    async def request(
        self,
        guest: Guest,
        blocks: list[int],
        start: int,
        size: int,
        is_json: bool,
        compression: str,
        memories: Optional[Memories] = None,
    ) -> Request:
        """The request whose message is ``size`` bytes at ``start`` of the arena. ``blocks``: what
        it lies in; the block that its arrays lie in is added, if that is another. ``memories``:
        what its sender has handed over, where arrays may lie, too, of a message that is plain and
        quickly decoded.

        Raises Refusal for what is not a request, or cannot be taken.
        """
        effort = Effort(_QUICK)
        try:
            request = self._quickly(start, size, is_json, compression, effort, memories)
            if effort.left < _QUICK // 2 or is_json or compression:
                await asyncio.sleep(0)  # who sends many of them takes turns with the others
            if request is not None:
                self._check_size(request)
                return request
            message = Message(start, size, is_json, compression, self.limit(is_json))
            return await self._parse(guest, blocks, message)
        except WireError as error:
            raise Refusal(frame.EREQUEST, f"malformed request: {error}") from None
        except NoRoom:
            text = "busy: this teacher has no request memory left for what this message holds"
            raise Refusal(frame.ELIMIT, text) from None
        except WorkerDied as error:
            logger.error("parsing a message of %d bytes of %s failed: %s", size, guest.peer, error)
            raise Refusal(frame.EINTERNAL, f"this request could not be parsed: {error}") from None

    def _check_size(self, request: Request) -> None:
        """Arrays that lie in the client's memory count as if they had been sent. Raises Refusal."""
        size = sum(array.nbytes for array in request.feeds.values() if array.dtype != object)
        if size > self.max_body:
            raise Refusal(frame.EREQUEST, self.too_large(size, is_json=False))

    async def _parse(self, guest: Guest, blocks: list[int], message: Message) -> Request:
        """The request, from the parser process."""

        def reserve(room: int) -> Optional[int]:
            if room > self.max_body:
                text = (
                    f"its arrays would take {_megabytes(room)}, beyond this teacher's limit "
                    f"of {_megabytes(self.max_body)}; send fewer rows at a time"
                )
                raise Refusal(frame.EREQUEST, text)
            block = self.memory.try_block(guest, room)
            if block is not None:
                blocks.append(block)
            return block

        return await self._parser.parse(message, reserve)

    def _quickly(
        self,
        start: int,
        size: int,
        is_json: bool,
        compression: str,
        effort: Effort,
        memories: Optional[Memories],
    ) -> Optional[Request]:
        """The request, unless decoding it takes long. Raises WireError."""
        body = self.memory.view(start, size)
        if compression:
            if len(body) > _QUICK_COMPRESSED:
                return None
            body = decompress(body, compression, self.limit(is_json))
        if is_json:
            return json_codec.decode_request(body) if len(body) <= _QUICK_JSON else None
        try:
            return decode_request(body, effort, memories)
        except TooMuchEffort:
            return None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size} bytes"
