"""Bytes in and out of a non-blocking socket under asyncio, without copying them.

asyncio's own streams collect received bytes in a buffer of theirs and join what is written; here
bytes are received where they are wanted (shared memory) and sent from where they lie. Every read
and write has a limit of time.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from typing import Callable, Optional

from edl.serving.wire.tensor import IOV_MAX, Buffer, drop_sent

#: Bytes per second that a peer must keep up in the long run to be given more time.
MIN_RATE = 256 << 10

OnSent = Callable[[Optional[OSError]], None]


class Stream:
    """One accepted connection. ``trusted``: it has shown the token, or needs none.

    ``send_patience``: seconds that the peer may take no bytes before the connection is closed.
    """

    def __init__(self, sock: socket.socket, peer: str, send_patience: float) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.peer = peer
        self.closed = False
        self.trusted = False
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._send_patience = send_patience
        self._unsent: deque[tuple[list[memoryview], OnSent]] = deque()
        self._stall: Optional[asyncio.TimerHandle] = None

    # --- receiving --------------------------------------------------------------------------

    async def read_into(self, view: memoryview, patience: float) -> None:
        """Fill ``view``. Raises EOFError if the peer closes first, TimeoutError if it takes longer
        than ``patience`` seconds and the time that MIN_RATE allows for what has arrived.
        """
        started, size = self._loop.time(), len(view)
        while len(view):
            allowed = patience + (size - len(view)) / MIN_RATE
            received = await self._receive(view, started + allowed)
            if not received:
                raise EOFError(f"{self.peer} closed the connection")
            view = view[received:]

    async def read_some(self, size: int, deadline: float) -> bytes:
        """At most ``size`` bytes; none if the peer has closed. Raises TimeoutError at ``deadline``
        of the loop's clock.
        """
        buffer = bytearray(size)
        received = await self._receive(memoryview(buffer), deadline)
        return bytes(memoryview(buffer)[:received])

    async def _receive(self, view: memoryview, deadline: float) -> int:
        limit = self._loop.call_at(deadline, self._stop_receiving)
        try:
            received = await self._loop.sock_recv_into(self._socket, view)
        finally:
            limit.cancel()
        if not received and self._loop.time() >= deadline:
            raise TimeoutError(f"{self.peer} sent nothing more in time")
        return received

    def _stop_receiving(self) -> None:
        """Make a blocked read return as if the peer had closed."""
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            pass

    # --- sending ----------------------------------------------------------------------------

    def send(self, buffers: Sequence[Buffer], done: OnSent) -> None:
        """Send all of ``buffers``, after what was to be sent before. ``done`` is called once, with
        None or with the error that ended the connection, perhaps before this returns.
        """
        if self.closed:
            done(OSError(f"the connection to {self.peer} is closed"))
            return
        self._unsent.append(([memoryview(buffer) for buffer in buffers if len(buffer)], done))
        if len(self._unsent) == 1:
            self._flush()

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """The same, and wait for it. Raises OSError."""
        sent = self._loop.create_future()
        self.send(buffers, lambda error: None if sent.done() else sent.set_result(error))
        error = await sent
        if error is not None:
            raise error

    def _flush(self) -> None:
        """Send what can be sent now; the loop calls again when there is room for the rest."""
        while self._unsent:
            pending, done = self._unsent[0]
            try:
                while pending:
                    drop_sent(pending, self._socket.sendmsg(pending[:IOV_MAX]))
                    self._end_stall()
            except BlockingIOError:
                self._begin_stall()
                return
            except OSError as error:
                self.abort(error)
                return
            self._unsent.popleft()
            done(None)

    def _begin_stall(self) -> None:
        if self._stall is None:
            self._stall = self._loop.call_later(self._send_patience, self._give_up)
            self._loop.add_writer(self._socket, self._flush)

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
            self._loop.remove_writer(self._socket)

    def _give_up(self) -> None:
        self.abort(OSError(f"{self.peer} took no bytes for {self._send_patience:g} s"))

    # --- the end ----------------------------------------------------------------------------

    async def finish(self, patience: float) -> None:
        """End the connection so that what was sent arrives: a plain close with unread bytes
        would reset it and could destroy answers on their way.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
            deadline = self._loop.time() + patience
            scratch = memoryview(bytearray(1 << 16))
            while await self._receive(scratch, deadline):
                pass
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
        self._end_stall()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        unsent, self._unsent = self._unsent, deque()
        for _, done in unsent:
            done(error or OSError(f"the connection to {self.peer} is closed"))

    def close(self) -> None:
        """Close at once. For whoever reads from it; anybody else breaks it."""
        self.abort()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
