"""The teacher server's front process: the port, its connections, and the way from start to drain.

Predictors live in workers (see ``workers``). What a request goes through: ``frames`` or ``http``
and ``routes``, by the first bytes of its connection; ``service``; ``engine``.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from edl.errors import ConfigError, ModelError, WireError
from edl.serving.server.batching import Batcher
from edl.serving.server.engine import Engine, Job
from edl.serving.server.frames import FrameConnection
from edl.serving.server.http import HttpConnection, looks_like_http
from edl.serving.server.metrics import Metrics
from edl.serving.server.routes import Routes
from edl.serving.server.service import Limits, Service
from edl.serving.server.stream import Stream
from edl.serving.wire import frame
from edl.serving.worker.arena import Arena
from edl.serving.worker.handles import Worker

logger = logging.getLogger(__name__)

#: File descriptors left for everything that is not a connection.
_OTHER_FILES = 128

#: Makes the workers, given the arena that requests lie in.
MakeWorkers = Callable[[Arena], list[Worker]]


@dataclass(frozen=True)
class ServerOptions:
    """How a teacher is served.

    ``host``, ``port``: where to listen; port 0 takes a free one. ``max_batch_rows``, ``max_wait``
    (seconds), ``max_queued`` (requests): see ``Batcher``. ``input_bytes``: shared memory reserved
    for requests; only what is used costs memory. ``load_timeout``, ``run_timeout``: seconds for
    a worker to be ready, and for one batch. ``token``: what clients must show; empty: nothing.
    ``max_connections``: beyond it, those that have sent nothing valid yet make room for new ones.
    """

    host: str = "127.0.0.1"
    port: int = 0
    max_batch_rows: int = 64
    max_wait: float = 0.0
    max_queued: int = 1024
    input_bytes: int = 2 << 30
    load_timeout: float = 600.0
    run_timeout: float = 300.0
    token: str = ""
    max_connections: int = 4096
    limits: Limits = field(default_factory=Limits)


class TeacherServer:
    """Serves one model. Use: ``await start()``, then ``await drain()`` or ``await stop()``."""

    def __init__(self, make_workers: MakeWorkers, options: ServerOptions) -> None:
        self._options = options
        self._inputs = Arena.create(options.input_bytes, "edl-inputs")
        self._metrics = Metrics()
        batcher: Batcher[Job] = Batcher(
            options.max_batch_rows, options.max_wait, options.max_queued
        )
        self._engine = Engine(
            self._inputs,
            make_workers(self._inputs),
            batcher,
            self._metrics,
            options.load_timeout,
            options.run_timeout,
        )
        self._service = Service(self._engine, self._metrics, options.token)
        self._routes = Routes(self._service, options.limits)
        self._listener: Optional[socket.socket] = None
        self._accepting: Optional[asyncio.Task] = None
        self._streams: set[Stream] = set()
        self._newcomers: dict[Stream, None] = {}  # in their order of arrival
        self._tasks: set[asyncio.Task] = set()
        self._max_connections = options.max_connections
        self._metrics.connections.set_function(lambda: len(self._streams))

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        assert self._listener is not None, "the server has not been started"
        return self._listener.getsockname()[1]

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
        self._listener = _listen(self._options.host, self._options.port)
        self._max_connections = min(self._max_connections, _raise_file_limit() - _OTHER_FILES)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())
        try:
            await self._engine.start()
        except ModelError:
            await self.stop()
            raise

    async def drain(self) -> None:
        """Take no more connections and requests, answer the accepted ones, end.

        Requests that arrive meanwhile are answered with ELOGOFF, which sends them elsewhere.
        """
        self._stop_listening()
        await self._service.drain()
        await asyncio.gather(*(stream.finish(patience=1.0) for stream in list(self._streams)))
        await self.stop()

    async def stop(self) -> None:
        """End at once, whatever is in flight."""
        self._service.draining = True
        self._stop_listening()
        for stream in list(self._streams):
            stream.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in list(self._streams):  # whose task had not even begun
            stream.close()
        await self._engine.stop()
        self._inputs.close()

    def _stop_listening(self) -> None:
        if self._accepting:
            self._accepting.cancel()
            self._accepting = None
        if self._listener:
            self._listener.close()

    # --- connections ------------------------------------------------------------------------

    async def _accept(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._listener)
            except OSError as error:  # such as too many open files: it passes
                logger.warning("accept failed: %s", error)
                await asyncio.sleep(0.1)
                continue
            stream = Stream(sock, f"{address[0]}:{address[1]}", self._options.limits.patience)
            if self._make_room():
                self._streams.add(stream)
                self._newcomers[stream] = None
                self._spawn(self._serve(stream))
            else:
                stream.close()
                self._reject(f"{stream.peer}: {len(self._streams)} connections are open already")
            await asyncio.sleep(0)  # a flood of connections must not keep the loop from the others

    def _make_room(self) -> bool:
        """Whether one more connection can be had, if need be in place of the oldest newcomer."""
        if len(self._streams) < self._max_connections:
            return True
        if not self._newcomers:
            return False
        oldest = next(iter(self._newcomers))
        self._forget(oldest)
        oldest.abort()
        self._reject(f"{oldest.peer}: it made room for others")
        return True

    def _reject(self, why: str) -> None:
        self._metrics.rejected_connections.inc()
        logger.info("closed the connection to %s", why)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: Stream) -> None:
        stream.trusted = not self._service.needs_token
        try:
            await self._serve_by_protocol(stream)
        except (EOFError, ConnectionError):
            pass
        except (WireError, TimeoutError) as error:  # TimeoutError is an OSError too
            self._reject(f"{stream.peer}: {error}")
        except OSError as error:
            logger.info("connection to %s ended: %s", stream.peer, error)
        finally:
            self._forget(stream)
            stream.close()

    async def _serve_by_protocol(self, stream: Stream) -> None:
        """Paddle Serving has both of its protocols on one port, and so have we."""
        limits = self._options.limits
        start = bytearray(frame.HEADER_SIZE)
        await stream.read_into(memoryview(start), limits.patience)
        if looks_like_http(start):
            del self._newcomers[stream]
            await HttpConnection(stream, self._routes, limits).serve(start)
        else:
            frame.parse_header(start, limits.max_body)
            del self._newcomers[stream]
            await FrameConnection(stream, self._service, limits).serve(start)

    def _forget(self, stream: Stream) -> None:
        self._streams.discard(stream)
        self._newcomers.pop(stream, None)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _raise_file_limit() -> int:
    """As many open files as this process may have without asking anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted
