"""Whole frames in and out of a non-blocking socket under asyncio, without copying them.

asyncio's own streams collect received bytes in a buffer of theirs and join what is written; here
bytes are received where they are wanted (shared memory) and sent from where they lie.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from edl.serving.tensor import IOV_MAX, Buffer, drop_sent


class Stream:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer = peer
        self.closed = False
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._write_turn = asyncio.Lock()

    async def read_into(self, view: memoryview, patience: float = 0.0) -> None:
        """Fill ``view``. Raises EOFError if the peer closes first, or if ``patience`` is given
        and no byte arrives for that many seconds.
        """
        while len(view):
            limit = self._loop.call_later(patience, self._give_up) if patience else None
            try:
                received = await self._loop.sock_recv_into(self._socket, view)
            finally:
                if limit:
                    limit.cancel()
            if not received:
                raise EOFError(f"{self.peer} closed the connection or sent nothing")
            view = view[received:]

    async def write(self, buffers: Sequence[Buffer], patience: float) -> None:
        """Send all of ``buffers``, after whatever another task is sending. Raises OSError if the
        connection breaks or the peer takes nothing for ``patience`` seconds.
        """
        async with self._write_turn:
            pending = [memoryview(buffer) for buffer in buffers if len(buffer)]
            while pending:
                try:
                    sent = self._socket.sendmsg(pending[:IOV_MAX])
                except BlockingIOError:
                    await self._writable(patience)
                    continue
                drop_sent(pending, sent)

    async def _writable(self, patience: float) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(self._socket, _resolve, ready)
        try:
            await asyncio.wait_for(ready, patience)
        except asyncio.TimeoutError:
            raise OSError(f"{self.peer} took no bytes for {patience:g} s") from None
        finally:
            self._loop.remove_writer(self._socket)

    async def finish(self, patience: float) -> None:
        """End the connection so that what was sent arrives: a plain close with unread bytes
        would reset it and could destroy answers on their way.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
            scratch = memoryview(bytearray(1 << 16))
            limit = self._loop.call_later(patience, self._give_up)
            try:
                while await self._loop.sock_recv_into(self._socket, scratch):
                    pass
            finally:
                limit.cancel()
        except OSError:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Close at once."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _give_up(self) -> None:
        """Make a blocked read return as if the peer had closed."""
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            pass


def _resolve(future: asyncio.Future) -> None:
    if not future.done():
        future.set_result(None)
