"""The client: many requests in flight, limits, clear errors. Peers here are scripted sockets."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edl.discovery.embedded import free_port
from edl.errors import (
    RequestRefused,
    TeacherConnectionLost,
    TeacherFailed,
    TeacherProtocolError,
    TeacherTimeout,
    TeacherUnavailable,
    TeacherUnreachable,
    WireError,
)
from edl.serving import TeacherClient
from edl.serving.wire import frame
from edl.serving.wire.messages import decode_request, encode_error, encode_response
from tests.support.processes import ROOT

X = {"x": np.arange(6, dtype="f4").reshape(2, 3)}


def receive(conn, size):
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        assert more, "the client closed the connection"
        data += more
    return data


def read_request(conn):
    body_size, meta_size = frame.parse_header(receive(conn, frame.HEADER_SIZE))
    meta, payload = frame.parse_body(memoryview(receive(conn, body_size)), meta_size)
    return meta, decode_request(payload)


def answer(conn, correlation_id, payload, code=0, text=""):
    meta = frame.ResponseMeta(correlation_id, code, text)
    conn.sendall(b"".join(frame.encode_frame(meta, payload)))


@pytest.fixture
def peer():
    """peer(script): a server whose one connection is handled by ``script(conn)``."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def start(script):
        def run():
            conn, _ = listener.accept()
            with conn:
                script(conn)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[0].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join(5)
    listener.close()


def test_answers_in_any_order_find_their_requests(peer):
    def script(conn):
        requests = [read_request(conn) for _ in range(3)]
        for meta, request in reversed(requests):
            answer(conn, meta.correlation_id, encode_response({"y": request.feeds["x"] * 2}))

    results = {}
    with TeacherClient(peer(script)) as client:
        for number in range(3):
            feeds = {"x": np.full((1, 2), number, "f4")}
            client.submit(feeds, ["y"], lambda got, number=number: results.update({number: got}))
        deadline = time.monotonic() + 5
        while len(results) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert {key: value["y"][0, 0] for key, value in results.items()} == {0: 0, 1: 2, 2: 4}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (frame.EREQUEST, RequestRefused),
        (frame.ENOSERVICE, RequestRefused),
        (frame.ELOGOFF, TeacherUnavailable),
        (frame.ELIMIT, TeacherUnavailable),
        (frame.EINTERNAL, TeacherFailed),
    ],
)
def test_the_teachers_error_text_arrives(peer, code, kind):
    def script(conn):
        meta, _ = read_request(conn)
        answer(conn, meta.correlation_id, [], code, "feed 'x': too odd")
        meta, _ = read_request(conn)
        answer(conn, meta.correlation_id, encode_error(code, "feed 'x': too odd"))

    with TeacherClient(peer(script)) as client:
        for _ in range(2):  # in the frame's meta, and in Paddle Serving's own message
            with pytest.raises(kind, match=rf"teacher {client.endpoint}: feed 'x': too odd"):
                client.infer(X)


def test_a_refused_connection_says_so():
    with pytest.raises(TeacherUnreachable, match="refused"):
        TeacherClient(f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize("endpoint", ["nohost", "host:", ":80", "host:99999", "host:http"])
def test_an_endpoint_that_is_not_one_says_so(endpoint):
    with pytest.raises(TeacherUnreachable, match="is not host:port"):
        TeacherClient(endpoint)


def test_a_peer_that_does_not_answer_is_a_timeout_and_its_late_answer_is_dropped(peer):
    go_on = threading.Event()

    def script(conn):
        meta, _ = read_request(conn)
        go_on.wait(5)
        answer(conn, meta.correlation_id, encode_response({"y": X["x"]}))
        meta, _ = read_request(conn)
        answer(conn, meta.correlation_id, encode_response({"y": X["x"] + 1}))

    with TeacherClient(peer(script)) as client:
        with pytest.raises(TeacherTimeout, match=r"no answer within 0.2 s"):
            client.infer(X, timeout=0.2)
        go_on.set()
        assert client.infer(X)["y"][0, 0] == 1


def test_a_peer_that_takes_no_bytes_is_a_timeout(peer):
    done = threading.Event()

    def script(conn):
        done.wait(10)

    big = {"x": np.zeros((1, 64 << 20), "u1")}
    with TeacherClient(peer(script), send_timeout=0.3) as client:
        with pytest.raises(TeacherTimeout, match="takes no more bytes"):
            client.infer(big)
        done.set()


def test_a_peer_that_takes_no_connection_is_not_waited_for_longer_than_was_said():
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # as many as wait to be accepted
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        with pytest.raises(TeacherUnreachable, match=r"no connection within 0\.3 s"):
            TeacherClient(f"127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.3)


def test_a_request_beyond_what_a_frame_can_hold_is_refused_and_the_connection_lives_on(peer):
    def script(conn):
        meta, request = read_request(conn)
        answer(conn, meta.correlation_id, encode_response({"y": request.feeds["x"]}))

    with TeacherClient(peer(script)) as client:
        with pytest.raises(WireError, match="a frame holds at most 4 GiB"):
            client.infer({"x": np.zeros((1, (1 << 32) + 1), "u1")})  # memory that is not touched
        assert (client.infer(X)["y"] == X["x"]).all()


def test_who_is_interrupted_in_the_middle_of_sending_ends_the_connection(peer):
    done = threading.Event()

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with TeacherClient(peer(lambda conn: done.wait(30))) as client:
            ctrl_c = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
            ctrl_c.start()
            with pytest.raises(KeyboardInterrupt):
                client.infer({"x": np.zeros((1, 64 << 20), "u1")})
            with pytest.raises(TeacherConnectionLost, match="sending failed: KeyboardInterrupt"):
                client.infer(X)
            done.set()
    finally:
        signal.signal(signal.SIGUSR1, before)


#: A student that may have little more memory than it has already, and a teacher that says more.
LITTLE_MEMORY = """
import resource, socket, sys
import numpy as np
from edl.errors import TeacherProtocolError
from edl.serving import TeacherClient
client = TeacherClient(sys.argv[1])
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (16 << 20), -1))
try:
    client.infer({"x": np.ones((1, 1), "f4")})
except TeacherProtocolError as error:
    print(error.message)
"""


def test_an_answer_that_does_not_fit_into_memory_is_an_error_that_says_so(peer):
    def script(conn):
        read_request(conn)
        conn.sendall(b"PRPC" + (400 << 20).to_bytes(4, "big") + (10).to_bytes(4, "big"))
        with contextlib.suppress(OSError):
            conn.sendall(bytes(66 << 20))  # for more than 64 MB it is made room as they come
            conn.recv(1)

    command = [sys.executable, "-c", LITTLE_MEMORY, peer(script)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    assert said.stdout == "its answer exceeds memory\n"


def test_a_peer_that_hangs_up_fails_what_is_in_flight_and_what_comes_later(peer):
    def script(conn):
        read_request(conn)

    with TeacherClient(peer(script)) as client:
        for _ in range(2):
            with pytest.raises(TeacherConnectionLost):
                client.infer(X)


def test_a_reset_is_reported_as_one(peer):
    def script(conn):
        read_request(conn)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with TeacherClient(peer(script)) as client, pytest.raises(TeacherConnectionLost, match="reset"):
        client.infer(X)


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"PRPC" + (100).to_bytes(4, "big") + (50).to_bytes(4, "big") + b"\xff" * 100,
        b"PRPC" + (1 << 31).to_bytes(4, "big") + (10).to_bytes(4, "big"),
        b"".join(frame.encode_frame(frame.RequestMeta("s", "m", 1), [])),
        b"".join(frame.encode_frame(frame.ResponseMeta(1), [b"\x0a\x7f"])),
    ],
)
def test_garbage_is_a_protocol_error(peer, garbage):
    def script(conn):
        read_request(conn)
        conn.sendall(garbage)

    with TeacherClient(peer(script)) as client, pytest.raises(TeacherProtocolError):
        client.infer(X)


def test_a_false_length_allocates_nothing_to_speak_of(peer):
    def script(conn):
        read_request(conn)
        conn.sendall(b"PRPC" + (1 << 30).to_bytes(4, "big") + (10).to_bytes(4, "big"))

    with TeacherClient(peer(script)) as client:
        before = resident_bytes()
        with pytest.raises(TeacherConnectionLost):
            client.infer(X)
        assert resident_bytes() - before < 16 << 20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_callback_that_raises_ends_the_connection_and_leaves_nobody_waiting(peer):
    def script(conn):
        meta, _ = read_request(conn)
        for _ in range(2):
            read_request(conn)
        answer(conn, meta.correlation_id, encode_response({"y": X["x"]}))
        conn.recv(1)

    def fail(answer):
        raise KeyError("a bug")

    answers = queue.SimpleQueue()
    with TeacherClient(peer(script)) as client:
        client.submit(X, [], fail)
        client.submit(X, [], fail)
        client.submit(X, [], answers.put)
        error = answers.get(timeout=5)
    assert isinstance(error, TeacherProtocolError)
    assert "KeyError" in error.message


def test_closing_answers_what_is_in_flight(peer):
    closed = threading.Event()

    def script(conn):
        read_request(conn)
        closed.wait(5)

    answers = []
    client = TeacherClient(peer(script))
    client.submit(X, [], answers.append)
    client.close()
    closed.set()
    assert [type(item) for item in answers] == [TeacherConnectionLost]


def test_a_large_answer_grows_its_buffer_as_bytes_arrive(peer):
    size = (64 << 20) + 12345

    def script(conn):
        meta, _ = read_request(conn)
        answer(conn, meta.correlation_id, encode_response({"y": np.full((1, size), 7, "u1")}))

    with TeacherClient(peer(script)) as client:
        result = client.infer(X)["y"]
    assert result.shape == (1, size)
    assert result.min() == result.max() == 7


def test_what_waits_for_more_is_sent_together_and_not_before(peer):
    asked, seen = threading.Event(), queue.Queue()

    def script(conn):
        asked.wait(20)
        with pytest.raises(BlockingIOError):
            conn.recv(1, socket.MSG_DONTWAIT)
        seen.put("nothing yet")
        for _ in range(3):
            meta, request = read_request(conn)
            answer(conn, meta.correlation_id, encode_response(request.feeds))

    answers = queue.Queue()
    with TeacherClient(peer(script)) as client:
        for _ in range(3):
            client.submit(X, ["x"], answers.put, more=True)
        asked.set()
        assert seen.get(timeout=20) == "nothing yet"
        client.flush()
        for _ in range(3):
            assert (answers.get(timeout=20)["x"] == X["x"]).all()


def test_what_is_not_small_waits_for_nothing(peer):
    def script(conn):
        meta, request = read_request(conn)
        answer(conn, meta.correlation_id, encode_response(request.feeds))

    answers = queue.Queue()
    large = {"x": np.arange(1 << 18, dtype="f4")}
    with TeacherClient(peer(script)) as client:
        client.submit(large, ["x"], answers.put, more=True)
        assert (answers.get(timeout=20)["x"] == large["x"]).all()
