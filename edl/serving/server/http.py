"""HTTP/1.1 on a connection: a request in, a response out. What they mean is the handler's business.

The protocol's state machine is h11's; here are the socket, the limits of size and time, and bodies
that are neither joined nor copied on their way out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Callable, Optional, Protocol, Union

import h11

from edl.serving.server.gate import Guest
from edl.serving.server.memory import RequestMemory
from edl.serving.server.stream import Stream
from edl.serving.wire.tensor import Buffer, size_of

_MAX_HEAD = 16 << 10
_HEAD_CHUNK, _BODY_CHUNK = 4 << 10, 256 << 10

#: How methods that HTTP knows begin; nothing else is taken for HTTP.
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ")


@dataclass(frozen=True)
class Head:
    """A request without its body. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass
class HttpResponse:
    """A response. ``sent`` is called when it is on its way, or its client gone."""

    status: int
    content_type: str
    body: list[Buffer]
    headers: dict[str, str] = field(default_factory=dict)
    sent: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Body:
    """A whole body: ``size`` bytes in a block of request memory."""

    block: int
    size: int


class Handler(Protocol):
    """What requests are for."""

    def admit(self, guest: Guest, head: Head) -> Optional[HttpResponse]:
        """The refusal of a request, before its body is received; None to receive it."""

    def limit(self, head: Head) -> int:
        """Bytes that an admitted request's body may have; 0 if it has none."""

    def too_large(self, head: Head, size: int) -> str:
        """What to say of a body of at least ``size`` bytes, which is beyond the limit."""

    async def handle(self, guest: Guest, head: Head, body: Optional[Body]) -> HttpResponse:
        """The answer to a whole request. The body's block is the handler's to free."""


def looks_like_http(start: Union[bytes, bytearray]) -> bool:
    """Whether a connection that begins like this speaks HTTP/1."""
    return bytes(start).startswith(_METHODS)


class HttpConnection:
    """One request on a connection, and its response."""

    def __init__(
        self, stream: Stream, guest: Guest, handler: Handler, memory: RequestMemory
    ) -> None:
        self._stream = stream
        self._guest = guest
        self._handler = handler
        self._memory = memory
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)

    async def serve(self, start: Union[bytes, bytearray]) -> bool:
        """Receive the request that begins with ``start``, and answer it. Whether the connection may
        go on; what has been received of what follows is put back.

        Raises EOFError, TimeoutError and OSError for a connection that ends in mid-request.
        """
        self._http.receive_data(bytes(start))
        try:
            await self._serve()
        except h11.RemoteProtocolError as error:
            await self._send_error(error.error_status_hint, str(error))
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._stream.unread(self._http.trailing_data[0])
        return True

    async def _serve(self) -> None:
        event = await self._next_event(_HEAD_CHUNK, self._stream.pace().deadline)
        assert isinstance(event, h11.Request), "h11 has its first bytes"
        head = Head(
            event.method.decode("ascii"),
            event.target.decode("ascii", "replace").partition("?")[0],
            {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers},
        )
        refusal = self._handler.admit(self._guest, head)
        declared = int(head.headers.get("content-length", "0")[:16])
        has_body = declared > 0 or "transfer-encoding" in head.headers
        if refusal is not None and has_body:
            refusal.headers["connection"] = "close"  # its body is not received
            await self._send(head, refusal)
        elif refusal is not None:
            self._http.next_event()  # its end
            await self._send(head, refusal)
        elif has_body and (declared > (limit := self._handler.limit(head)) or not limit):
            await self._send_error(413, self._handler.too_large(head, declared))
        else:
            await self._answer(head, declared)

    async def _answer(self, head: Head, declared: int) -> None:
        body = None
        if self._handler.limit(head):
            body = await self._receive_body(head, declared)
            if body is None:
                return
        else:
            self._http.next_event()  # its end
        await self._send(head, await self._handler.handle(self._guest, head, body))

    async def _receive_body(self, head: Head, declared: int) -> Optional[Body]:
        """The body; None if it is too large, which has been said."""
        limit = self._handler.limit(head)
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await self._stream.write([self._http.send(go_on) or b""])
        arrival = self._memory.begin(self._guest, declared or limit)
        body = bytearray()
        pace = self._stream.pace()
        try:
            while not isinstance(
                event := await self._next_event(_BODY_CHUNK, pace.deadline), h11.EndOfMessage
            ):
                assert isinstance(event, h11.Data)
                if len(body) + len(event.data) > limit:
                    text = self._handler.too_large(head, len(body) + len(event.data))
                    await self._send_error(413, text)
                    return None
                if await self._memory.take(arrival, len(event.data)):
                    pace = self._stream.pace()  # what we made it wait for is not the peer's time
                body += event.data
                arrival.arrived = len(body)
                pace.moved(len(event.data), asyncio.get_running_loop().time())
            return Body(await self._memory.finish(arrival, body), len(body))
        finally:
            self._memory.drop(arrival)

    async def _next_event(self, chunk: int, deadline: float) -> h11.Event:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            self._http.receive_data(await self._stream.read_some(chunk, deadline))

    async def _send_error(self, status: int, text: str) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = HttpResponse(status, "text/plain", [f"{text}\n".encode()])
            response.headers["connection"] = "close"
            await self._send(None, response)

    async def _send(self, head: Optional[Head], response: HttpResponse) -> None:
        try:
            headers = {
                "content-type": response.content_type,
                "content-length": str(size_of(response.body)),
                **response.headers,
            }
            start = h11.Response(
                status_code=response.status,
                headers=list(headers.items()),
                reason=HTTPStatus(response.status).phrase,
            )
            buffers: list[Buffer] = [self._http.send(start) or b""]
            parts: list[Any] = response.body if head is None or head.method != "HEAD" else []
            for part in parts:  # any buffer will do, whatever h11's annotation says
                buffers += self._http.send_with_data_passthrough(h11.Data(data=part)) or []
            buffers += self._http.send_with_data_passthrough(h11.EndOfMessage()) or []
            await self._stream.write(buffers)
        finally:
            response.sent()
