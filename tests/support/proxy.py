"""A TCP proxy that can be told at any time to misbehave, in a process of its own.

    with Proxy(teacher.endpoint) as proxy:
        proxy.every("stall")       # all connections, and those to come
        proxy.one(3, "cut", 1000)  # connection 3 (modulo how many there are) only

Behaviours, each with its amount:

``pass``; ``stall`` (nothing passes, the connection stays open); ``stall-up``, ``stall-down`` (half
open: nothing passes to the teacher, or from it); ``throttle`` (bytes per second); ``delay``
(seconds for each piece); ``cut`` (reset after so many bytes more); ``refuse`` (all connections are
reset, and new ones refused, until ``every`` says something else).

A process, because the workers that a test forks would hold on to its sockets.
"""

import asyncio
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

_PIECE = 1 << 16
_STEP = 0.02


class Proxy:
    """The proxy's handle. ``endpoint`` takes the place of the endpoint behind it."""

    def __init__(self, behind):
        self._process = subprocess.Popen(
            [sys.executable, __file__, behind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent,
            text=True,
            bufsize=1,
        )
        self.endpoint = self._process.stdout.readline().strip()
        assert self.endpoint, "the proxy did not start"

    def every(self, kind, amount=0):
        """All connections behave like this from now on, and those that are made later."""
        self._tell("every", kind, amount)

    def one(self, number, kind, amount=0):
        """One of the connections that there are behaves like this."""
        self._tell(number, kind, amount)

    def _tell(self, *words):
        self._process.stdin.write(" ".join(map(str, words)) + "\n")

    def close(self):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Connection:
    """Two streams, between a client and the server behind the proxy."""

    def __init__(self, client, server, behaviour):
        self._client, self._server = client, server
        self._behaviour = behaviour

    async def run(self):
        """Until one side ends, or it is cut."""
        ways = [
            asyncio.ensure_future(self._carry(self._client[0], self._server[1], "up")),
            asyncio.ensure_future(self._carry(self._server[0], self._client[1], "down")),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        self._client[1].close()
        self._server[1].close()

    def behave(self, kind, amount):
        """Like this from now on."""
        self._behaviour = kind, amount
        if kind == "cut" and amount <= 0:
            self.cut()

    def cut(self):
        """Reset it, on both sides."""
        _reset(self._client[1])
        _reset(self._server[1])

    async def _carry(self, reader, writer, way):
        while data := await reader.read(_PIECE):
            while data:
                passed = await self._pass(data, writer, way)
                data = data[passed:]

    async def _pass(self, data, writer, way):
        """Write some of ``data`` as the behaviour of this moment is; how many bytes."""
        kind, amount = self._behaviour
        most = len(data)
        if kind in ("stall", f"stall-{way}"):
            most = 0
        elif kind == "throttle":
            most = max(1, int(amount * _STEP))
        elif kind == "cut":
            most = int(amount)
        if kind == "delay":
            await asyncio.sleep(amount)
        elif kind != "pass":
            await asyncio.sleep(_STEP)
        if self._behaviour != (kind, amount):
            return 0
        piece = data[:most]
        writer.write(piece)
        await writer.drain()
        if kind == "cut":
            self.behave("cut", amount - len(piece))
        return len(piece)


class _Server:
    """The proxy itself."""

    def __init__(self, host, port):
        self._behind = host, port
        self._connections = []
        self._behaviour = "pass", 0.0
        self._listener = None
        self._place = _bound(0)  # does not listen: the port stays ours while it is refused

    async def run(self):
        await self._listen()
        print("{}:{}".format(*self._place.getsockname()), flush=True)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read_orders, args=(loop,), daemon=True).start()
        await asyncio.Event().wait()

    def _read_orders(self, loop):
        for line in sys.stdin:
            which, kind, amount = line.split()
            asyncio.run_coroutine_threadsafe(self._obey(which, kind, float(amount)), loop).result()
        os._exit(0)

    async def _obey(self, which, kind, amount):
        if which != "every":
            if self._connections:
                self._connections[int(which) % len(self._connections)].behave(kind, amount)
            return
        self._behaviour = kind, amount
        if kind == "refuse":
            self._stop_listening()
            kind, amount = "cut", 0
        else:
            await self._listen()
        for connection in list(self._connections):
            connection.behave(kind, amount)

    async def _listen(self):
        if self._listener is None:
            sock = _bound(self._place.getsockname()[1])
            self._listener = await asyncio.start_server(self._serve, sock=sock, limit=_PIECE)

    def _stop_listening(self):
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _serve(self, *client):
        try:
            server = await asyncio.open_connection(*self._behind, limit=_PIECE)
        except OSError:
            _reset(client[1])
            return
        connection = _Connection(client, server, self._behaviour)
        self._connections.append(connection)
        try:
            await connection.run()
        finally:
            self._connections.remove(connection)


def _bound(port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _reset(writer):
    sock = writer.get_extra_info("socket")
    if not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


if __name__ == "__main__":
    behind, _, port = sys.argv[1].rpartition(":")
    asyncio.run(_Server(behind, int(port)).run())
