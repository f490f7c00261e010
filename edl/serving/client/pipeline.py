"""A connection to a Python pipeline of a real Paddle Serving, used like a ``TeacherClient``."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import grpc
import numpy as np

from edl.errors import (
    RequestRefused,
    TeacherConnectionLost,
    TeacherError,
    TeacherFailed,
    TeacherProtocolError,
    TeacherUnavailable,
    TeacherUnreachable,
    WireError,
)
from edl.serving.client.teacher import Answer, OnAnswer, Outputs, wait_for_answer
from edl.serving.client.timing import Timing
from edl.serving.wire.description import Description
from edl.serving.wire.pipeline_messages import (
    METHOD,
    SERVICE,
    TENSORS,
    decode_response,
    encode_request,
)

logger = logging.getLogger(__name__)

#: Paddle Serving's codes (pipeline/error_catch.py) for requests that are wrong, and for pipelines
#: that are going away.
_USER_ERRORS = range(5000, 6000)
_TIMEOUT, _CLOSED = 6000, 3001


class PipelineClient:
    """One channel to a pipeline's gRPC port. Safe to use from several threads.

    ``description``: what the pipeline serves; it cannot be asked. ``form``: how arrays travel, see
    ``pipeline_messages``. Raises TeacherUnreachable from the constructor.
    """

    way = "grpc"

    def __init__(
        self,
        endpoint: str,
        description: Optional[Description] = None,
        form: str = TENSORS,
        connect_timeout: float = 3.0,
    ) -> None:
        self.endpoint = endpoint
        self._description = description
        self._form = form
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._calls: dict[int, tuple[Any, OnAnswer]] = {}
        self._closed: Optional[TeacherError] = None
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(endpoint, options)
        try:
            grpc.channel_ready_future(self._channel).result(connect_timeout)
        except grpc.FutureTimeoutError as error:
            self._channel.close()
            raise TeacherUnreachable(
                endpoint, f"no gRPC connection within {connect_timeout:g} s"
            ) from error
        self._call = self._channel.unary_unary(f"/{SERVICE}/{METHOD}")

    def submit(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        on_answer: OnAnswer,
        more: bool = False,
        timing: Optional[Timing] = None,
    ) -> int:
        """See TeacherClient.submit. The pipeline answers all its fetches whatever is asked for, and
        says nothing of times.
        """
        request = encode_request(feeds, self._form)
        number = next(self._ids)
        if timing is not None:
            timing.sending = timing.sent = time.monotonic()
        with self._lock:
            closed = self._closed
            if closed is None:
                call = self._call.future(request)
                self._calls[number] = (call, on_answer)
        if closed is not None:
            on_answer(closed)
        else:
            call.add_done_callback(lambda _: self._done(number, list(fetches), timing))
        return number

    def flush(self) -> None:
        """See TeacherClient.flush. Nothing waits for more here."""

    def infer(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str] = (), timeout: float = 60.0
    ) -> Outputs:
        """See TeacherClient.infer."""
        return wait_for_answer(
            self.endpoint,
            lambda on_answer: self.submit(feeds, fetches, on_answer),
            self.forget,
            timeout,
        )

    def describe(self, timeout: float = 10.0) -> Description:
        """What the pipeline serves, as far as it was said. Raises RequestRefused if it was not."""
        if self._description is None:
            raise RequestRefused(self.endpoint, "a pipeline does not say what it serves")
        return self._description

    def forget(self, correlation_id: int) -> None:
        """Drop a request."""
        with self._lock:
            call, _ = self._calls.pop(correlation_id, (None, None))
        if call is not None:
            call.cancel()

    def close(self, error: Optional[TeacherError] = None) -> None:
        """End the channel; what is in flight is answered with ``error``."""
        with self._lock:
            if self._closed is None:
                self._closed = error or TeacherConnectionLost(
                    self.endpoint, "the connection was closed"
                )
            lost, self._calls = self._calls, {}
        for _, on_answer in lost.values():
            on_answer(self._closed)
        self._channel.close()

    @property
    def broken(self) -> Optional[TeacherError]:
        """See TeacherClient.broken. gRPC connects again by itself."""
        return self._closed

    def __enter__(self) -> PipelineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _done(self, number: int, fetches: list[str], timing: Optional[Timing]) -> None:
        if timing is not None:
            timing.came = timing.received = time.monotonic()
        with self._lock:
            call, on_answer = self._calls.pop(number, (None, None))
        if call is not None and on_answer is not None:
            on_answer(self._answer(call, fetches))

    def _answer(self, call: Any, fetches: list[str]) -> Answer:
        try:
            response = decode_response(memoryview(call.result()))
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            return self._error_of(call, error)
        except WireError as error:
            return TeacherProtocolError(self.endpoint, f"its answer is malformed: {error}")
        if response.err_no:
            return self._refusal(response.err_no, response.err_msg)
        return self._conform(response.outputs, fetches)

    def _conform(self, outputs: Outputs, fetches: list[str]) -> Answer:
        """Outputs of the dtypes that are promised: text has none of its own."""
        specs = self._description.fetches if self._description is not None else {}
        for name in fetches:
            if name not in outputs:
                has = ", ".join(outputs)
                return TeacherProtocolError(self.endpoint, f"it answers {has}, but no {name!r}")
        wanted = {name: a for name, a in outputs.items() if not fetches or name in fetches}
        for name in wanted.keys() & specs.keys():
            spec, array = specs[name], wanted[name]
            if spec.dtype == "uint16" and array.dtype.kind == "i":
                return TeacherProtocolError(
                    self.endpoint, f"{name!r} may be bfloat16's bits or integers: it does not say"
                )
            try:
                wanted[name] = spec.conform(array)
            except WireError as error:
                return TeacherProtocolError(self.endpoint, f"{name!r}: {error}")
        return wanted

    def _refusal(self, code: int, text: str) -> TeacherError:
        message = f"{text.strip() or 'no reason given'} (error {code})"
        if code in _USER_ERRORS:
            return RequestRefused(self.endpoint, message)
        if code in (_TIMEOUT, _CLOSED):
            return TeacherUnavailable(self.endpoint, message)
        return TeacherFailed(self.endpoint, message)

    def _error_of(self, call: Any, error: BaseException) -> TeacherError:
        code = call.code()
        details = call.details() or str(error)
        if code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN):
            answer: TeacherError = TeacherProtocolError(self.endpoint, details)
        elif code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            answer = RequestRefused(self.endpoint, f"the request is too large for it: {details}")
        else:
            answer = TeacherConnectionLost(self.endpoint, f"{code.name.lower()}: {details}")
        answer.__cause__ = error
        return answer
