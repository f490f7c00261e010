"""Bytes in and out of a non-blocking socket under asyncio, without copying them.

asyncio's own streams collect received bytes in a buffer of theirs and join what is written; here
bytes are received where they are wanted (shared memory) and sent from where they lie, except for
small messages: several of them are received in one system call, and what is sent in one turn of the
loop is sent in one. Who waits for bytes holds no memory for them. Every read and write has a limit
of time (see ``gate.Pace``). With TLS (``secure``) bytes are decrypted to where they are wanted, and
encrypted from where they lie.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Sequence
from itertools import chain, islice
from typing import Callable, Optional, Union

from edl import _tls
from edl.serving.server.gate import MIN_RATE, Pace
from edl.serving.wire.tensor import IOV_MAX, Buffer, drop_sent, size_of

OnSent = Callable[[Optional[OSError]], None]

#: Reads without a pause after which others get their turn on the loop.
_READS_IN_A_ROW = 64

#: Where less is wanted, as much is received, if it is there: a copy costs less than a system call.
_READ_AHEAD = 16 << 10
_INT = struct.Struct("i")
_ONE_FD = socket.CMSG_LEN(_INT.size)

#: Seconds after which a handshake is tried again that could not be sent.
_SOON = 0.05

#: What is thrown away of a peer that goes on sending after its last answer.
_LINGER_BYTES = 1 << 20


class Stream:
    """One accepted connection.

    ``patience``: seconds that the peer may stall (see ``gate.Limits``). ``is_local``: it is a Unix
    socket.
    """

    def __init__(self, sock: socket.socket, peer: str, patience: float) -> None:
        sock.setblocking(False)
        self.is_local = sock.family == socket.AF_UNIX
        if not self.is_local:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._fd: Optional[int] = None
        self.peer = peer
        self.closed = False
        self._ended = False
        self._socket = sock
        self._tls: Optional[ssl.SSLSocket] = None  # the same socket, from the handshake on
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._unread = memoryview(b"")
        self._reads = 0
        self._reader: Optional[asyncio.Future] = None  # who waits for bytes
        self._watched = False  # whether the loop looks for bytes
        self._unsent: deque[tuple[list[memoryview], OnSent]] = deque()
        self._sending: Optional[Pace] = None  # while the peer takes less than there is
        self._stall: Optional[asyncio.TimerHandle] = None

    # --- TLS --------------------------------------------------------------------------------

    async def peek(self, pace: Pace) -> bytes:
        """The first byte, which is still to be read; none if the peer has closed. Raises
        TimeoutError, OSError.
        """
        while True:
            try:
                return self._socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                await self._readable(pace.deadline)

    async def secure(self, context: ssl.SSLContext, pace: Pace) -> ssl.SSLSocket:
        """Agree on keys with the peer, before anything is read or sent; its certificate, if one is
        asked for, is on what this returns. Raises TimeoutError, and OSError (ssl.SSLError is one).
        """
        if self._watched:  # the number of what may be closed in the next step
            self._watched = False
            self._loop.remove_reader(self._socket)
        try:
            self._socket = self._tls = context.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False
            )
        except OSError as error:  # the peer has reset it, and ssl has closed it
            raise ConnectionResetError(f"{self.peer} closed the connection: {error}") from error
        while True:
            try:
                self._tls.do_handshake()
                return self._tls
            except ssl.SSLWantReadError:
                await self._readable(pace.deadline)
            except ssl.SSLWantWriteError:  # what is sent is little, and fits nearly always
                await asyncio.sleep(_SOON)
                if self._loop.time() > pace.deadline:
                    raise TimeoutError(f"{self.peer} took no bytes of a handshake") from None

    async def discard(self, patience: float) -> None:
        """End a connection without a common language: what was sent arrives, and what comes is
        thrown away as it is.
        """
        self._tls = None
        self._socket = socket.socket(fileno=self._socket.detach())
        self._socket.setblocking(False)
        await self.finish(patience)

    # --- receiving --------------------------------------------------------------------------

    def pace(self) -> Pace:
        """The time that the peer has for a message that begins now."""
        return Pace(self._patience, self._loop.time())

    async def read_start(self, view: memoryview, idle: float) -> None:
        """Fill ``view`` with the start of a message, which the peer may take ``idle`` seconds to
        begin. Raises EOFError, TimeoutError, OSError.
        """
        received = await self._receive_into(view, self._loop.time() + idle)
        if received < len(view):
            await self.read_into(view[received:], self.pace())

    async def read_into(self, view: memoryview, pace: Pace) -> None:
        """Fill ``view``. Raises EOFError if the peer closes first, TimeoutError if it falls behind
        ``pace``.
        """
        while len(view):
            view = view[await self.read_part(view, pace) :]

    def read_now(self, view: memoryview) -> int:
        """Receive into ``view`` what is there already, at most; how many bytes. Raises OSError."""
        return self._try_receive(view) or 0 if len(view) else 0

    async def read_part(self, view: memoryview, pace: Pace) -> int:
        """Receive at least one byte into ``view``, as ``read_into`` does all of it. How many."""
        received = await self._receive_into(view, pace.deadline)
        pace.moved(received, self._loop.time())
        return received

    async def read_some(self, size: int, deadline: float) -> bytes:
        """At most ``size`` bytes; none if the peer has closed. Raises TimeoutError at ``deadline``
        of the loop's clock.
        """
        if self._unread:
            data, self._unread = bytes(self._unread[:size]), self._unread[size:]
            return data
        while True:
            try:
                data = self._recv(size)
            except BlockingIOError:
                await self._readable(deadline)
            else:
                self._reads += 1
                if self._reads >= _READS_IN_A_ROW:
                    await self._let_others()
                return data

    def unread(self, data: Union[bytes, bytearray]) -> None:
        """Put bytes back, to be read again."""
        self._unread = memoryview(bytes(data) + self._unread)

    async def _receive_into(self, view: memoryview, deadline: float) -> int:
        while (received := self._try_receive(view)) is None:
            await self._readable(deadline)
        if self._reads >= _READS_IN_A_ROW:
            await self._let_others()
        return received

    def _try_receive(self, view: memoryview) -> Optional[int]:
        """Receive into ``view`` what is there, at least a byte; None if nothing is."""
        if not self._unread:
            try:
                if len(view) >= _READ_AHEAD:
                    received = self._recv_into(view)
                else:
                    self._unread = memoryview(self._recv(_READ_AHEAD))
                    received = len(self._unread)
            except BlockingIOError:
                return None
            if not received:
                raise EOFError(f"{self.peer} closed the connection")
            if not self._unread:
                self._reads += 1
                return received
        self._reads += 1
        size = min(len(view), len(self._unread))
        view[:size], self._unread = self._unread[:size], self._unread[size:]
        return size

    def _recv(self, size: int) -> bytes:
        if self._tls is not None:
            view = memoryview(bytearray(size))
            return bytes(view[: _tls.receive_some(self._tls, view)])
        if not self.is_local:
            return self._socket.recv(size)
        data, messages, _, _ = self._socket.recvmsg(size, _ONE_FD, socket.MSG_CMSG_CLOEXEC)
        self._keep_fd(messages)
        return data

    def _recv_into(self, view: memoryview) -> int:
        if self._tls is not None:
            return _tls.receive_some(self._tls, view)
        if not self.is_local:
            return self._socket.recv_into(view)
        received, messages, _, _ = self._socket.recvmsg_into(
            [view], _ONE_FD, socket.MSG_CMSG_CLOEXEC
        )
        self._keep_fd(messages)
        return received

    def _keep_fd(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Keep a file descriptor that came along, for ``take_fd``. Room is for one: the system
        closes what is more. One that nobody took makes room for the next.
        """
        for level, kind, data in messages:
            if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.size):
                self._drop_fd()
                (self._fd,) = _INT.unpack(data)

    def take_fd(self) -> Optional[int]:
        """The file descriptor that came last, which is the caller's from now on."""
        fd, self._fd = self._fd, None
        return fd

    def _drop_fd(self) -> None:
        fd = self.take_fd()
        if fd is not None:
            os.close(fd)

    async def _let_others(self) -> None:
        """Whose bytes are always there already would otherwise keep the loop."""
        self._reads = 0
        await asyncio.sleep(0)

    async def _readable(self, deadline: float) -> None:
        self._reads = 0
        ready = self._reader = self._loop.create_future()
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._socket, self._on_readable)
        limit = self._loop.call_at(deadline, _set, ready, False)
        try:
            if not await ready:
                raise TimeoutError(
                    f"{self.peer} sent too little for too long ({self._patience:g} s are allowed "
                    f"within a message, and {MIN_RATE >> 10} KiB/s are expected)"
                )
        finally:
            limit.cancel()
            self._reader = None

    def _on_readable(self) -> None:
        """The loop goes on looking while somebody waits again soon, as between small messages."""
        if self._reader is None:
            self._watched = False
            self._loop.remove_reader(self._socket)
        else:
            _set(self._reader, True)

    # --- sending ----------------------------------------------------------------------------

    def send(self, buffers: Sequence[Buffer], done: OnSent) -> None:
        """Send all of ``buffers``, after what was to be sent before, in the loop's next turn: with
        whatever else is to be sent by then. ``done`` is called once, with None or with the error
        that ended the connection, perhaps before this returns.
        """
        if self.closed or self._ended:
            done(OSError(f"the connection to {self.peer} is closed"))
            return
        self._unsent.append(([memoryview(buffer) for buffer in buffers if len(buffer)], done))
        if len(self._unsent) == 1:
            self._loop.call_soon(self._flush)

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """The same, and wait for it. Raises OSError."""
        sent = self._loop.create_future()
        self.send(buffers, lambda error: _set(sent, error))
        error = await sent
        if error is not None:
            raise error

    def _flush(self) -> None:
        """Send what can be sent now; the loop calls again when there is room for the rest."""
        try:
            while self._unsent:
                waiting = chain.from_iterable(buffers for buffers, _ in self._unsent)
                sent = self._send_some(list(islice(waiting, IOV_MAX)))
                if self._sending is not None:
                    self._sending.moved(sent, self._loop.time())
                self._drop_sent(sent)
                if self._tls is not None and self._unsent:  # it takes the loop's time, not a copy's
                    self._wait_to_send()
                    return
        except BlockingIOError:
            self._wait_to_send()
        except OSError as error:
            self.abort(error)
        else:
            self._all_sent()

    def _send_some(self, buffers: list[memoryview]) -> int:
        if self._tls is not None:
            return _tls.send_some(self._tls, buffers)
        return self._socket.sendmsg(buffers)

    def _drop_sent(self, size: int) -> None:
        """So many bytes are sent: say so to those whose bytes that were."""
        while self._unsent:
            buffers, done = self._unsent[0]
            left = size - size_of(buffers)
            if left < 0:
                drop_sent(buffers, size)
                return
            self._unsent.popleft()
            done(None)
            size = left

    def _wait_to_send(self) -> None:
        if self._sending is None:
            self._sending = self.pace()
            self._loop.add_writer(self._socket, self._flush)
        if self._stall is None:
            self._stall = self._loop.call_at(self._sending.deadline, self._check_pace)

    def _check_pace(self) -> None:
        """The peer's time was up when this was planned; it may have earned some since."""
        self._stall = None
        assert self._sending is not None, "what ends the sending ends this, too"
        if self._sending.deadline > self._loop.time():
            self._wait_to_send()
        else:
            self.abort(
                OSError(
                    f"{self.peer} took its answers too slowly for {self._patience:g} s "
                    f"({MIN_RATE >> 10} KiB/s are expected)"
                )
            )

    def _all_sent(self) -> None:
        if self._sending is not None:
            self._sending = None
            self._loop.remove_writer(self._socket)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # --- the end ----------------------------------------------------------------------------

    def end_sending(self) -> None:
        """Tell the peer that nothing more will be sent. What it still sends is read, since closing
        with unread bytes would destroy answers on their way; it gets no answer.
        """
        self._flush()
        self._ended = True
        try:
            _tls.end(self._socket, socket.SHUT_WR)
        except OSError:
            pass

    async def finish(self, patience: float) -> None:
        """End the connection so that what was sent arrives: a plain close with unread bytes
        would reset it and could destroy answers on their way. For whoever reads from it.
        """
        self.end_sending()
        deadline = self._loop.time() + patience
        left = _LINGER_BYTES
        try:
            while left > 0 and (data := await self.read_some(min(left, 1 << 16), deadline)):
                left -= len(data)
        except OSError:
            pass
        finally:
            self.close()

    def abort(self, error: Optional[OSError] = None) -> None:
        """Break the connection: what was not sent ends with ``error``, and who reads from it finds
        it closed by the peer, and closes it.
        """
        if self.closed:
            return
        self.closed = True
        self._all_sent()
        self._unread = memoryview(b"")
        try:
            _tls.end(self._socket, socket.SHUT_RDWR)
        except OSError:
            pass
        unsent, self._unsent = self._unsent, deque()
        for _, done in unsent:
            done(error or OSError(f"the connection to {self.peer} is closed"))

    def close(self) -> None:
        """Close at once. For whoever reads from it; anybody else breaks it."""
        self.abort()
        self._drop_fd()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()


def _set(future: asyncio.Future, value: object) -> None:
    if not future.done():
        future.set_result(value)
