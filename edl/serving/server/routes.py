"""What the teacher's port answers over HTTP.

==============================================  ==================================================
POST /GeneralModelService/inference             the model, as Paddle Serving serves it: protobuf
                                                (``application/proto``) or JSON bodies, gzip or not
POST /GeneralModelService/debug                 the same
GET /GeneralModelService/describe               what is served, as JSON
GET /healthz                                    200 while the process works
GET /readyz                                     200 while requests would be computed, else 503
GET /metrics                                    Prometheus
==============================================  ==================================================

An answer of the model says where its time went in the header ``server-timing`` (W3C's Server
Timing; durations in ms). Pages take no body. An error's status follows brpc's code for it, which
``x-bd-error-code`` carries as brpc does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Optional

from edl.errors import WireError
from edl.serving.server.engine import Outcome, Outputs, Refusal
from edl.serving.server.gate import Guest
from edl.serving.server.http import Body, Head, HttpResponse
from edl.serving.server.metrics import CONTENT_TYPE
from edl.serving.server.service import Service
from edl.serving.wire import frame, json_codec, labels
from edl.serving.wire.compression import compress
from edl.serving.wire.messages import METHODS, SERVICE, Request, encode_response
from edl.serving.wire.tensor import Buffer, size_of
from edl.serving.wire.times import server_timing

logger = logging.getLogger(__name__)

_SHORT_NAME = SERVICE.rpartition(".")[2]
_INFERENCE = tuple(f"/{name}/{method}" for method in METHODS for name in (_SHORT_NAME, SERVICE))
_DESCRIBE = f"/{_SHORT_NAME}/describe"
_PROTOBUF = ("application/proto", "application/x-protobuf")
_JSON = "application/json"
_PAGES = ("/healthz", "/readyz", "/metrics", _DESCRIBE)

#: Who probes health has no token, and no certificate.
_OPEN = ("/healthz", "/readyz")

_STATUS = {
    frame.ENOSERVICE: 404,
    frame.ENOMETHOD: 404,
    frame.EREQUEST: 400,
    frame.ERPCAUTH: 401,
    frame.ESSL: 403,
    frame.ELOGOFF: 503,
    frame.ELIMIT: 503,
}

#: Responses smaller than this are not worth compressing (brpc's own threshold).
_COMPRESS_FROM = 512

#: Larger ones are sent as they are: floats hardly shrink, and joining them takes the loop's time.
_COMPRESS_TO = 16 << 20


class Routes:
    """The handler of HTTP requests (see http.Handler)."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._intake = service.intake

    def limit(self, head: Head) -> int:
        """See http.Handler."""
        return self._intake.limit(_is_json(head)) if head.path in _INFERENCE else 0

    def too_large(self, head: Head, size: int) -> str:
        """See http.Handler."""
        if head.path in _INFERENCE:
            return self._intake.too_large(size, _is_json(head))
        return f"{head.path} takes no body"

    def admit(self, guest: Guest, head: Head) -> Optional[HttpResponse]:
        """See http.Handler."""
        allowed = "POST" if head.path in _INFERENCE else "GET"
        if head.path not in (*_INFERENCE, *_PAGES):
            known = ", ".join((_INFERENCE[0], *_PAGES))
            return self._refuse(frame.ENOMETHOD, f"no page {head.path}; there are {known}")
        if head.method != allowed and (head.method, allowed) != ("HEAD", "GET"):
            return HttpResponse(
                405, "text/plain", [f"use {allowed}\n".encode()], {"allow": allowed}
            )
        if head.path not in _OPEN and (self._service.needs_token or not guest.certified):
            scheme, _, token = head.headers.get("authorization", "").partition(" ")
            credential = token.strip().encode() if scheme.lower() == "bearer" else b""
            refusal = self._service.refusal(guest, credential)
            if refusal is not None and refusal.code == frame.ESSL:
                return self._refuse(refusal.code, str(refusal))
            if refusal is not None:
                response = self._refuse(refusal.code, "this teacher needs its bearer token")
                response.headers["www-authenticate"] = "Bearer"
                return response
        return None

    async def handle(self, guest: Guest, head: Head, body: Optional[Body]) -> HttpResponse:
        """See http.Handler."""
        if body is not None:
            return await self._infer(guest, head, body)
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

    async def _infer(self, guest: Guest, head: Head, body: Body) -> HttpResponse:
        arrived = time.monotonic()
        self._service.begin()
        try:
            response = await self._compute(guest, head, body, arrived)
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

    async def _compute(self, guest: Guest, head: Head, body: Body, arrived: float) -> HttpResponse:
        blocks = [body.block]
        try:
            request = await self._decode(guest, head, body, blocks)
            request.times = True  # told in a header that every browser shows
            submitted, blocks = blocks, []
            outcome = await self._outcome(request, submitted, guest)
            if isinstance(outcome, Refusal):
                raise outcome
            response = await self._respond(head, outcome, request.log_id)
            if outcome.course is not None:
                times = outcome.course.times(arrived, time.monotonic())
                response.headers["server-timing"] = server_timing(times)
            return response
        except Refusal as refusal:
            return self._refuse(refusal.code, str(refusal))
        except Exception as error:
            logger.exception("a request of %s failed", guest.peer)
            return self._refuse(frame.EINTERNAL, f"the teacher failed: {type(error).__name__}")
        finally:
            for unused in blocks:
                self._service.memory.free(unused)

    async def _outcome(self, request: Request, blocks: list[int], guest: Guest) -> Outcome:
        finished = asyncio.get_running_loop().create_future()

        def finish(outcome: Outcome) -> None:
            if not finished.done():  # it is while the server is being stopped
                finished.set_result(outcome)

        self._service.submit(request, blocks, guest, finish)
        return await finished

    async def _decode(self, guest: Guest, head: Head, body: Body, blocks: list[int]) -> Request:
        """The request. Raises Refusal."""
        encoding = head.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise Refusal(frame.EREQUEST, f"content-encoding {encoding} is not supported; use gzip")
        if head.content_type not in _PROTOBUF and not _is_json(head):
            raise Refusal(
                frame.EREQUEST,
                f"content-type {head.content_type} is not supported; use {_PROTOBUF[0]} or {_JSON}",
            )
        compression = "" if encoding == "identity" else encoding
        return await self._intake.request(
            guest, blocks, body.block, body.size, _is_json(head), compression
        )

    async def _respond(self, head: Head, outputs: Outputs, log_id: int) -> HttpResponse:
        """A response in the request's own format, which holds ``outputs`` until it is sent. Raises
        Refusal.
        """
        body: list[Buffer]
        try:
            if _is_json(head):
                content_type, body = _JSON, await _json(outputs, log_id)
            else:
                content_type, body = head.content_type, encode_response(outputs.arrays, log_id)
            headers = {}
            accepted = "gzip" in head.headers.get("accept-encoding", "")
            if accepted and _COMPRESS_FROM <= size_of(body) <= _COMPRESS_TO:
                body = [await asyncio.to_thread(compress, body)]
                headers["content-encoding"] = "gzip"
        except WireError as error:
            outputs.release()
            text = f"the model's outputs cannot be sent: {error}"
            raise Refusal(frame.EINTERNAL, text) from None
        except BaseException:
            outputs.release()
            raise
        return HttpResponse(200, content_type, body, headers, outputs.release)

    def _refuse(self, code: int, text: str) -> HttpResponse:
        return HttpResponse(
            _STATUS.get(code, 500),
            "text/plain; charset=utf-8",
            [f"{text}\n".encode()],
            {"x-bd-error-code": str(code)},
        )


def _is_json(head: Head) -> bool:
    return head.content_type in (_JSON, "")


async def _json(outputs: Outputs, log_id: int) -> list[Buffer]:
    """An answer as JSON, made a piece at a time: others go on meanwhile. Raises WireError."""
    pieces: list[Buffer] = []
    size = 0
    arrays = labels.with_plain_ids(outputs.arrays)
    for piece in json_codec.encode_response_in_pieces(arrays, log_id):
        pieces.append(piece)
        size += len(piece)
        if size > json_codec.MAX_JSON:
            limit = f"{json_codec.MAX_JSON >> 20} MiB"
            raise WireError(f"they are beyond {limit} as JSON; ask with {_PROTOBUF[0]}")
        await asyncio.sleep(0)
    return pieces
