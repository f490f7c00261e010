"""A connection to one teacher, with many requests in flight on it.

``TeacherClient.submit`` sends and returns; the answer goes to a callback on the connection's
receiving thread, matched by correlation id, in whatever order the teacher answers.
``TeacherClient.infer`` does the same and waits.

Sockets are blocking, so that a whole frame is one system call in each direction with the
GIL released: a student busy in Python delays a frame once, not once per segment.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple, Optional, Union

import numpy as np

from edl._endpoints import parse_endpoint
from edl._forking import note_thread
from edl.errors import (
    AccessDenied,
    RequestRefused,
    TeacherConnectionLost,
    TeacherError,
    TeacherFailed,
    TeacherProtocolError,
    TeacherTimeout,
    TeacherUnavailable,
    TeacherUnreachable,
    TlsRefused,
    WireError,
)
from edl.serving.client.lending import Lending, Loan
from edl.serving.client.timing import Timing
from edl.serving.client.tls import SecureSocket, Trust, refused, secure
from edl.serving.wire import frame
from edl.serving.wire.compression import compression_of, decompress
from edl.serving.wire.description import DESCRIBE_METHOD, DESCRIBE_SERVICE, Description
from edl.serving.wire.labels import with_plain_ids
from edl.serving.wire.local import SHARE_METHOD, SHARE_SERVICE, encode_share
from edl.serving.wire.messages import METHOD, SERVICE, decode_response, encode_request
from edl.serving.wire.tensor import IOV_MAX, Buffer, Memories, drop_sent, own_copy, size_of

logger = logging.getLogger(__name__)

#: The ways that tensors may take.
TCP, TLS, UNIX_SOCKET, SHARED_MEMORY = "tcp", "tls", "unix socket", "shared memory"

Socket = Union[socket.socket, SecureSocket]

Outputs = dict[str, np.ndarray]
Answer = Union[Outputs, TeacherError]
OnAnswer = Callable[[Answer], None]

#: A body is received into memory that is reserved at once up to this size, and grown beyond it
#: only as bytes arrive, so that a false length costs nothing.
_FIRST_RESERVATION = 64 << 20
_INBOX_SIZE = 64 << 10

#: Bytes of frames that wait for more, at most: with more, a system call costs little of it.
_HELD_BYTES = 256 << 10

#: Bytes of a request from which on a server may find it too large.
_LARGE_REQUEST = 16 << 20


#: struct ucred: process, user, group.
_CREDENTIALS = struct.Struct("iII")


class _Lent(NamedTuple):
    """What is known of a request on a Unix socket. ``loan``: where it lies, if it is not sent."""

    fetches: Sequence[str]
    rows: int
    loan: Optional[Loan]


class _Pending(NamedTuple):
    """A request in flight. ``raw``: its answer's payload is wanted as it is. ``lent``: for requests
    on a Unix socket. ``timing``: of a request that somebody follows.
    """

    on_answer: OnAnswer
    raw: bool
    size: int
    lent: Optional[_Lent] = None
    timing: Optional[Timing] = None


class TeacherClient:
    """One connection to a teacher. Safe to use from several threads.

    ``endpoint``: ``host:port``. ``path``: of the teacher's Unix socket, to use that instead (see
    ``local``). ``connect_timeout``: seconds. ``send_timeout``: seconds in which
    the teacher may take no bytes. ``max_answer_bytes``: larger answers end the connection.
    ``token``: what the teacher wants to be shown. ``trust``: which teachers are believed; by
    default as the environment says. ``tls``: what is said of this one: that it speaks TLS, that it
    does not, or nothing (see :class:`Trust`); the Unix socket of one that does must be of a process
    of this user.

    Raises from the constructor: TeacherUnreachable, TlsRefused. After the connection has broken
    every request in flight is answered with TeacherConnectionLost, and so is every later one.
    """

    def __init__(
        self,
        endpoint: str,
        connect_timeout: float = 3.0,
        send_timeout: float = 60.0,
        max_answer_bytes: int = frame.MAX_BODY_SIZE,
        token: str = "",
        path: str = "",
        trust: Optional[Trust] = None,
        tls: Optional[bool] = None,
    ) -> None:
        self.endpoint = endpoint
        self._credential = token.encode()
        self._max_answer_bytes = max_answer_bytes
        trust = trust or Trust.from_environment()
        self._socket: Socket
        if path:
            self._socket = connect_locally(endpoint, path, connect_timeout, send_timeout)
            if tls:
                check_user(self._socket, endpoint, path)
        elif trust.wants_tls(endpoint, tls):
            self._socket = connect_securely(endpoint, trust, connect_timeout, send_timeout)
        else:
            self._socket = connect(endpoint, connect_timeout, send_timeout)
            if token:
                trust.check_token(self._socket, endpoint)
        self._lending = Lending(self._hand_over) if path else None
        self._late: dict[int, Loan] = {}  # of requests that were forgotten, and not answered yet
        self._inbox = _Inbox(self._socket)
        self._ids = itertools.count(1)
        self._in_flight: dict[int, _Pending] = {}
        self._proven_size = 0  # of the largest request that was answered
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._held: list[Buffer] = []  # frames that wait for more
        self._held_timings: list[Timing] = []
        self._is_followed = False  # whether anybody wants to know when answers come
        self._broken: Optional[TeacherError] = None
        self._receiver = threading.Thread(
            target=self._receive_all, name=f"edl-receive-{endpoint}", daemon=True
        )
        self._receiver.start()
        note_thread(self._receiver, self, lambda client: client.broken is not None)

    def submit(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        on_answer: OnAnswer,
        more: bool = False,
        timing: Optional[Timing] = None,
    ) -> int:
        """Send a request; ``on_answer`` gets the outputs or a TeacherError, exactly once. ``more``:
        another one follows, or :meth:`flush`, and what is small waits for it. ``timing``: filled in
        by the time that the outputs are there.

        Returns the correlation id (for :meth:`forget`). Blocks while the teacher does not take
        the bytes, for at most ``send_timeout``; closing the client from another thread ends that.
        ``on_answer`` runs on the receiving thread and must be quick. Raises WireError if an array
        cannot travel.
        """
        return self._submit(feeds, fetches, on_answer, more, timing)

    def flush(self) -> None:
        """Send what has waited for more."""
        self._transmit([])

    def infer(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str] = (), timeout: float = 60.0
    ) -> Outputs:
        """Outputs for ``feeds`` by fetch name; all of them when none is named. A name such as
        ``logits?top_k=64`` asks for sparse labels: ``logits.values`` and so on.

        Both are numpy arrays, rows first, in the shapes and dtypes that
        :meth:`describe` says. Feeds are not converted. Raises TeacherTimeout after ``timeout``
        seconds, RequestRefused if the teacher finds the request wrong, AccessDenied if it wants
        another token, TeacherUnavailable, TeacherFailed, TeacherProtocolError or
        TeacherConnectionLost otherwise; WireError if an array cannot travel.
        """

        def send(on_answer: OnAnswer) -> int:
            return self._submit(feeds, fetches, on_answer)

        outputs = wait_for_answer(self.endpoint, send, self.forget, timeout)
        if not any("?" in fetch for fetch in fetches):
            return outputs
        try:
            return with_plain_ids(outputs)
        except WireError as error:
            raise TeacherProtocolError(self.endpoint, str(error)) from error

    def describe(self, timeout: float = 10.0) -> Description:
        """What the teacher serves. Raises RequestRefused if the server does not say (a Paddle
        Serving of the original kind), and the errors of :meth:`infer`.
        """

        def send(on_answer: OnAnswer) -> int:
            return self._send(DESCRIBE_SERVICE, DESCRIBE_METHOD, [], on_answer, raw=True)

        payload = wait_for_answer(self.endpoint, send, self.forget, timeout)
        assert isinstance(payload, memoryview)
        try:
            return Description.from_json(str(payload, "utf-8"))
        except ValueError as error:
            raise TeacherProtocolError(self.endpoint, str(error)) from error

    def forget(self, correlation_id: int) -> None:
        """Drop a request: its answer, if it still comes, is ignored."""
        with self._lock:
            pending = self._in_flight.pop(correlation_id, None)
            if pending is not None and pending.lent is not None and pending.lent.loan is not None:
                self._late[correlation_id] = pending.lent.loan

    def close(self, error: Optional[TeacherError] = None) -> None:
        """End the connection; what is in flight is answered with ``error``, in this thread. Does
        not wait for the receiving thread, which may be waiting for what its caller holds.
        """
        self._break(error or TeacherConnectionLost(self.endpoint, "the connection was closed"))

    def __enter__(self) -> TeacherClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def way(self) -> str:
        """How tensors travel now: "tcp", "tls", "unix socket" or "shared memory"."""
        if self._lending is None:
            return TLS if isinstance(self._socket, SecureSocket) else TCP
        return SHARED_MEMORY if self._lending.in_use else UNIX_SOCKET

    @property
    def broken(self) -> Optional[TeacherError]:
        """Why the connection has ended; None while it has not, as far as that is known."""
        return self._broken

    def _submit(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        on_answer: OnAnswer,
        more: bool = False,
        timing: Optional[Timing] = None,
    ) -> int:
        ask = timing is not None and timing.ask
        if self._lending is None or self._broken is not None:  # nothing is lent any more
            payload = encode_request(feeds, fetches, times=ask)
            return self._send(
                SERVICE, METHOD, payload, on_answer, raw=False, more=more, timing=timing
            )
        loan = self._lending.lend(feeds, fetches)
        places, room = ({}, None) if loan is None else (loan.places, loan.room)
        rows = max((array.shape[0] for array in feeds.values() if array.ndim), default=0)
        try:
            payload = encode_request(feeds, fetches, places, room, ask)
            lent = _Lent(fetches, rows, loan)
            return self._send(
                SERVICE, METHOD, payload, on_answer, False, lent, more=more, timing=timing
            )
        except WireError:
            if loan is not None:
                loan.free()
            raise

    def _hand_over(self, number: int, fd: int, then: Callable[[bool], None]) -> None:
        """See Lending."""

        def on_answer(answer: object) -> None:
            if isinstance(answer, TeacherError):
                logger.info("%s; requests to it travel through its socket", answer)
            else:
                logger.info("large requests to %s lie in shared memory", self.endpoint)
            then(not isinstance(answer, TeacherError))

        self._send(SHARE_SERVICE, SHARE_METHOD, encode_share(number), on_answer, raw=True, fd=fd)

    def _send(
        self,
        service: str,
        method: str,
        payload: list[Buffer],
        on_answer: OnAnswer,
        raw: bool,
        lent: Optional[_Lent] = None,
        fd: Optional[int] = None,
        more: bool = False,
        timing: Optional[Timing] = None,
    ) -> int:
        """Send a frame; ``fd``: a file descriptor that goes with it. ``more``, ``timing``: see
        submit.
        """
        with self._lock:
            correlation_id = next(self._ids)
            broken = self._broken
            if broken is None:
                pending = _Pending(on_answer, raw, size_of(payload), lent, timing)
                self._in_flight[correlation_id] = pending
                self._is_followed = self._is_followed or timing is not None
        if broken is not None:
            on_answer(broken)
            return correlation_id
        meta = frame.RequestMeta(service, method, correlation_id, authentication=self._credential)
        try:
            buffers = frame.encode_frame(meta, payload)
        except WireError:
            self.forget(correlation_id)
            raise
        self._transmit(buffers, fd, more, timing)
        return correlation_id

    def _transmit(
        self,
        buffers: list[Buffer],
        fd: Optional[int] = None,
        more: bool = False,
        timing: Optional[Timing] = None,
    ) -> None:
        """Send a frame behind those that are held back, or hold it back as well."""
        try:
            with self._send_lock:
                self._held += buffers
                if timing is not None:
                    self._held_timings.append(timing)
                if more and fd is None and size_of(self._held) < _HELD_BYTES:
                    return
                buffers, self._held = self._held, []
                timings, self._held_timings = self._held_timings, []
                for each in timings:
                    each.sending = time.monotonic()
                send_all(self._socket, buffers, fd)
                for each in timings:
                    each.sent = time.monotonic()
        except BlockingIOError as error:  # SO_SNDTIMEO has passed
            self._break(TeacherTimeout(self.endpoint, "it takes no more bytes"), error)
        except OSError as error:
            self._break(self._lost(f"sending failed: {error}"), error)
        except BaseException as error:  # perhaps with half a frame sent
            self._break(self._lost(f"sending failed: {type(error).__name__}: {error}"), error)
            raise

    def _receive_all(self) -> None:
        try:
            while True:
                self._receive_one()
        except WireError as error:
            self._break(TeacherProtocolError(self.endpoint, str(error)), error)
        except EOFError as error:
            self._break(self._lost(str(error)), error)
        except ssl.SSLError as error:  # a teacher says only then what it has against us
            self._break(refused(self.endpoint, error), error)
        except OSError as error:
            self._break(self._lost(f"receiving failed: {error}"), error)
        except MemoryError as error:
            self._break(TeacherProtocolError(self.endpoint, "its answer exceeds memory"), error)
        except Exception as error:  # a bug, here or in who is answered: nobody may wait for ever
            logger.exception("receiving from %s failed", self.endpoint)
            said = f"reading its answer failed: {type(error).__name__}: {error}"
            self._break(TeacherProtocolError(self.endpoint, said), error)
        finally:
            with self._send_lock:  # whose number another connection could have by then
                self._socket.close()

    def _receive_one(self) -> None:
        header = self._inbox.read(frame.HEADER_SIZE)
        came = time.monotonic() if self._is_followed else 0.0
        body_size, meta_size = frame.parse_header(header, self._max_answer_bytes)
        body = self._inbox.read(body_size)
        meta, payload = frame.parse_body(body, meta_size)
        if not isinstance(meta, frame.ResponseMeta):
            raise WireError("the teacher sent a request instead of an answer")
        with self._lock:
            pending = self._in_flight.pop(meta.correlation_id, None)
            late = self._late.pop(meta.correlation_id, None)
        if pending is None:  # forgotten or timed out
            if late is not None:
                late.free()
            return
        self._proven_size = max(self._proven_size, pending.size)
        if pending.timing is not None:
            pending.timing.came, pending.timing.received = came, time.monotonic()
        try:
            answer = self._answer(meta, payload, pending)
        except WireError as error:
            malformed = f"its answer is malformed: {error}"
            pending.on_answer(TeacherProtocolError(self.endpoint, malformed))
            raise
        pending.on_answer(answer)  # type: ignore[arg-type]

    def _answer(
        self, meta: frame.ResponseMeta, payload: memoryview, pending: _Pending
    ) -> Union[Answer, memoryview]:
        """What it says, in memory of its own. What its request was lent is free then."""
        loan = pending.lent.loan if pending.lent is not None else None
        try:
            answer = self._decoded(meta, payload, pending, loan.arenas if loan else None)
            if loan is not None and isinstance(answer, dict):
                answer = {
                    name: own_copy(array) if loan.holds(array) else array
                    for name, array in answer.items()
                }
        finally:
            if loan is not None:
                loan.free()
        if pending.lent is not None and self._lending is not None:
            if isinstance(answer, dict):
                self._lending.answered(loan, pending.lent.fetches, pending.lent.rows, answer)
            elif loan is not None and isinstance(answer, TeacherFailed):
                self._lending.failed(loan)
        return answer

    def _decoded(
        self,
        meta: frame.ResponseMeta,
        payload: memoryview,
        pending: _Pending,
        memories: Optional[Memories],
    ) -> Union[Answer, memoryview]:
        if meta.error_code:
            return error_for(self.endpoint, meta.error_code, meta.error_text)
        if meta.compress_type:  # as every Paddle Serving answers from 0.7 on, asked or not
            kind = compression_of(meta.compress_type)
            payload = decompress(payload, kind, self._max_answer_bytes)
        if pending.raw:
            return payload
        timing = pending.timing
        response = decode_response(payload, memories, timing is not None and timing.ask)
        if response.err_no:
            return error_for(self.endpoint, response.err_no, response.err_msg)
        if timing is not None:
            timing.server = response.times
        return response.outputs

    def _lost(self, reason: str) -> TeacherConnectionLost:
        """The connection has ended without a word, which is also how servers refuse a request that
        is too large for them.
        """
        with self._lock:
            largest = max((pending.size for pending in self._in_flight.values()), default=0)
        if largest >= _LARGE_REQUEST and largest > self._proven_size:
            reason += (
                f"; it was sent a request of {largest / 1e6:.1f} MB and may allow less "
                "(max_body_size of brpc, and so of Paddle Serving, is 64 MB by default): set a "
                "smaller teacher_batch_size, or a larger limit at the server"
            )
        return TeacherConnectionLost(self.endpoint, reason)

    def _break(self, error: TeacherError, cause: Optional[BaseException] = None) -> None:
        """Mark the connection as broken, wake whoever is blocked on it, answer everybody."""
        # Who keeps the error would keep, by its frames, what was being sent.
        error.__cause__ = cause.with_traceback(None) if isinstance(cause, OSError) else cause
        with self._lock:
            if self._broken is None:
                self._broken = error
            lost, self._in_flight = self._in_flight, {}
            self._late.clear()
        if self._lending is not None:
            self._lending.close()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # unlike close, wakes blocked threads
        except OSError:
            pass
        for pending in lost.values():
            try:
                pending.on_answer(self._broken)
            except Exception:  # the others want to know too
                logger.exception("telling of the end of the connection to %s failed", self.endpoint)


def wait_for_answer(
    endpoint: str,
    send: Callable[[OnAnswer], int],
    forget: Callable[[int], None],
    timeout: float,
) -> Outputs:
    """The answer to the request that ``send`` sends, which returns its correlation id.

    Raises TeacherTimeout after ``timeout`` seconds, when the request is forgotten, or the
    TeacherError that came instead of an answer.
    """
    answered = threading.Event()
    answers: list[Answer] = []

    def on_answer(answer: Answer) -> None:
        answers.append(answer)
        answered.set()

    correlation_id = send(on_answer)
    if not answered.wait(timeout):
        forget(correlation_id)
        raise TeacherTimeout(endpoint, f"no answer within {timeout:g} s")
    if isinstance(answers[0], TeacherError):
        raise answers[0]
    return answers[0]


def error_for(endpoint: str, code: int, message: str) -> TeacherError:
    """The error class for a server's error code."""
    message = message or f"error {code}"
    if code in (frame.ELOGOFF, frame.ELIMIT):
        return TeacherUnavailable(endpoint, message)
    if code == frame.ERPCAUTH:
        return AccessDenied(endpoint, message)
    if code == frame.ESSL:
        return TlsRefused(endpoint, message)
    if code in (frame.ENOSERVICE, frame.ENOMETHOD, frame.EREQUEST):
        return RequestRefused(endpoint, message)
    return TeacherFailed(endpoint, message)


def connect(endpoint: str, timeout: float, send_timeout: float) -> socket.socket:
    """A blocking TCP socket to ``endpoint``. Raises TeacherUnreachable.

    Sending fails once the peer has taken nothing for ``send_timeout`` seconds.
    """
    started = time.monotonic()
    try:
        sock = socket.create_connection(parse_endpoint(endpoint), timeout)
    except (OSError, ValueError) as error:
        if isinstance(error, socket.timeout) or time.monotonic() - started >= timeout:
            reason = f"no connection within {timeout:g} s"
        else:
            reason = f"cannot connect: {getattr(error, 'strerror', None) or error}"
        raise TeacherUnreachable(endpoint, reason) from error
    _limit_sending(sock, send_timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A dead host is noticed within half a minute even when nothing is in flight.
    for option, seconds in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    return sock


def connect_securely(
    endpoint: str, trust: Trust, timeout: float, send_timeout: float
) -> SecureSocket:
    """The same with TLS. Raises TlsRefused too."""
    deadline = time.monotonic() + timeout
    sock = connect(endpoint, timeout, send_timeout)
    try:
        sock.settimeout(max(0.05, deadline - time.monotonic()))
        return SecureSocket(secure(sock, endpoint, trust), send_timeout)
    except BaseException:
        sock.close()
        raise


def connect_locally(endpoint: str, path: str, timeout: float, send_timeout: float) -> socket.socket:
    """The same to the Unix socket at ``path`` of the teacher at ``endpoint``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(path)
    except (OSError, ValueError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise TeacherUnreachable(endpoint, f"cannot connect to {path}: {reason}") from error
    _limit_sending(sock, send_timeout)
    return sock


def check_user(sock: socket.socket, endpoint: str, path: str) -> None:
    """Raises TlsRefused, and closes the Unix socket, if it is not a process of this user that has
    listened at the other end: whoever may write where the path leads could stand for the teacher.
    """
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.getuid():
        sock.close()
        raise TlsRefused(endpoint, f"{path} is a socket of another user ({user})")


def _limit_sending(sock: socket.socket, send_timeout: float) -> None:
    sock.settimeout(None)
    seconds, fraction = divmod(send_timeout, 1)
    limit = struct.pack("ll", int(seconds), int(fraction * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def send_all(sock: Socket, buffers: list[Buffer], fd: Optional[int] = None) -> None:
    """Send every byte of ``buffers`` without joining them, and with the first the ``fd``."""
    pending = [memoryview(buffer) for buffer in buffers if len(buffer)]
    if fd is not None:
        assert isinstance(sock, socket.socket), "a Unix socket"
        drop_sent(pending, socket.send_fds(sock, pending, [fd]))
    while pending:
        drop_sent(pending, sock.sendmsg(pending[:IOV_MAX]))


def receive_exactly(sock: Socket, view: memoryview) -> None:
    """Fill ``view``. Raises EOFError if the peer closes first."""
    while len(view):
        received = sock.recv_into(view, len(view), socket.MSG_WAITALL)
        if not received:
            raise EOFError("the teacher closed the connection")
        view = view[received:]


class _Inbox:
    """Received bytes, in as few system calls as possible: a small answer takes one.

    What ``read`` returns stays valid: memory is never used twice.
    """

    def __init__(self, sock: Socket) -> None:
        self._socket = sock
        self._buffer = memoryview(b"")
        self._start = self._end = 0

    def read(self, size: int) -> memoryview:
        """The next ``size`` bytes. Raises EOFError if the peer closes first."""
        if self._end - self._start < size:
            self._receive(size)
        start, self._start = self._start, self._start + size
        return self._buffer[start : start + size]

    def _receive(self, size: int) -> None:
        """Make ``size`` bytes available, and perhaps some of what arrives behind them."""
        if self._start + size > len(self._buffer):
            if size > _INBOX_SIZE:
                self._receive_large(size)
                return
            rest = self._buffer[self._start : self._end]
            self._buffer = np.empty(_INBOX_SIZE, np.uint8).data
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        while self._end - self._start < size:
            received = self._socket.recv_into(self._buffer[self._end :])
            if not received:
                raise EOFError("the teacher closed the connection")
            self._end += received

    def _receive_large(self, size: int) -> None:
        """The same, in memory of its own. Beyond a first reservation that grows only as bytes
        arrive, so that a false length costs nothing.
        """
        rest = self._buffer[self._start : self._end]
        while True:
            room = min(size, max(_FIRST_RESERVATION, 2 * len(rest)))
            buffer = np.empty(room, np.uint8).data
            buffer[: len(rest)] = rest
            receive_exactly(self._socket, buffer[len(rest) :])
            rest = buffer
            if room == size:
                self._buffer, self._start, self._end = buffer, 0, size
                return
