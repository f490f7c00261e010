"""Ways of getting batches to a model, and the answers back in order.

Each is a context manager that gives a function from batches to their answers. Its server, if it has
one, is forked before anything is imported that has threads. Each imports what it needs itself, for
there is no Python that has it all.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import multiprocessing
import os
import socket
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Callable

import numpy as np

from _peers.lines import OVER_TCP, SAME_HOST
from _peers.work import NOTHING, Answer, Nothing, Work

Run = Callable[[Iterable[np.ndarray]], Iterator[Answer]]


# --- what it takes at least ----------------------------------------------------------------------


@contextmanager
def memcpy(work: Nothing) -> Iterator[Run]:
    """Nobody is asked: a batch is copied into memory that is there already."""
    memory = np.ones(work.shape, work.dtype)

    def run(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
        for batch in batches:
            np.copyto(memory, batch)
            yield work.answer(memory)

    yield run


@contextmanager
def shared_memory(work: Nothing) -> Iterator[Run]:
    """One copy into memory that both have, a byte through a socket, and the same way back."""
    memory = mmap.mmap(-1, work.feed_bytes + work.answer_bytes)
    ours, theirs = socket.socketpair()
    request = np.frombuffer(memory, work.dtype, int(np.prod(work.shape))).reshape(work.shape)
    answer = work.split(memoryview(memory)[work.feed_bytes :])

    def serve() -> None:
        while theirs.recv(1):
            for target, array in zip(answer, work.answer(request)):
                np.copyto(target, array)
            theirs.send(b"!")

    def run(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
        for batch in batches:
            np.copyto(request, batch)
            ours.send(b"!")
            ours.recv(1)
            yield [array.copy() for array in answer]

    with _forked(serve):
        yield run


@contextmanager
def bare_socket(work: Nothing, family: str) -> Iterator[Run]:
    """The bytes there, the answer's back, one round trip after the other."""
    from edl.serving.client.teacher import receive_exactly, send_all

    with tempfile.TemporaryDirectory() as directory:
        if family == "unix":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{directory}/socket")
            listener.listen()
        else:
            listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            conn, _ = listener.accept()
            _without_delay(conn)
            request = np.empty(work.shape, work.dtype)
            with contextlib.suppress(EOFError, OSError):
                while True:
                    receive_exactly(conn, memoryview(request).cast("B"))
                    send_all(conn, [array.data.cast("B") for array in work.answer(request)])

        with _forked(serve), socket.socket(listener.family) as conn:
            conn.connect(listener.getsockname())
            listener.close()
            _without_delay(conn)
            memory = memoryview(bytearray(work.answer_bytes))
            answer = work.split(memory)

            def run(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
                for batch in batches:
                    send_all(conn, [batch.data.cast("B")])
                    receive_exactly(conn, memory)
                    yield answer

            yield run


def _without_delay(conn: socket.socket) -> None:
    if conn.family == socket.AF_INET:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextmanager
def predictor(work: Work, **options: Any) -> Iterator[Run]:
    """No service: the model in this process, one batch after the other."""
    from edl.serving.model.predictor import PredictorOptions, load_predictor

    model = load_predictor(PredictorOptions(**options))

    def run(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
        for batch in batches:
            yield list(model.run({work.feed: batch}, work.fetches).values())

    yield run


# --- what people use -----------------------------------------------------------------------------


@contextmanager
def ray_actor(work: Nothing, window: int, name: str) -> Iterator[Run]:
    """An actor; batches and answers go through the shared-memory object store."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30
    )  # fmt: skip

    class Model:
        def __init__(self) -> None:
            self._work = NOTHING[name]

        def answer(self, batch: np.ndarray) -> Answer:
            return self._work.answer(batch)

    actor = ray.remote(Model).remote()
    try:
        yield partial(_windowed, actor.answer.remote, ray.get, window)
    finally:
        ray.shutdown()


@contextmanager
def grpc_bytes(work: Nothing, window: int, address: str) -> Iterator[Run]:
    """Arrays as gRPC messages that are nothing but their bytes."""
    limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    path = "/model/answer"
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = multiprocessing.Pipe()

        def serve() -> None:
            from concurrent.futures import ThreadPoolExecutor

            import grpc

            def answer(request: bytes, _: object) -> bytes:
                batch = np.frombuffer(request, work.dtype).reshape(work.shape)
                return b"".join(array.data for array in work.answer(batch))

            handler = grpc.unary_unary_rpc_method_handler(answer)
            handlers = grpc.method_handlers_generic_handler("model", {"answer": handler})
            server = grpc.server(ThreadPoolExecutor(2), options=limits)
            server.add_generic_rpc_handlers((handlers,))
            where = "127.0.0.1:0" if address == "TCP" else f"unix:{directory}/socket"
            port = server.add_insecure_port(where)
            server.start()
            theirs.send(f"127.0.0.1:{port}" if address == "TCP" else where)
            server.wait_for_termination()

        with _forked(serve):
            import grpc

            with grpc.insecure_channel(ours.recv(), options=limits) as channel:
                call = channel.unary_unary(path)

                def submit(batch: np.ndarray) -> Any:
                    return call.future(batch.tobytes(), wait_for_ready=True)

                def take(future: Any) -> Answer:
                    return work.split(memoryview(future.result()))

                yield partial(_windowed, submit, take, window)


@contextmanager
def zeromq(work: Nothing, window: int, address: str) -> Iterator[Run]:
    """Arrays as the parts of a ZeroMQ message, which are not copied."""
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = multiprocessing.Pipe()

        def serve() -> None:
            import zmq

            server = zmq.Context().socket(zmq.PAIR)
            server.bind("tcp://127.0.0.1:*" if address == "TCP" else f"ipc://{directory}/socket")
            theirs.send(server.getsockopt_string(zmq.LAST_ENDPOINT))
            while True:
                request = server.recv(copy=False)
                batch = np.frombuffer(request.buffer, work.dtype).reshape(work.shape)
                server.send_multipart(work.answer(batch), copy=False)

        with _forked(serve):
            import zmq

            with zmq.Context() as context, context.socket(zmq.PAIR) as client:
                client.linger = 0
                client.connect(ours.recv())

                def submit(batch: np.ndarray) -> None:
                    client.send(batch, copy=False)

                def take(_: None) -> Answer:
                    parts = client.recv_multipart(copy=False)
                    return [
                        np.frombuffer(part.buffer, table.dtype).reshape(-1, *table.shape[1:])
                        for part, table in zip(parts, work.tables)
                    ]

                yield partial(_windowed, submit, take, window)


_SERVING_TYPES = {"int64": 0, "float32": 1, "int16": 4, "float16": 5}
_SERVING_FIELDS = {"float32": "float_data"}


@contextmanager
def http_client(work: Nothing, endpoint: str) -> Iterator[Run]:
    """Paddle Serving's own client, one request after the other, protobuf over HTTP."""
    from paddle_serving_client.httpclient import HttpClient

    def variable(kind: str, name: str, shape: tuple[int, ...], dtype: str) -> str:
        shapes = " ".join(f"shape: {size}" for size in shape)
        number = _SERVING_TYPES[dtype]
        names = f'name: "{name}" alias_name: "{name}"'
        return f"{kind}_var {{ {names} is_lod_tensor: false {kind}_type: {number} {shapes} }}\n"

    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory) / "serving_client_conf.prototxt"
        conf.write_text(
            variable("feed", work.feed, work.shape[1:], work.dtype)
            + "".join(variable("fetch", name, *kind) for name, kind in work.kinds.items())
        )
        client = HttpClient()
        client.load_client_config(str(conf))
        client.connect([endpoint])

        def run(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
            for batch in batches:
                answer = client.predict({work.feed: batch}, fetch=work.fetches, batch=True)
                tensors = {each.alias_name: each for each in answer.outputs[0].tensor}
                yield [_array(tensors[name], kind[1]) for name, kind in work.kinds.items()]

        yield run


def _array(tensor: Any, dtype: str) -> np.ndarray:
    field = _SERVING_FIELDS.get(dtype)
    if field is None:
        flat = np.frombuffer(tensor.tensor_content, dtype)
    else:
        flat = np.array(getattr(tensor, field), dtype)
    return flat.reshape(tensor.shape)


# --- what we have --------------------------------------------------------------------------------


class NoSuchWay(Exception):
    """Teachers cannot be reached as was asked."""


def _choose(way: str) -> None:
    """What readers and pools of this process do; nothing is said: what they like."""
    if way:
        os.environ["EDL_LOCAL"] = "0" if way == OVER_TCP else "1"


def _check(way: str, stats: dict[str, Any]) -> None:
    """Raises NoSuchWay if a teacher is reached by TCP and should not be."""
    used = [teacher.get("way", "tcp") for teacher in stats["teachers"].values()]
    if way == SAME_HOST and "tcp" in used:
        raise NoSuchWay("these teachers are reached by TCP only")


@contextmanager
def distill_reader(work: Work, endpoints: list[str], way: str) -> Iterator[Run]:
    """DistillReader with real teachers."""
    from edl.distill import DistillReader

    _choose(way)
    label = np.zeros(len(work.batch(0)), np.int64)
    source: Iterable[np.ndarray] = ()

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in source:
            yield batch, label

    names, predicts = [work.feed, "label"], list(work.fetches)
    with DistillReader(names, predicts, pairs, endpoints, return_tensors="np") as reader:

        def run(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
            nonlocal source
            source = batches
            for _, _, *answer in reader:
                yield answer
            _check(way, reader.stats())

        yield run


@contextmanager
def teacher_pool(work: Work, endpoint: str, window: int, way: str) -> Iterator[Run]:
    """TeacherPool: one ``infer`` after the other, or ``map`` with so many in flight."""
    from edl.distill import TeacherPool

    _choose(way)
    fetches = list(work.fetches)
    with TeacherPool(fetches, endpoint, feeds=[work.feed], return_tensors="np") as pool:

        def run(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
            if window == 1:
                answers: Iterable[dict] = map(pool.infer, batches)
            else:
                answers = pool.map(batches, ahead=window - 1)
            for answer in answers:
                yield [answer[name] for name in fetches]
            _check(way, pool.stats())

        yield run


@contextmanager
def teacher_client(work: Work, endpoint: str, window: int, way: str) -> Iterator[Run]:
    """TeacherClient: one ``infer`` after the other, or ``submit`` with so many in flight."""
    fetches = list(work.fetches)
    with _connected(endpoint, way) as client:

        def one_by_one(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
            for batch in batches:
                yield list(client.infer({work.feed: batch}, fetches).values())

        def many(batches: Iterable[np.ndarray]) -> Iterator[Answer]:
            answered: SimpleQueue[tuple[int, Any]] = SimpleQueue()
            found: dict[int, Any] = {}
            numbers = itertools.count()

            def submit(batch: np.ndarray) -> int:
                number = next(numbers)
                client.submit(
                    {work.feed: batch}, fetches, lambda answer: answered.put((number, answer))
                )
                return number

            def take(number: int) -> Answer:
                while number not in found:
                    other, answer = answered.get()
                    found[other] = answer
                answer = found.pop(number)
                if not isinstance(answer, dict):
                    raise answer
                return list(answer.values())

            yield from _windowed(submit, take, window, batches)

        yield one_by_one if window == 1 else many


def _connected(endpoint: str, way: str) -> Any:
    """A TeacherClient. Raises NoSuchWay."""
    from edl.serving import TeacherClient

    client = TeacherClient(endpoint)
    if way != SAME_HOST:
        return client
    try:
        from edl.serving.client.local import connect_nearer, socket_of
    except ImportError as error:
        raise NoSuchWay("these teachers are reached by TCP only") from error
    with client:
        description = client.describe()
    nearer = connect_nearer(endpoint, socket_of(endpoint, description), description, "", 3.0)
    if nearer is None:
        raise NoSuchWay("these teachers are reached by TCP only")
    return nearer


PIPELINES: dict[str, Callable[..., Any]] = {
    "memcpy": memcpy,
    "shared memory": shared_memory,
    "bare socket": bare_socket,
    "predictor": predictor,
    "ray": ray_actor,
    "grpc": grpc_bytes,
    "zeromq": zeromq,
    "http client": http_client,
    "reader": distill_reader,
    "pool": teacher_pool,
    "client": teacher_client,
}


# --- helpers -------------------------------------------------------------------------------------


def _windowed(
    submit: Callable[[np.ndarray], Any],
    take: Callable[[Any], Answer],
    window: int,
    batches: Iterable[np.ndarray],
) -> Iterator[Answer]:
    """Answers in order, with at most so many requests in flight."""
    in_flight: deque[Any] = deque()
    for batch in batches:
        in_flight.append(submit(batch))
        if len(in_flight) == window:
            yield take(in_flight.popleft())
    while in_flight:
        yield take(in_flight.popleft())


@contextmanager
def _forked(serve: Callable[[], None]) -> Iterator[None]:
    process = multiprocessing.get_context("fork").Process(target=serve, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
