"""The teacher server's front process: sockets, frames, validation, batching.

Predictors live in worker processes (they hold the GIL while they compute). A request's bytes are
received straight into shared memory; what a worker is told is where its arrays lie, and what comes
back is where the outputs lie, from where they are sent. One asyncio loop owns all state.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from edl.errors import ConfigError, ModelError, WireError
from edl.serving import channel, frame
from edl.serving.arena import Allocator, Arena
from edl.serving.batching import Batcher, batch_key
from edl.serving.description import DESCRIBE_METHOD, DESCRIBE_SERVICE, Description
from edl.serving.messages import METHOD, SERVICE, Request, decode_request, encode_response
from edl.serving.predictor import PredictorOptions
from edl.serving.stream import Stream
from edl.serving.tensor import Buffer
from edl.serving.workers import Result, WorkerDied, WorkerError, WorkerProcess

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """How a teacher is served.

    ``host``, ``port``: where to listen; port 0 takes a free one. ``workers``: predictor processes.
    ``max_batch_rows``, ``max_wait``: dynamic batching (see ``Batcher``; seconds).
    ``input_bytes``, ``output_bytes``: shared memory reserved for requests, and for each worker's
    outputs; only what is used costs memory. ``load_timeout``: seconds for a worker to be ready.
    ``patience``: seconds a peer may stall in mid-message.
    """

    host: str = "127.0.0.1"
    port: int = 0
    workers: int = 1
    max_batch_rows: int = 64
    max_wait: float = 0.0
    input_bytes: int = 2 << 30
    output_bytes: int = 1 << 30
    load_timeout: float = 600.0
    patience: float = 30.0


class _Refusal(Exception):
    """A request that gets an error answer."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class _Job:
    """One accepted request. ``blocks`` of the input arena are its to free."""

    stream: Stream
    correlation_id: int
    fetches: list[str]
    rows: int
    blocks: list[int]
    refs: dict[str, list[Any]] = field(default_factory=dict)


class TeacherServer:
    """Serves one model. Use: ``await start()``, then ``await drain()`` or ``await stop()``."""

    def __init__(self, predictor: PredictorOptions, options: ServerOptions) -> None:
        self._options = options
        self._inputs = Arena.create(options.input_bytes, "edl-inputs")
        self._base = np.frombuffer(self._inputs.view(0, 1), np.uint8).ctypes.data
        self._allocator = Allocator(options.input_bytes)
        self._room_turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._workers = [
            WorkerProcess(predictor, self._inputs, options.output_bytes)
            for _ in range(max(1, options.workers))
        ]
        self._ready: set[WorkerProcess] = set()
        self._idle: list[WorkerProcess] = []
        self._batcher: Batcher[_Job] = Batcher(options.max_batch_rows, options.max_wait)
        self._timer: Optional[asyncio.TimerHandle] = None
        self._outstanding = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._draining = False
        self._listener: Optional[socket.socket] = None
        self._accepting: Optional[asyncio.Task] = None
        self._streams: set[Stream] = set()
        self._tasks: set[asyncio.Task] = set()
        self.description = Description({}, {})

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        assert self._listener is not None, "the server has not been started"
        return self._listener.getsockname()[1]

    @property
    def healthy(self) -> bool:
        """Whether requests are taken and at least one worker can compute them."""
        return bool(self._ready) and not self._draining

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def start(self) -> None:
        """Load the model in every worker, then listen.

        Raises ModelError if a worker cannot load the model, ConfigError if the address is taken.
        """
        loop = asyncio.get_running_loop()
        self._listener = _listen(self._options.host, self._options.port)
        timeout = self._options.load_timeout
        try:
            descriptions = await asyncio.gather(
                *(worker.start(timeout) for worker in self._workers)
            )
        except ModelError:
            await self.stop()
            raise
        self.description = descriptions[0]
        self._ready.update(self._workers)
        self._idle.extend(self._workers)
        self._listener.listen(1024)
        self._accepting = loop.create_task(self._accept())

    async def drain(self) -> None:
        """Take no more requests, answer the accepted ones, end.

        Requests that arrive meanwhile are answered with ELOGOFF, which sends them elsewhere.
        """
        self._draining = True
        self._stop_listening()
        while self._outstanding:
            logger.info("draining: %d requests still to be answered", self._outstanding)
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), 5.0)
            except asyncio.TimeoutError:
                pass
        await asyncio.gather(*(stream.finish(patience=1.0) for stream in list(self._streams)))
        await self.stop()

    async def stop(self) -> None:
        """End at once, whatever is in flight."""
        self._draining = True
        self._stop_listening()
        self._ready.clear()
        self._idle.clear()
        if self._timer:
            self._timer.cancel()
        for stream in list(self._streams):
            stream.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))

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
            self._spawn(self._serve(Stream(sock, f"{address[0]}:{address[1]}")))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: Stream) -> None:
        self._streams.add(stream)
        try:
            header = bytearray(frame.HEADER_SIZE)
            while True:
                await stream.read_into(memoryview(header))
                limit = min(frame.MAX_BODY_SIZE, self._inputs.size // 2)
                body_size, meta_size = frame.parse_header(header, limit)
                block = await self._reserve(body_size)
                try:
                    body = self._inputs.view(block, body_size)
                    await stream.read_into(body, self._options.patience)
                    meta, payload = frame.parse_body(body, meta_size)
                except BaseException:
                    self._free(block)
                    raise
                self._handle(stream, meta, payload, block)
        except (EOFError, ConnectionError):
            pass
        except WireError as error:
            logger.warning("closing %s: %s", stream.peer, error)
        except OSError as error:
            logger.info("connection to %s ended: %s", stream.peer, error)
        finally:
            self._streams.discard(stream)
            stream.close()

    async def _reserve(self, size: int) -> int:
        """A block of the input arena; first come, first served when it is full."""
        async with self._room_turn:
            while (block := self._allocator.allocate(size)) is None:
                self._room.clear()
                await self._room.wait()
            return block

    def _free(self, block: int) -> None:
        self._allocator.free(block)
        self._room.set()

    # --- requests ---------------------------------------------------------------------------

    def _handle(self, stream: Stream, meta: frame.Meta, payload: memoryview, block: int) -> None:
        """Answer a frame at once, or accept it as a job. Takes ``block`` over."""
        if not isinstance(meta, frame.RequestMeta):
            self._free(block)
            raise WireError("got an answer where a request should be")
        job = _Job(stream, meta.correlation_id, [], 0, [block])
        try:
            if (meta.service, meta.method) == (DESCRIBE_SERVICE, DESCRIBE_METHOD):
                self._reply(job, [self.description.to_json().encode()])
                return
            self._accept_request(job, meta, payload)
        except _Refusal as refusal:
            self._refuse(job, refusal.code, str(refusal))
        except WireError as error:
            self._refuse(job, frame.EREQUEST, f"malformed request: {error}")

    def _accept_request(self, job: _Job, meta: frame.RequestMeta, payload: memoryview) -> None:
        if self._draining:
            raise _Refusal(frame.ELOGOFF, "this teacher is shutting down")
        if meta.service != SERVICE:
            raise _Refusal(frame.ENOSERVICE, f"no service {meta.service!r}; there is {SERVICE}")
        if meta.method != METHOD:
            raise _Refusal(frame.ENOMETHOD, f"no method {meta.method!r}; there is {METHOD}")
        if meta.compress_type:
            raise _Refusal(frame.EREQUEST, f"compression {meta.compress_type} is not supported")
        request = decode_request(payload)
        job.fetches, job.rows = check_request(self.description, request)
        if not job.rows:
            self._reply(job, encode_response(_no_rows(self.description, job.fetches)))
            return
        job.refs = {name: self._place(job, array) for name, array in request.feeds.items()}
        self._outstanding += 1
        key = batch_key(request.feeds, job.fetches)
        self._batcher.add(job, job.rows, key, asyncio.get_running_loop().time())
        self._dispatch()

    def _place(self, job: _Job, array: np.ndarray) -> list[Any]:
        """Where ``array`` lies in the input arena; decoded integers are copied there."""
        offset = array.ctypes.data - self._base
        if not 0 <= offset < self._inputs.size:
            array = array.astype(str) if array.dtype == object else array
            block = self._allocator.allocate(array.nbytes)
            if block is None:
                raise _Refusal(frame.ELIMIT, "this teacher's request memory is full")
            job.blocks.append(block)
            offset = block
            channel.resolve(self._inputs, channel.tensor_ref(offset, array))[...] = array
        return channel.tensor_ref(offset, array)

    # --- batches ----------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give idle workers what is due. The only place that decides this."""
        loop = asyncio.get_running_loop()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            due = self._batcher.due()
            if due is None:
                return
            if due > loop.time():
                self._timer = loop.call_at(due, self._dispatch)
                return
            self._spawn(self._compute(self._idle.pop(), self._batcher.take()))

    async def _compute(self, worker: WorkerProcess, jobs: list[_Job]) -> None:
        """Run a batch on a worker that was idle, answer it, and return the worker."""
        for batch in await self._run(worker, jobs):
            if worker not in self._ready:
                self._refuse_all(batch, "the worker process died before this request was computed")
            else:
                await self._run(worker, batch)
        if worker in self._ready:
            self._idle.append(worker)
            self._dispatch()

    async def _run(self, worker: WorkerProcess, jobs: list[_Job]) -> list[list[_Job]]:
        """Run one batch. Returns what to try again: each job alone, if together they failed."""
        try:
            result = await worker.run([job.refs for job in jobs], jobs[0].fetches)
        except WorkerError as error:
            if len(jobs) > 1:
                return [[job] for job in jobs]
            self._refuse_all(jobs, f"the model failed on this request: {error}")
        except WorkerDied as error:
            logger.error("%s while computing %d requests", error, len(jobs))
            self._ready.discard(worker)
            self._refuse_all(jobs, f"{error} while computing this request")
            self._spawn(self._restart(worker))
        else:
            self._answer(worker, jobs, result)
        return []

    def _answer(self, worker: WorkerProcess, jobs: list[_Job], result: Result) -> None:
        """Cut the outputs up by the jobs' rows and send them."""
        unsent = len(jobs)

        def sent() -> None:
            nonlocal unsent
            unsent -= 1
            if not unsent:
                worker.free(result)

        start = 0
        for job in jobs:
            rows = slice(start, start + job.rows)
            start += job.rows
            outputs = {name: result.outputs[name][rows] for name in job.fetches}
            self._settle()
            self._reply(job, encode_response(outputs), on_sent=sent)

    async def _restart(self, worker: WorkerProcess) -> None:
        for delay in (0.1, 1.0, 5.0, *[30.0] * 1000):
            await worker.stop()
            await asyncio.sleep(delay)
            try:
                await worker.start(self._options.load_timeout)
            except ModelError as error:
                logger.error("restarting a worker failed: %s", error)
                continue
            logger.info("worker restarted (pid %s)", worker.pid)
            self._ready.add(worker)
            self._idle.append(worker)
            self._dispatch()
            return

    # --- answers ----------------------------------------------------------------------------

    def _refuse_all(self, jobs: list[_Job], text: str) -> None:
        for job in jobs:
            self._settle()
            self._refuse(job, frame.EINTERNAL, text)

    def _refuse(self, job: _Job, code: int, text: str) -> None:
        logger.debug("refusing a request of %s: %s", job.stream.peer, text)
        self._send(job, frame.ResponseMeta(job.correlation_id, code, text), [])

    def _reply(self, job: _Job, payload: list[Buffer], on_sent: Any = None) -> None:
        self._send(job, frame.ResponseMeta(job.correlation_id), payload, on_sent)

    def _send(
        self, job: _Job, meta: frame.ResponseMeta, payload: list[Buffer], on_sent: Any = None
    ) -> None:
        for block in job.blocks:
            self._free(block)
        job.blocks.clear()
        self._outstanding += 1
        self._spawn(self._write(job.stream, frame.encode_frame(meta, payload), on_sent))

    async def _write(self, stream: Stream, buffers: list[Buffer], on_sent: Any) -> None:
        try:
            if not stream.closed:
                await stream.write(buffers, self._options.patience)
        except OSError as error:
            logger.info("answering %s failed: %s", stream.peer, error)
            stream.close()
        finally:
            if on_sent:
                on_sent()
            self._settle()

    def _settle(self) -> None:
        self._outstanding -= 1
        if not self._outstanding:
            self._quiet.set()


def check_request(description: Description, request: Request) -> tuple[list[str], int]:
    """The outputs a request wants, and its number of rows.

    Raises _Refusal that names the feed or fetch that is wrong, and what was expected.
    """
    for name in request.feeds:
        if name not in description.feeds:
            raise _refusal(
                f"unknown feed {name!r}; this teacher's feeds: {_names(description.feeds)}"
            )
    rows = set()
    for name, spec in description.feeds.items():
        if name not in request.feeds:
            raise _refusal(
                f"feed {name!r} is missing; this teacher needs {_names(description.feeds)}"
            )
        wrong = spec.mismatch(request.feeds[name])
        if wrong:
            raise _refusal(f"feed {name!r}: {wrong}")
        rows.add(len(request.feeds[name]))
    for name in request.fetches:
        if name not in description.fetches:
            raise _refusal(
                f"unknown fetch {name!r}; this teacher's fetches: {_names(description.fetches)}"
            )
    if len(rows) != 1:
        counts = ", ".join(f"{name}: {len(array)}" for name, array in request.feeds.items())
        raise _refusal(f"feeds differ in their number of rows ({counts})")
    fetches = list(dict.fromkeys(request.fetches)) or list(description.fetches)
    return fetches, rows.pop()


def _refusal(text: str) -> _Refusal:
    return _Refusal(frame.EREQUEST, text)


def _names(specs: Any) -> str:
    return ", ".join(repr(name) for name in specs)


def _no_rows(description: Description, fetches: list[str]) -> dict[str, np.ndarray]:
    """What any model answers to no rows: outputs of no rows."""
    specs = {name: description.fetches[name] for name in fetches}
    return {
        name: np.empty((0, *(max(size, 0) for size in spec.shape)), spec.dtype)
        for name, spec in specs.items()
    }


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
