"""Hostile clients on real sockets, and a student beside them who is served all the same."""

import contextlib
import gzip
import json
import logging
import threading
import time
import urllib.request

import numpy as np
import pytest

from edl.errors import RequestRefused, TeacherFailed
from edl.serving import Description, ServerOptions, TeacherClient, TensorSpec, serve
from edl.serving.server.hosting import FunctionPredictor, ServedTeacher
from edl.serving.server.service import Limits
from edl.serving.wire import frame
from edl.serving.wire.messages import METHOD, SERVICE, encode_request
from edl.serving.worker.handles import WorkerThread
from tests.support.processes import eventually, python_teacher
from tests.support.wire import (
    INFERENCE,
    connect,
    get,
    post,
    read_http,
    read_rpc,
    receive,
    rpc,
    until_closed,
)

TOKEN = "correct horse battery staple"
X = np.ones((2, 3), "f4")
FEEDS, FETCHES = {"x": ((-1,), "float32")}, {"y": ((-1,), "float32")}
PAYLOAD = b"".join(encode_request({"x": X}, []))
MIB = 1 << 20


def host(function=lambda x: 2 * x, feeds=FEEDS, patience=30.0, **options):
    limits = Limits(patience=patience)
    return serve(function, feeds, FETCHES, options=ServerOptions(limits=limits, **options))


def claim(size):
    """The beginning of a frame of ``size`` bytes: header and meta."""
    meta = frame.encode_frame(frame.RequestMeta(SERVICE, METHOD, 7), [])[0][12:]
    return b"PRPC" + size.to_bytes(4, "big") + len(meta).to_bytes(4, "big") + meta


def latency(teacher, times=1, token=""):
    """The longest that a new student waits for one of its answers."""
    longest = 0.0
    with TeacherClient(teacher.endpoint, token=token) as client:
        for _ in range(times):
            started = time.monotonic()
            assert (client.infer({"x": X}, timeout=30)["y"] == 2 * X).all()
            longest = max(longest, time.monotonic() - started)
    return longest


def push(sock, size):
    """Send ``size`` bytes; how many the other side takes before it closes."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < size:
            sent += sock.send(bytes(min(MIB, size - sent)))
    return sent


@pytest.mark.parametrize("framing", [f"Content-Length: {400 * MIB}", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("token", [TOKEN, ""])
@pytest.mark.parametrize("page", ["/healthz", "/readyz", "/metrics"])
def test_pages_take_no_body(token, page, framing):
    with host(token=token) as teacher, connect(teacher) as sock:
        sock.sendall(get(page, f"{framing}\r\n"))
        assert push(sock, 400 * MIB) < 20 * MIB, "what sockets hold, and little more"
        assert latency(teacher, token=token) < 5


def test_a_page_says_that_it_takes_no_body():
    with host() as teacher, connect(teacher) as sock:
        sock.sendall(get("/healthz", "Content-Length: 4\r\n") + b"body")
        assert until_closed(sock).startswith(b"HTTP/1.1 413")
    with host() as teacher, connect(teacher) as sock:
        sock.sendall(get("/healthz", "Content-Length: 0\r\n"))
        assert read_http(sock)[0] == 200


def ask_a_page(sock):
    sock.sendall(get("/healthz"))
    read_http(sock)


def ask_without_a_token(sock):
    sock.sendall(get("/metrics"))
    assert read_http(sock)[0] in (200, 401)


def claim_much(sock):
    sock.sendall(claim(16 * MIB) + bytes(1000))


def say_half_a_header(sock):
    sock.sendall(b"PRPC\0\0")


@pytest.mark.parametrize("token", [TOKEN, ""])
@pytest.mark.parametrize(
    "begin", [ask_a_page, ask_without_a_token, claim_much, say_half_a_header, lambda sock: None]
)
def test_strangers_make_room_whatever_they_begin_with(token, begin):
    with host(token=token, max_connections=20) as teacher, contextlib.ExitStack() as stack:
        student = stack.enter_context(TeacherClient(teacher.endpoint, token=token))
        student.infer({"x": X})
        for _ in range(60):
            sock = stack.enter_context(connect(teacher))
            with contextlib.suppress(OSError):
                begin(sock)
        assert latency(teacher, token=token) < 5
        assert (student.infer({"x": X})["y"] == 2 * X).all(), "who is trusted is not sent away"


def test_a_flood_of_connections_ends_no_task_in_an_error(caplog):
    caplog.set_level(logging.ERROR)
    with host(max_connections=10) as teacher, contextlib.ExitStack() as stack:
        for number in range(400):
            sock = stack.enter_context(connect(teacher))
            with contextlib.suppress(OSError):
                sock.sendall((claim(100), get("/healthz"), b"GET /")[number % 3])
        assert latency(teacher) < 5
    assert not caplog.records


@pytest.mark.parametrize("trusted", [False, True])
def test_claims_of_much_memory_stall_nobody(trusted):
    with host(input_bytes=64 * MIB) as teacher, contextlib.ExitStack() as stack:
        student = stack.enter_context(TeacherClient(teacher.endpoint))
        student.infer({"x": X})
        for _ in range(24):
            sock = stack.enter_context(connect(teacher))
            if trusted:
                sock.sendall(rpc(PAYLOAD))
                read_rpc(sock)
            sock.sendall(claim(4 * MIB if trusted else 16 * MIB))
        started = time.monotonic()
        for _ in range(20):
            student.infer({"x": X}, timeout=30)
        assert time.monotonic() - started < (8 if trusted else 2)
        assert latency(teacher, 20) < (8 if trusted else 2)


@pytest.mark.parametrize("protocol", ["baidu_std", "http"])
def test_bodies_that_stop_short_of_their_end_stall_nobody_for_long(protocol):
    size = 15 * MIB
    with host(input_bytes=64 * MIB) as teacher, contextlib.ExitStack() as stack:
        for _ in range(6):
            sock = stack.enter_context(connect(teacher))
            sock.settimeout(1)
            head = post(b"").replace(b"Length: 0", b"Length: %d" % size)
            sock.sendall(claim(size) if protocol == "baidu_std" else head)
            push(sock, size - MIB)
        assert latency(teacher, 20) < 10


def connections(teacher):
    with urllib.request.urlopen(f"http://{teacher.endpoint}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if line.startswith("edl_connections "):
                return float(line.split()[1])


@pytest.mark.parametrize("protocol", ["baidu_std", "http"])
def test_who_takes_its_answer_byte_by_byte_is_given_up(protocol):
    big = b"".join(encode_request({"x": np.ones((1, 2_000_000), "f4")}, []))
    with host(patience=1.0) as teacher, connect(teacher) as sock:
        sock.setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF
        sock.sendall(rpc(big) if protocol == "baidu_std" else post(big))
        finished = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not finished.wait(0.02) and sock.recv(1):
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        time.sleep(0.5)
        eventually(lambda: connections(teacher) == 1, 15)
        finished.set()
        thread.join()


def test_who_sends_a_burst_and_then_drips_is_given_up():
    with host(patience=1.0) as teacher, connect(teacher) as sock:
        sock.sendall(claim(40 * MIB) + bytes(30 * MIB))
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - started < 10:
                sock.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - started < 8


TEXTS = ["x" * 100_000] + ["y"] * 60_000


def json_strings(texts):
    tensor = {"data": texts, "elem_type": 20, "shape": [len(texts)], "name": "x"}
    return json.dumps({"tensor": [tensor]}).encode()


@pytest.mark.parametrize("kind", ["baidu_std", "proto", "json", "few"])
def test_strings_that_would_take_gigabytes_are_refused_before_and_leak_nothing(kind):
    def count(x):
        return np.array([[len(text)] for text in x], "f4")

    # few: short enough a message to be decoded on the loop
    texts = ["x" * 400_000] + ["y"] * 400 if kind == "few" else TEXTS
    payload = b"".join(encode_request({"x": np.array(texts, object)}, []))
    teacher = host(count, {"x": ((), "str")})
    with connect(teacher, timeout=30) as sock:
        for _ in range(3):
            if kind in ("baidu_std", "few"):
                sock.sendall(rpc(payload))
                answer = read_rpc(sock)[0]
                code, text = answer.error_code, answer.error_text
                assert code == frame.EREQUEST
            else:
                body = payload if kind == "proto" else json_strings(texts)
                sock.sendall(post(body, f"application/{kind}"))
                status, text = read_http(sock)
                text = text.decode()
                assert status == 400
            assert "the width of the longest" in text
        small = b"".join(encode_request({"x": np.array(["ab", "c"], object)}, []))
        sock.sendall(rpc(small))
        assert read_rpc(sock)[1].outputs["y"].ravel().tolist() == [2, 1]
    memory = teacher._server._service.memory
    eventually(lambda: memory.budget.blocks == memory.budget.loose == 0)
    started = time.monotonic()
    teacher.close()
    assert time.monotonic() - started < 5, "draining ends"


def test_what_goes_to_the_parser_comes_out_right():
    def total(x, ids):
        return x + ids.sum(axis=1, keepdims=True).astype("f4")

    feeds = {"x": ((1,), "float32"), "ids": ((-1,), "int64")}
    x, ids = np.full((3, 1), 0.5, "f4"), np.random.default_rng(0).integers(-9, 9, (3, 300_000))
    expected = (x + ids.sum(axis=1, keepdims=True)).tolist()
    payload = b"".join(encode_request({"x": x, "ids": ids}, []))
    packed = gzip.compress(payload, 1)
    tensors = [
        {"float_data": x.ravel().tolist(), "elem_type": 1, "shape": [3, 1], "name": "x"},
        {"int64_data": ids.ravel().tolist(), "shape": list(ids.shape), "name": "ids"},
    ]
    text = json.dumps({"tensor": tensors, "log_id": 5}).encode()
    with host(total, feeds) as teacher, connect(teacher, timeout=30) as sock:
        for message in (rpc(payload), rpc(packed, compress_type=2)):
            sock.sendall(message)
            assert read_rpc(sock)[1].outputs["y"].tolist() == expected
        gzipped = "Content-Encoding: gzip\r\n"
        for body, headers in ((text, ""), (gzip.compress(text), gzipped)):
            sock.sendall(post(body, "application/json", headers=headers))
            status, answer = read_http(sock)
            (tensor,) = json.loads(answer)["outputs"][0]["tensor"]
            assert (status, tensor["float_data"]) == (200, np.ravel(expected).tolist())
            assert json.loads(answer)["log_id"] == 5
        memory = teacher._server._service.memory
        eventually(lambda: memory.budget.blocks == memory.budget.loose == 0)


def long_json():
    return post(b'{"tensor": [' + b"0.1," * 7_000_000 + b"0]}", "application/json")


def bomb():
    return rpc(gzip.compress(bytes(300 * MIB), 1), compress_type=2)


def many_integers():
    return rpc(b"".join(encode_request({"x": np.ones(20 * MIB, "i8")}, [])))


def many_strings():
    tensor = b"".join(encode_request({"x": np.full(60_000, "abc", object)}, []))
    return rpc(tensor.replace(b"x", b"y") + tensor)


@pytest.mark.parametrize("make", [long_json, bomb, many_integers, many_strings])
def test_what_is_slow_to_parse_stalls_nobody(make):
    hostile = make()
    with python_teacher("Sums", verbose=False) as teacher, contextlib.ExitStack() as stack:
        client = stack.enter_context(TeacherClient(teacher.endpoint))
        client.infer({"img": X})
        answered = threading.Event()

        def attack():
            with connect(teacher, timeout=60) as sock:
                sock.sendall(hostile)
                receive(sock, 12)
                answered.set()

        thread = threading.Thread(target=attack)
        thread.start()
        longest, began = 0.0, time.monotonic()
        while not answered.is_set():
            started = time.monotonic()
            client.infer({"img": X})
            longest = max(longest, time.monotonic() - started)
        thread.join()
        print(f"{make.__name__}: others waited {1000 * longest:.0f} ms at most")
        took = time.monotonic() - began
        assert longest < max(1.0, took / 3), (
            "parsed on the loop, or holding its GIL, it is all of it"
        )


def test_json_beyond_its_limit_is_refused_before_it_is_received_and_the_remedy_named():
    with host() as teacher, connect(teacher) as sock:
        head = post(b"", "application/json").replace(b"Length: 0", b"Length: 48000000")
        sock.sendall(head)
        answer = until_closed(sock)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"48.0 MB" in answer
    assert b"application/proto" in answer


def test_a_frame_beyond_the_limit_is_answered_with_both_sizes():
    options = ServerOptions(limits=Limits(max_body=1_000_000))
    with serve(lambda x: x, FEEDS, FETCHES, options=options) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            with pytest.raises(RequestRefused, match=r"2\.0 MB .* limit of 1\.0 MB"):
                client.infer({"x": np.ones((1, 500_000), "f4")})


def test_a_body_may_be_as_large_as_the_limit_on_both_protocols():
    x = np.ones((4, 4_000_000), "f4")
    payload = b"".join(encode_request({"x": x}, []))
    with host(lambda x: x[:, :1], input_bytes=256 * MIB) as teacher:
        with connect(teacher, timeout=30) as sock:
            for _ in range(3):
                sock.sendall(rpc(payload))
                assert read_rpc(sock)[1].outputs["y"].tolist() == [[1]] * 4
                sock.sendall(post(payload))
                assert read_http(sock)[0] == 200
        with connect(teacher, timeout=30) as sock:  # in chunks, of which nobody knows the end
            sock.sendall(
                f"POST {INFERENCE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            sock.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(payload), payload))
            assert read_http(sock)[0] == 200
        memory = teacher._server._service.memory
        eventually(lambda: memory.budget.blocks == memory.budget.loose == 0)


@pytest.mark.parametrize("ask", [rpc, post], ids=["baidu_std", "http"])
def test_outputs_that_cannot_be_written_are_an_error_answer_and_leak_nothing(ask):
    fetches = {"y": ((), "str")}
    teacher = serve(lambda x: np.array(["\ud800"] * len(x), object), FEEDS, fetches)
    with connect(teacher) as sock:
        for _ in range(3):
            sock.sendall(ask(PAYLOAD))
            if ask is rpc:
                assert read_rpc(sock)[0].error_code == frame.EINTERNAL
            else:
                assert read_http(sock)[0] == 500
    started = time.monotonic()
    teacher.close()
    assert time.monotonic() - started < 5, "draining ends"


class Confused(WorkerThread):
    """A worker that fails in a way that it should not, once."""

    confused = True

    def run(self, requests, fetches, on_done, lent=None):
        if self.confused:
            self.confused = False
            raise MemoryError
        super().run(requests, fetches, on_done, lent)


def test_a_worker_that_fails_unexpectedly_is_replaced_and_its_request_answered():
    specs = {"x": TensorSpec((-1,), "float32")}, {"y": TensorSpec((-1,), "float32")}
    predictor = FunctionPredictor(lambda x: 2 * x, Description(*specs))
    with ServedTeacher(lambda inputs: [Confused(predictor, inputs)], ServerOptions()) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            with pytest.raises(TeacherFailed, match="out of memory"):
                client.infer({"x": X})
            assert (client.infer({"x": X}, timeout=20)["y"] == 2 * X).all()
