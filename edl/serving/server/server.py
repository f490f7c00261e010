"""The teacher server's front process: the port, its connections, and the way from start to drain.

Predictors live in workers (see ``worker``). What a request goes through: ``frames`` or ``http`` and
``routes``, by its first bytes; ``intake``; ``service``; ``engine``. ``gate`` decides who may stay.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from dataclasses import dataclass, field
from typing import Callable, Optional

from edl import _tls
from edl._checks import check_count, check_positive
from edl._endpoints import endpoint_of
from edl._machine import boot_id
from edl.errors import ConfigError, WireError
from edl.serving.server.batching import Batcher
from edl.serving.server.engine import Engine, Job
from edl.serving.server.frames import FrameConnection
from edl.serving.server.gate import Gate, Guest, Limits
from edl.serving.server.http import HttpConnection, looks_like_http
from edl.serving.server.intake import Intake
from edl.serving.server.local import LocalListener, listen, peer_of
from edl.serving.server.memory import RequestMemory
from edl.serving.server.metrics import Metrics
from edl.serving.server.routes import Routes
from edl.serving.server.service import Service
from edl.serving.server.stream import Stream
from edl.serving.server.tls import (
    HANDSHAKE,
    Certificates,
    ServerTls,
    exposure,
    refuse_plain_text,
)
from edl.serving.wire import frame, local
from edl.serving.wire.arena import Arena
from edl.serving.worker.handles import Worker

logger = logging.getLogger(__name__)

#: File descriptors left for everything that is not a connection.
_OTHER_FILES = 128

#: Connections that may wait to be accepted: as many as the system allows (net.core.somaxconn).
_BACKLOG = (1 << 31) - 1

#: Makes the workers, given the arena that requests lie in.
MakeWorkers = Callable[[Arena], list[Worker]]


@dataclass(frozen=True)
class ServerOptions:
    """How a teacher is served.

    ``host``, ``port``: where to listen; port 0 takes a free one. ``max_batch_rows``, ``max_wait``
    (seconds), ``max_queued`` (requests), ``max_batch_tokens``: see ``Batcher``. ``input_bytes``:
    shared memory reserved for requests; only what is used costs memory. ``load_timeout``,
    ``run_timeout``: seconds for a worker to be ready, and for one batch. ``token``: what clients
    must show; empty: nothing. ``tls``: certificates; without, everything travels in plain text. (By
    Unix socket it does in any case: only this user's processes can connect to that.)
    ``max_connections``: beyond it, newcomers make room for new ones (see ``gate``).
    ``local``: listen for students on this machine on a Unix socket, too. ``shared_bytes``: their
    own memory that is mapped for their requests and answers, of all together; one has a quarter at
    most. 0: none, and what they send travels through the socket.
    Raises ConfigError for what cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 0
    max_batch_rows: int = 64
    max_wait: float = 0.0
    max_queued: int = 1024
    max_batch_tokens: int = 16384
    input_bytes: int = 2 << 30
    load_timeout: float = 600.0
    run_timeout: float = 300.0
    token: str = ""
    tls: Optional[ServerTls] = None
    max_connections: int = 4096
    local: bool = True
    shared_bytes: int = 8 << 30
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not isinstance(self.port, int) or not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port is {self.port!r}; it must be from 0 to 65535")
        for name in ("max_batch_rows", "max_batch_tokens", "max_queued", "max_connections"):
            check_count(name, getattr(self, name))
        check_count("input_bytes", self.input_bytes, 1 << 16)
        check_count("shared_bytes", self.shared_bytes, 0)
        for name in ("load_timeout", "run_timeout"):
            check_positive(name, getattr(self, name))
        check_positive("max_wait", self.max_wait, 0)


class TeacherServer:
    """Serves one model. Use: ``await start()``, then ``await drain()`` or ``await stop()``."""

    def __init__(self, make_workers: MakeWorkers, options: ServerOptions) -> None:
        self._options = options
        self._certificates = None if options.tls is None else Certificates(options.tls)
        limits = options.limits
        self._inputs = Arena.create(options.input_bytes, "edl-inputs")
        self._metrics = Metrics()
        self._gate = Gate(options.max_connections)
        self._memory = memory = RequestMemory(
            self._inputs, limits.patience, self._throw_out, options.shared_bytes
        )
        batcher: Batcher[Job] = Batcher(
            options.max_batch_rows,
            options.max_wait,
            options.max_queued,
            options.max_batch_tokens,
        )
        self._engine = Engine(
            memory,
            make_workers(self._inputs),
            batcher,
            self._metrics,
            options.load_timeout,
            options.run_timeout,
        )
        self._intake = Intake(memory, limits.max_body)
        self._service = Service(
            self._engine, self._intake, self._gate, self._metrics, limits, options.token
        )
        self._routes = Routes(self._service)
        self._listener: Optional[socket.socket] = None
        self._local: Optional[LocalListener] = None
        self._accepting: list[asyncio.Task] = []
        self._streams: dict[Guest, Stream] = {}
        self._tasks: set[asyncio.Task] = set()
        self._metrics.connections.set_function(lambda: len(self._streams))

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        assert self._listener is not None, "the server has not been started"
        return self._listener.getsockname()[1]

    @property
    def speaks_tls(self) -> bool:
        """Whether its port is spoken to with TLS."""
        return self._certificates is not None

    @property
    def healthy(self) -> bool:
        """Whether requests are taken and at least one worker can compute them."""
        return not self._service.why_not_ready()

    @property
    def engine(self) -> Engine:
        """What computes; its ``description`` is known once started."""
        return self._engine

    async def start(self) -> None:
        """Listen, and load the model in every worker; until that is done, requests are answered
        that the teacher is busy.

        Raises ConfigError if the address is taken, ModelError if a worker cannot load the model.
        """
        warning = exposure(self._options.host, self._options.token, self._options.tls)
        if warning:
            logger.warning("%s", warning)
        self._listener = _listen(self._options.host, self._options.port)
        files = _raise_file_limit()
        self._gate.places = min(self._gate.places, max(files - _OTHER_FILES, files // 2))
        self._accept_at(self._listener)
        try:
            await self._engine.start()
        except BaseException:
            await self.stop()
            raise
        if self._options.local:
            self._listen_locally()

    def _listen_locally(self) -> None:
        """Let students on this machine come by a Unix socket."""
        boot = boot_id()
        self._local = listen() if boot else None
        if self._local is not None:
            self._engine.say(
                local.DESCRIBED, local.Local(boot, self.port, self._local.path).to_json()
            )
            self._accept_at(self._local.socket)

    def _accept_at(self, listener: socket.socket) -> None:
        self._accepting.append(asyncio.get_running_loop().create_task(self._accept(listener)))

    async def drain(self) -> None:
        """Take no more connections and requests, answer the accepted ones, end.

        Requests that arrive meanwhile are answered with ELOGOFF, which sends them elsewhere.
        """
        self._stop_listening()
        await self._service.drain()
        for stream in self._streams.values():
            stream.end_sending()  # its task ends when the peer has seen that
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        await self.stop()

    async def stop(self) -> None:
        """End at once, whatever is in flight."""
        self._service.draining = True
        self._stop_listening()
        for stream in list(self._streams.values()):
            stream.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.stop()
        await self._intake.stop()
        self._inputs.close()

    def _stop_listening(self) -> None:
        for task in self._accepting:
            task.cancel()
        self._accepting.clear()
        if self._listener:
            self._listener.close()
        if self._local is not None:
            self._local.close()

    # --- connections ------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
                is_local = sock.family == socket.AF_UNIX
                peer = peer_of(sock) if is_local else endpoint_of(*address[:2])
                self._welcome(Stream(sock, peer, self._options.limits.patience))
            except Exception as error:  # such as too many open files, or no memory: it passes
                logger.warning("accept failed: %s: %s", type(error).__name__, error)
                await asyncio.sleep(0.1)
            await asyncio.sleep(0)  # a flood of connections must not keep the loop from the others

    def _welcome(self, stream: Stream) -> None:
        guest, leaver = self._gate.enter(stream.peer)
        if leaver is not None:
            self._throw_out(leaver, "it made room for others")
        if guest is None:
            stream.close()
            self._reject(f"{stream.peer}: {len(self._gate)} connections are open already")
        else:
            self._streams[guest] = stream
            task = asyncio.get_running_loop().create_task(self._serve(guest, stream))
            self._tasks.add(task)
            task.add_done_callback(lambda task: self._leave(guest, stream, task))

    def _leave(self, guest: Guest, stream: Stream, task: asyncio.Task) -> None:
        """A connection's task has ended, perhaps before it had begun."""
        self._tasks.discard(task)
        self._gate.leave(guest)
        self._streams.pop(guest, None)
        stream.close()

    def _throw_out(self, guest: Guest, why: str) -> None:
        """Break a guest's connection; its task finds that out, and ends."""
        stream = self._streams.get(guest)
        if stream is not None and not stream.closed:
            stream.abort()
            self._memory.forget(guest)
            self._reject(f"{guest.peer}: {why}")

    def _reject(self, why: str) -> None:
        self._metrics.rejected_connections.inc()
        logger.info("closed the connection to %s", why)

    async def _serve(self, guest: Guest, stream: Stream) -> None:
        try:
            if await self._secure(guest, stream):
                await self._serve_messages(guest, stream)
        except (WireError, TimeoutError) as error:  # TimeoutError is an OSError too
            self._reject(f"{stream.peer}: {error}")
        except (EOFError, OSError) as error:
            logger.debug("connection to %s ended: %s", stream.peer, error)
        except Exception:  # such as MemoryError: it ends this connection, and no other
            logger.exception("serving %s failed", stream.peer)

    async def _secure(self, guest: Guest, stream: Stream) -> bool:
        """Begin TLS, if that is spoken here. False if the peer does not, or is not accepted: it has
        been told, and the connection is over.
        """
        if self._certificates is None or stream.is_local:
            return True
        pace = stream.pace()
        first = await stream.peek(pace)
        if not first:  # as who only looks whether somebody listens
            raise EOFError(f"{stream.peer} closed the connection")
        if first != HANDSHAKE:
            self._reject(f"{stream.peer}: it speaks plain text, not TLS")
            await refuse_plain_text(stream)
            return False
        try:
            secured = await stream.secure(self._certificates.context(), pace)
        except ssl.SSLError as error:
            self._reject(f"{stream.peer}: no TLS with it: {_tls.reason(error)}")
            await stream.discard(patience=1.0)
            return False
        wanted = self._options.tls is not None and self._options.tls.client_ca is not None
        guest.certified = not wanted or secured.getpeercert(binary_form=True) is not None
        return True

    async def _serve_messages(self, guest: Guest, stream: Stream) -> None:
        """Paddle Serving has both of its protocols on one port, and on one connection in any order
        (brpc's health checks leave theirs to the calls that follow); and so have we.
        """
        frames = FrameConnection(stream, guest, self._service)
        try:
            await self._serve_until_the_end(guest, stream, frames)
        finally:
            frames.close()

    async def _serve_until_the_end(
        self, guest: Guest, stream: Stream, frames: FrameConnection
    ) -> None:
        limits = self._options.limits
        start = bytearray(frame.HEADER_SIZE)
        idle = limits.patience
        goes_on = True
        while goes_on:
            await stream.read_start(memoryview(start), idle)
            if looks_like_http(start):
                http = HttpConnection(stream, guest, self._routes, self._service.memory)
                goes_on = await http.serve(start)
                await asyncio.sleep(0)  # those that come in one packet take turns with others
            else:
                goes_on = await frames.serve_one(start)
            idle = limits.idle
        await frames.settle()
        await stream.finish(patience=1.0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {endpoint_of(host, port)}: {error.strerror}"
        ) from error
    return listener


def _raise_file_limit() -> int:
    """As many open files as this process may have without asking anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
