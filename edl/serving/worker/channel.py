"""The front process's end of a control socket, under asyncio: many messages in a system call.

What arrives is handed on at once, in the loop's own call, so that a message costs no turn of the
loop beside the one in which its bytes came.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Callable

from edl.serving.worker import control


class Channel:
    """``on_message`` gets what the other side says, in its order. ``on_end`` is called once, when
    there will be no more of it, unless the channel was closed here.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._inbox = control.Inbox()
        self._unsent = bytearray()
        self._writing = False
        self.closed = False
        self._loop.add_reader(sock, self._receive)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, and those before it that were held back; none once it is closed."""
        self.hold(message)
        self.flush()

    def hold(self, message: dict[str, Any]) -> None:
        """Let a message wait for the next one, or for ``flush``: a system call for both, and one
        process that is woken once.
        """
        if not self.closed:
            self._unsent += control.pack(message)

    def flush(self) -> None:
        """Send what was held back; what the socket has no room for follows when it has."""
        try:
            while self._unsent and not self.closed:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket, self.flush)
            return
        except OSError:
            self._end()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def close(self) -> None:
        """End it; nothing more is heard."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket)
        if self._writing:
            self._loop.remove_writer(self._socket)
        self._socket.close()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(control.READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._inbox.feed(data)
        while not self.closed and (message := self._inbox.next()) is not None:
            self._on_message(message)

    def _end(self) -> None:
        if not self.closed:
            self.close()
            self._on_end()
