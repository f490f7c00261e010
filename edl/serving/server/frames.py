"""Requests that come as baidu_std frames: one connection's loop, and the answers' way back."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Callable, Optional

from edl.errors import WireError
from edl.serving.server.engine import Outcome, Refusal
from edl.serving.server.service import Limits, Service
from edl.serving.server.stream import Stream
from edl.serving.wire import frame
from edl.serving.wire.compression import decompress
from edl.serving.wire.description import DESCRIBE_METHOD, DESCRIBE_SERVICE
from edl.serving.wire.messages import METHOD, SERVICE, decode_request, encode_response
from edl.serving.wire.tensor import Buffer

logger = logging.getLogger(__name__)

#: brpc's compress_type in words; its snappy (1) is not supported.
_COMPRESSIONS = {2: "gzip", 3: "zlib"}


#: Requests of one connection beyond which nothing is read until some are answered: a client that
#: does not take its answers must not fill the memory they lie in.
_MAX_UNANSWERED = 256


class FrameConnection:
    """Serves one connection."""

    def __init__(self, stream: Stream, service: Service, limits: Limits) -> None:
        self._stream = stream
        self.service = service
        self._limits = limits
        self._unanswered = 0
        self._answered = asyncio.Event()

    async def serve(self, header: bytearray) -> None:
        """Answer requests until the peer closes. ``header``: the first frame's, received already.

        Raises WireError for bytes that are not frames, EOFError, TimeoutError and OSError for a
        connection that ends.
        """
        while await self._receive(*frame.parse_header(header, self._limits.max_body)):
            while self._unanswered >= _MAX_UNANSWERED:
                self._answered.clear()
                await self._answered.wait()
            await self._stream.read_into(memoryview(header), self._limits.idle)

    async def _receive(self, body_size: int, meta_size: int) -> bool:
        """Receive a frame's body and handle it. Whether the connection may go on."""
        engine, stream, patience = self.service.engine, self._stream, self._limits.patience
        head = memoryview(b"")
        if not stream.trusted:  # nothing large is received for a stranger
            head = memoryview(bytearray(meta_size))
            await stream.read_into(head, patience)
            request = _as_request(frame.parse_meta(head))
            if not self.service.trusts(request.authentication):
                await self._turn_away(request)
                return False
            stream.trusted = True
        block = await engine.reserve(body_size)
        try:
            body = engine.view(block, body_size)
            body[: len(head)] = head
            await stream.read_into(body[len(head) :], patience)
            meta, payload = frame.parse_body(body, meta_size)
            request = _as_request(meta)
        except BaseException:
            engine.free(block)
            raise
        self._handle(request, payload, block)
        return True

    async def _turn_away(self, request: frame.RequestMeta) -> None:
        said = "wrong token" if request.authentication else "this teacher needs a token"
        answer = _Answer(self, request.correlation_id)
        answer.finish(Refusal(frame.ERPCAUTH, said))
        await self._stream.finish(patience=1.0)

    def _handle(self, meta: frame.RequestMeta, payload: memoryview, block: int) -> None:
        """Answer a request at once, or give it to the engine. Takes ``block`` over."""
        answer = _Answer(self, meta.correlation_id)
        blocks = [block]
        try:
            if (meta.service, meta.method) == (DESCRIBE_SERVICE, DESCRIBE_METHOD):
                answer.send(0, "", [self.service.describe()])
                return
            request = decode_request(self._payload(meta, payload))
            blocks = []
            self.service.submit(request, [block], self._stream, answer.finish)
        except Refusal as refusal:
            answer.finish(refusal)
        except WireError as error:
            answer.finish(Refusal(frame.EREQUEST, f"malformed request: {error}"))
        finally:
            for unused in blocks:
                self.service.engine.free(unused)

    def _payload(self, meta: frame.RequestMeta, payload: memoryview) -> memoryview:
        """The request message. Raises Refusal if it is not for the model, or cannot be unpacked."""
        if meta.service != SERVICE:
            raise Refusal(frame.ENOSERVICE, f"no service {meta.service!r}; there is {SERVICE}")
        if meta.method != METHOD:
            raise Refusal(frame.ENOMETHOD, f"no method {meta.method!r}; there is {METHOD}")
        if not meta.compress_type:
            return payload
        if meta.compress_type not in _COMPRESSIONS:
            text = f"compression {meta.compress_type} is not supported; gzip (2) and zlib (3) are"
            raise Refusal(frame.EREQUEST, text)
        return decompress(payload, _COMPRESSIONS[meta.compress_type], self._limits.max_body)

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

    __slots__ = ("_arrived", "_connection", "_correlation_id")

    def __init__(self, connection: FrameConnection, correlation_id: int) -> None:
        self._connection = connection
        self._correlation_id = correlation_id
        self._arrived = time.monotonic()
        connection.begin()

    def finish(self, outcome: Outcome) -> None:
        """Send what the engine says."""
        if isinstance(outcome, Refusal):
            self.send(outcome.code, str(outcome), [])
            return
        try:
            payload = encode_response(outcome.arrays)
        except WireError as error:
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
