"""HTTP/1.1 on a connection: requests in, responses out. What they mean is the handler's business.

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

from edl.serving.server.service import Limits
from edl.serving.server.stream import MIN_RATE, Stream
from edl.serving.wire.tensor import Buffer, size_of

_MAX_HEAD = 16 << 10
_CHUNK = 256 << 10

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


class Handler(Protocol):
    """What requests are for."""

    def admit(self, head: Head) -> Optional[HttpResponse]:
        """The refusal of a request, before its body is received; None to receive it."""

    async def handle(self, stream: Stream, head: Head, body: bytearray) -> HttpResponse:
        """The answer to a whole request."""


def looks_like_http(start: Union[bytes, bytearray]) -> bool:
    """Whether a connection that begins like this speaks HTTP/1."""
    return bytes(start).startswith(_METHODS)


class HttpConnection:
    """Serves one connection, one request after the other."""

    def __init__(self, stream: Stream, handler: Handler, limits: Limits) -> None:
        self._stream = stream
        self._handler = handler
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)

    async def serve(self, start: Union[bytes, bytearray]) -> None:
        """Answer requests until either side closes. ``start``: bytes received already.

        Raises EOFError, TimeoutError and OSError for a connection that ends in mid-request.
        """
        self._http.receive_data(bytes(start))
        try:
            await self._serve_one(self._limits.patience)
            while self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
                await self._serve_one(self._limits.idle)
        except h11.RemoteProtocolError as error:
            await self._send_error(error.error_status_hint, str(error))
        await self._stream.finish(patience=1.0)

    async def _serve_one(self, patience: float) -> None:
        event = await self._next_event(self._loop.time() + patience)
        if not isinstance(event, h11.Request):
            return  # the peer has closed
        head = Head(
            event.method.decode("ascii"),
            event.target.decode("ascii", "replace").partition("?")[0],
            {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers},
        )
        refusal = self._handler.admit(head)
        if refusal is not None and ({"content-length", "transfer-encoding"} & head.headers.keys()):
            refusal.headers["connection"] = "close"  # its body is not received
            await self._send(head, refusal)
            return
        body = await self._receive_body(head)
        if body is None:
            limit = self._limits.max_body
            await self._send_error(413, f"body is beyond the limit of {limit} bytes")
            return
        await self._send(head, refusal or await self._handler.handle(self._stream, head, body))

    async def _receive_body(self, head: Head) -> Optional[bytearray]:
        """The body; None if it is too large."""
        limit, body = self._limits.max_body, bytearray()
        declared = head.headers.get("content-length", "0")
        if len(declared) > 15 or int(declared) > limit:
            return None
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await self._stream.write([self._http.send(go_on) or b""])
        started = self._loop.time()
        while True:
            deadline = started + self._limits.patience + len(body) / MIN_RATE
            event = await self._next_event(deadline)
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > limit:
                    return None
            elif isinstance(event, h11.EndOfMessage):
                return body
            else:
                raise EOFError(f"{self._stream.peer} closed the connection in mid-request")

    async def _next_event(self, deadline: float) -> h11.Event:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            self._http.receive_data(await self._stream.read_some(_CHUNK, deadline))

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
