"""Requests that come as baidu_std frames, and the answers' way back."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Callable, Optional

from edl.errors import WireError
from edl.serving.server.engine import Outcome, Refusal
from edl.serving.server.gate import Guest
from edl.serving.server.service import Service
from edl.serving.server.sharing import ClientMemory
from edl.serving.server.stream import Stream
from edl.serving.wire import frame
from edl.serving.wire.compression import compression_of
from edl.serving.wire.description import DESCRIBE_METHOD, DESCRIBE_SERVICE
from edl.serving.wire.local import SHARE_METHOD, SHARE_SERVICE, decode_share
from edl.serving.wire.messages import METHODS, SERVICE, encode_response
from edl.serving.wire.tensor import Buffer
from edl.serving.wire.times import encode_times

logger = logging.getLogger(__name__)


#: Requests of one connection beyond which nothing is read until some are answered: a client that
#: does not take its answers must not fill the memory they lie in.
_MAX_UNANSWERED = 256

#: Seconds that the rest of a frame is worth that will be refused.
_REFUSAL_PATIENCE = 1.0


class FrameConnection:
    """The frames of one connection."""

    def __init__(self, stream: Stream, guest: Guest, service: Service) -> None:
        self._stream = stream
        self._guest = guest
        self.service = service
        self._memory = ClientMemory(service.sharing, guest)
        self._unanswered = 0
        self._answered = asyncio.Event()

    async def serve_one(self, header: bytearray) -> bool:
        """Receive the rest of the frame that begins with ``header``, and see to it that it is
        answered. Whether the connection may go on.

        Raises WireError for bytes that are not a frame, EOFError, TimeoutError and OSError for a
        connection that ends.
        """
        body_size, meta_size = frame.parse_header(header, limit=0xFFFF_FFFF)
        if body_size > self.service.intake.max_body:
            await self._refuse_large(body_size, meta_size)
            return False
        head = memoryview(b"")
        if self.service.may_refuse(self._guest):
            head = memoryview(bytearray(meta_size))
            await self._stream.read_into(head, self._stream.pace())
            meta = _as_request(frame.parse_meta(head))
            refusal = self.service.refusal(self._guest, meta.authentication)
            if refusal is not None:
                self._refuse(meta, refusal)
                return False
        block = await self.service.memory.receive(self._stream, self._guest, head, body_size)
        await self._handle(block, body_size, meta_size)
        if self._unanswered >= _MAX_UNANSWERED:
            await self._wait_for_answers(_MAX_UNANSWERED - 1)
        return True

    async def settle(self) -> None:
        """Wait until everything is answered."""
        await self._wait_for_answers(0)

    def close(self) -> None:
        """The connection has ended: what its client has handed over is not needed any longer, but
        for what is computed from it.
        """
        self._memory.close()

    async def _wait_for_answers(self, most: int) -> None:
        while self._unanswered > most:
            self._answered.clear()
            await self._answered.wait()

    async def _refuse_large(self, body_size: int, meta_size: int) -> None:
        """Say so to who asks, which takes the head of the frame; its body is not received."""
        head = memoryview(bytearray(meta_size))
        try:
            await asyncio.wait_for(
                self._stream.read_into(head, self._stream.pace()), _REFUSAL_PATIENCE
            )
        except asyncio.TimeoutError:
            raise WireError(f"frame of {body_size} bytes is beyond the limit") from None
        text = self.service.intake.too_large(body_size, is_json=False)
        self._refuse(_as_request(frame.parse_meta(head)), Refusal(frame.EREQUEST, text))

    def _refuse(self, meta: frame.RequestMeta, refusal: Refusal) -> None:
        _Answer(self, meta.correlation_id).finish(refusal)

    async def _handle(self, block: int, body_size: int, meta_size: int) -> None:
        """Answer a request at once, or give it to the engine. Takes ``block`` over."""
        blocks = [block]
        answer: Optional[_Answer] = None
        try:
            body = self.service.memory.view(block, body_size)
            parsed, payload = frame.parse_body(body, meta_size)
            meta = _as_request(parsed)
            answer = _Answer(self, meta.correlation_id)
            if (meta.service, meta.method) == (DESCRIBE_SERVICE, DESCRIBE_METHOD):
                answer.send(0, "", [self.service.describe()])
                return
            if (meta.service, meta.method) == (SHARE_SERVICE, SHARE_METHOD):
                self._share(payload)
                answer.send(0, "", [])
                return
            compression = _check(meta)
            request = await self.service.intake.request(
                self._guest,
                blocks,
                block + meta_size,
                len(payload),
                False,
                compression,
                self._memory.arenas,
            )
            answer.log_id = request.log_id
            submitted, blocks = blocks, []
            lease = self._memory.lease()
            self.service.submit(request, submitted, self._guest, answer.finish, lease)
        except Refusal as refusal:
            assert answer is not None
            answer.finish(refusal)
        except Exception as error:
            if answer is None:  # not a request: nobody to answer
                raise
            logger.exception("a request of %s failed", self._guest.peer)
            answer.finish(Refusal(frame.EINTERNAL, f"the teacher failed: {type(error).__name__}"))
        finally:
            for unused in blocks:
                self.service.memory.free(unused)

    def _share(self, payload: memoryview) -> None:
        """Map the memory that came with this message. Raises Refusal."""
        fd = self._stream.take_fd()
        try:
            self._memory.take(decode_share(payload), fd)
        except WireError as error:
            raise Refusal(frame.EREQUEST, str(error)) from None

    def send(
        self, meta: frame.ResponseMeta, payload: list[Buffer], sent: Callable[[], None]
    ) -> None:
        """Send an answer; ``sent`` is called when that is over, well or not."""

        def done(error: Optional[OSError]) -> None:
            if error is not None:
                logger.info("answering %s failed: %s", self._stream.peer, error)
            self._unanswered -= 1
            self._answered.set()
            sent()

        self._stream.send(frame.encode_frame(meta, payload), done)

    def begin(self) -> None:
        """A request has come that will be answered."""
        self._unanswered += 1
        self.service.begin()


class _Answer:
    """The answer to one request, sent exactly once."""

    __slots__ = ("_arrived", "_connection", "_correlation_id", "log_id")

    def __init__(self, connection: FrameConnection, correlation_id: int) -> None:
        self._connection = connection
        self._correlation_id = correlation_id
        self._arrived = time.monotonic()
        self.log_id = 0
        connection.begin()

    def finish(self, outcome: Outcome) -> None:
        """Send what the engine says."""
        if isinstance(outcome, Refusal):
            self.send(outcome.code, str(outcome), [])
            return
        try:
            payload = encode_response(outcome.arrays, self.log_id, outcome.places)
            if outcome.course is not None:
                times = outcome.course.times(self._arrived, time.monotonic())
                payload.append(encode_times(times))
        except Exception as error:  # whatever it is, it is answered
            outcome.release()
            self.send(frame.EINTERNAL, f"the model's outputs cannot be sent: {error}", [])
        else:
            self.send(0, "", payload, outcome.release)

    def send(
        self,
        code: int,
        text: str,
        payload: list[Buffer],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Send it, and then let go of what it was made from."""

        def sent() -> None:
            release()
            self._connection.service.end("baidu_std", code, self._arrived)

        self._connection.send(frame.ResponseMeta(self._correlation_id, code, text), payload, sent)


def _as_request(meta: frame.Meta) -> frame.RequestMeta:
    if not isinstance(meta, frame.RequestMeta):
        raise WireError("got an answer where a request should be")
    return meta


def _check(meta: frame.RequestMeta) -> str:
    """How the message is compressed. Raises Refusal if it is not for the model, or cannot be
    unpacked.
    """
    if meta.service != SERVICE:
        raise Refusal(frame.ENOSERVICE, f"no service {meta.service!r}; there is {SERVICE}")
    if meta.method not in METHODS:
        raise Refusal(
            frame.ENOMETHOD, f"no method {meta.method!r}; there are {' and '.join(METHODS)}"
        )
    try:
        return compression_of(meta.compress_type) if meta.compress_type else ""
    except WireError as error:
        raise Refusal(frame.EREQUEST, str(error)) from None
