"""One port, and one connection, for both of Paddle Serving's protocols."""

import contextlib
import json
import random
import resource
import socket
from pathlib import Path

import numpy as np
import pytest

from edl.serving import serve
from edl.serving.wire.messages import decode_response, encode_request
from tests.support.processes import python_teacher
from tests.support.reference import Request, Response
from tests.support.wire import connect, get, post, read_http, read_rpc, receive, rpc

X = np.arange(6, dtype="f4").reshape(2, 3)
FEEDS, FETCHES = {"x": ((3,), "float32")}, {"y": ((3,), "float32")}
PAYLOAD = b"".join(encode_request({"x": X}, ["y"]))


@pytest.fixture(scope="module")
def teacher():
    with serve(lambda x: 2 * x, FEEDS, FETCHES) as teacher:
        yield teacher


def ask_rpc(sock):
    sock.sendall(rpc(PAYLOAD))
    assert (read_rpc(sock)[1].outputs["y"] == 2 * X).all()


def ask_page(sock):
    sock.sendall(get("/healthz"))
    assert read_http(sock) == (200, b"ok\n")


def ask_http(sock):
    sock.sendall(post(PAYLOAD))
    status, body = read_http(sock)
    assert status == 200
    assert (decode_response(memoryview(body)).outputs["y"] == 2 * X).all()


@pytest.mark.parametrize("first", [ask_rpc, ask_page, ask_http])
def test_protocols_alternate_on_one_connection_in_any_order(teacher, first):
    order = random.Random(1)
    with connect(teacher) as sock:
        first(sock)
        for _ in range(40):
            order.choice([ask_rpc, ask_page, ask_http])(sock)


def test_they_may_be_sent_without_waiting_for_answers(teacher):
    with connect(teacher) as sock:
        sock.sendall(get("/healthz") + rpc(PAYLOAD) + post(PAYLOAD) + rpc(PAYLOAD) + get("/readyz"))
        kinds = []
        for _ in range(5):  # answers of the two protocols may overtake each other
            if sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == b"PRPC":
                kinds.append(read_rpc(sock)[0].error_code)
            else:
                kinds.append(read_http(sock)[0])
        assert sorted(kinds) == [0, 0, 200, 200, 200]


def test_a_frame_that_follows_a_request_in_the_same_packet_is_split_anywhere(teacher):
    message = get("/healthz") + rpc(PAYLOAD)
    for cut in range(1, len(message), 7):
        with connect(teacher) as sock:
            sock.sendall(message[:cut])
            sock.sendall(message[cut:])
            assert read_http(sock)[0] == 200
            assert (read_rpc(sock)[1].outputs["y"] == 2 * X).all()


def test_who_asks_http_to_close_still_gets_its_other_answers(teacher):
    with connect(teacher) as sock:
        sock.sendall(rpc(PAYLOAD) + get("/healthz", "Connection: close\r\n"))
        data = b""
        while more := sock.recv(1 << 16):
            data += more
    assert b"HTTP/1.1 200" in data
    assert b"PRPC" in data


@pytest.mark.parametrize("log_id", [0, 1, 2**32, 2**64 - 1])
def test_the_messages_log_id_comes_back(teacher, log_id):
    message = Request.FromString(PAYLOAD)
    message.log_id = log_id
    payload = message.SerializeToString()
    with connect(teacher) as sock:
        sock.sendall(rpc(payload, log_id=99))
        header = receive(sock, 12)
        body = receive(sock, int.from_bytes(header[4:8], "big"))
        answer = Response.FromString(body[int.from_bytes(header[8:12], "big") :])
        assert answer.log_id == log_id
        sock.sendall(post(payload))
        assert Response.FromString(read_http(sock)[1]).log_id == log_id
        tensor = {"float_data": X.ravel().tolist(), "elem_type": 1, "shape": [2, 3], "name": "x"}
        for value in (log_id, str(log_id)):
            body = json.dumps({"tensor": [tensor], "log_id": value}).encode()
            sock.sendall(post(body, "application/json"))
            status, text = read_http(sock)
            assert (status, json.loads(text).get("log_id", 0)) == (200, log_id)


def test_a_log_id_that_is_none_is_refused(teacher):
    with connect(teacher) as sock:
        for value in ("-1", str(2**64), '"x"', "1.5", "true", "null"):
            sock.sendall(post(b'{"log_id": %s}' % value.encode(), "application/json"))
            status, text = read_http(sock)
            assert (status, b"log_id" in text) == (400, True), value


def test_debug_computes_what_inference_does(teacher):
    with connect(teacher) as sock:
        sock.sendall(rpc(PAYLOAD, method="debug"))
        assert (read_rpc(sock)[1].outputs["y"] == 2 * X).all()
        sock.sendall(post(PAYLOAD, path="/GeneralModelService/debug"))
        assert read_http(sock)[0] == 200


def test_thousands_of_connections_at_once_are_all_served():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with python_teacher("Sums", verbose=False) as teacher, contextlib.ExitStack() as stack:
        backlog = int(Path("/proc/sys/net/core/somaxconn").read_text())
        socks = []
        teacher.kill(19)  # SIGSTOP: they all come at once, as far as the teacher can see
        for _ in range(min(2000, backlog)):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", teacher.port))
            socks.append(sock)
        teacher.kill(18)
        payload = rpc(b"".join(encode_request({"img": X}, [])))
        for sock in socks:
            sock.settimeout(20)
            sock.sendall(payload)
        for sock in socks:
            assert read_rpc(sock)[1].outputs["prob"][:, 0].tolist() == [3, 12]
