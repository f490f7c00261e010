"""What the teacher's port answers over HTTP.

==============================================  ==================================================
POST /GeneralModelService/inference             the model, as Paddle Serving serves it: protobuf
                                                (``application/proto``) or JSON bodies, gzip or not
GET /GeneralModelService/describe               what is served, as JSON
GET /healthz                                    200 while the process works
GET /readyz                                     200 while requests would be computed, else 503
GET /metrics                                    Prometheus
==============================================  ==================================================

An error's status follows brpc's code for it, which ``x-bd-error-code`` carries as brpc does.
"""

from __future__ import annotations

import asyncio
import time
from typing import Optional

from edl.errors import WireError
from edl.serving.server.engine import Outcome, Outputs, Refusal
from edl.serving.server.http import Head, HttpResponse
from edl.serving.server.metrics import CONTENT_TYPE
from edl.serving.server.service import Limits, Service
from edl.serving.server.stream import Stream
from edl.serving.wire import frame, json_codec
from edl.serving.wire.compression import compress, decompress
from edl.serving.wire.messages import METHOD, SERVICE, Request, decode_request, encode_response
from edl.serving.wire.tensor import Buffer, size_of

_SHORT_NAME = SERVICE.rpartition(".")[2]
_INFERENCE = (f"/{_SHORT_NAME}/{METHOD}", f"/{SERVICE}/{METHOD}")
_DESCRIBE = f"/{_SHORT_NAME}/describe"
_PROTOBUF = ("application/proto", "application/x-protobuf")
_JSON = "application/json"
_PAGES = ("/healthz", "/readyz", "/metrics", _DESCRIBE)

#: Who probes health has no token.
_OPEN = ("/healthz", "/readyz")

_STATUS = {
    frame.ENOSERVICE: 404,
    frame.ENOMETHOD: 404,
    frame.EREQUEST: 400,
    frame.ERPCAUTH: 401,
    frame.ELOGOFF: 503,
    frame.ELIMIT: 503,
}

#: Responses smaller than this are not worth compressing (brpc's own threshold).
_COMPRESS_FROM = 512


class Routes:
    """The handler of HTTP requests (see http.Handler)."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    def admit(self, head: Head) -> Optional[HttpResponse]:
        """See http.Handler."""
        allowed = "POST" if head.path in _INFERENCE else "GET"
        if head.path not in (*_INFERENCE, *_PAGES):
            known = ", ".join((_INFERENCE[0], *_PAGES))
            return self._refuse(frame.ENOMETHOD, f"no page {head.path}; there are {known}")
        if head.method != allowed and (head.method, allowed) != ("HEAD", "GET"):
            return HttpResponse(
                405, "text/plain", [f"use {allowed}\n".encode()], {"allow": allowed}
            )
        if head.path not in _OPEN and self._service.needs_token:
            scheme, _, token = head.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._service.trusts(token.strip().encode()):
                refusal = self._refuse(frame.ERPCAUTH, "this teacher needs its bearer token")
                refusal.headers["www-authenticate"] = "Bearer"
                return refusal
        return None

    async def handle(self, stream: Stream, head: Head, body: bytearray) -> HttpResponse:
        """See http.Handler."""
        if head.path in _INFERENCE:
            return await self._infer(stream, head, body)
        if head.path == "/healthz":
            return HttpResponse(200, "text/plain", [b"ok\n"])
        if head.path == "/readyz":
            reason = self._service.why_not_ready()
            return HttpResponse(
                503 if reason else 200, "text/plain", [f"{reason or 'ok'}\n".encode()]
            )
        if head.path == "/metrics":
            return HttpResponse(200, CONTENT_TYPE, [self._service.metrics.exposition()])
        try:
            return HttpResponse(200, _JSON, [self._service.describe()])
        except Refusal as refusal:
            return self._refuse(refusal.code, str(refusal))

    async def _infer(self, stream: Stream, head: Head, body: bytearray) -> HttpResponse:
        arrived = time.monotonic()
        self._service.begin()
        try:
            response = await self._compute(stream, head, body)
            code = int(response.headers.get("x-bd-error-code", 0))
        except BaseException:
            self._service.end("http", frame.EINTERNAL, arrived)
            raise
        release = response.sent

        def sent() -> None:
            release()
            self._service.end("http", code, arrived)

        response.sent = sent
        return response

    async def _compute(self, stream: Stream, head: Head, body: bytearray) -> HttpResponse:
        # Off the loop, which must go on serving others: bodies may be large, and JSON is slow.
        try:
            request = await asyncio.to_thread(self._decode, head, body)
        except WireError as error:
            return self._refuse(frame.EREQUEST, f"malformed request: {error}")
        except Refusal as refusal:
            return self._refuse(refusal.code, str(refusal))
        outcome = await self._outcome(request, stream)
        if isinstance(outcome, Refusal):
            return self._refuse(outcome.code, str(outcome))
        try:
            return await asyncio.to_thread(self._encode, head, outcome)
        except WireError as error:
            outcome.release()
            return self._refuse(frame.EINTERNAL, f"the model's outputs cannot be sent: {error}")

    async def _outcome(self, request: Request, stream: Stream) -> Outcome:
        finished = asyncio.get_running_loop().create_future()

        def finish(outcome: Outcome) -> None:
            if not finished.done():
                finished.set_result(outcome)
            elif isinstance(outcome, Outputs):  # the server is being stopped
                outcome.release()

        self._service.submit(request, [], stream, finish)
        return await finished

    def _decode(self, head: Head, body: bytearray) -> Request:
        encoding = head.headers.get("content-encoding", "identity").lower()
        if encoding == "gzip":
            message = decompress(body, "gzip", self._limits.max_body)
        elif encoding == "identity":
            message = memoryview(body)
        else:
            raise Refusal(frame.EREQUEST, f"content-encoding {encoding} is not supported; use gzip")
        if head.content_type in _PROTOBUF:
            return decode_request(message)
        if head.content_type in (_JSON, ""):
            return json_codec.decode_request(message)
        raise Refusal(
            frame.EREQUEST,
            f"content-type {head.content_type} is not supported; use {_PROTOBUF[0]} or {_JSON}",
        )

    def _encode(self, head: Head, outputs: Outputs) -> HttpResponse:
        """A response in the request's own format, which holds ``outputs`` until it is sent."""
        body: list[Buffer]
        if head.content_type in _PROTOBUF:
            content_type, body = head.content_type, encode_response(outputs.arrays)
        else:
            content_type, body = _JSON, [json_codec.encode_response(outputs.arrays)]
        response = HttpResponse(200, content_type, body, {}, outputs.release)
        if "gzip" in head.headers.get("accept-encoding", "") and size_of(body) >= _COMPRESS_FROM:
            response.body = [compress(body)]
            response.headers["content-encoding"] = "gzip"
        return response

    def _refuse(self, code: int, text: str) -> HttpResponse:
        return HttpResponse(
            _STATUS.get(code, 500),
            "text/plain; charset=utf-8",
            [f"{text}\n".encode()],
            {"x-bd-error-code": str(code)},
        )
