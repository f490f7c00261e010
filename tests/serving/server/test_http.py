"""HTTP on the teacher's port."""

import contextlib
import gzip
import http.client
import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from edl.serving import ServerOptions, TeacherClient, serve
from edl.serving.server.service import Limits
from edl.serving.wire.messages import decode_response, encode_request
from tests.support.reference import Response

VECTORS = Path(__file__).parents[2] / "vectors"
INFERENCE = "/GeneralModelService/inference"
PROTO, JSON = {"Content-Type": "application/proto"}, {"Content-Type": "application/json"}
FEEDS = {"img": ((1, 2, 2), "float32"), "ids": ((3,), "int64")}
FETCHES = {"prob": ((2,), "float32"), "total": ((1,), "int64")}
IMG = np.arange(8, dtype="f4").reshape(2, 1, 2, 2) / 8
IDS = np.array([[1, 2, 300], [-1, 5, 70000]])


def compute(img, ids):
    flat = img.reshape(len(img), -1)
    return flat[:, :2], ids.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def teacher():
    with serve(compute, FEEDS, FETCHES) as teacher:
        yield teacher


@pytest.fixture
def conn(teacher):
    with contextlib.closing(http.client.HTTPConnection(teacher.endpoint, timeout=10)) as conn:
        yield conn


def ask(conn, method, path, body=None, headers=None):
    conn.request(method, path, body, headers or {})
    answer = conn.getresponse()
    return answer, answer.read()


def protobuf(feeds=None, fetches=("prob",)):
    return b"".join(encode_request(feeds or {"img": IMG, "ids": IDS}, fetches))


def prob_of(body):
    return decode_response(memoryview(body)).outputs["prob"]


def test_the_official_clients_protobuf_body(conn):
    body = (VECTORS / "official_http_request.bin").read_bytes()
    answer, body = ask(conn, "POST", INFERENCE, body, PROTO)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/proto")
    message = Response.FromString(body)
    (output,) = message.outputs
    (tensor,) = output.tensor
    assert output.engine_name == "general_infer_0"
    assert (tensor.alias_name, tensor.elem_type, list(tensor.shape)) == ("prob", 1, [2, 2])
    assert list(tensor.float_data) == [0, 0.125, 0.5, 0.625]


def test_the_official_clients_json_body(conn):
    body = (VECTORS / "official_http_request.json").read_bytes()
    answer, body = ask(conn, "POST", INFERENCE, body, JSON)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    (output,) = json.loads(body)["outputs"]
    (tensor,) = output["tensor"]
    assert tensor["float_data"] == [0, 0.125, 0.5, 0.625]
    assert (tensor["alias_name"], tensor["elem_type"], tensor["shape"]) == ("prob", 1, [2, 2])


def test_one_connection_serves_many_requests(conn):
    for number in range(20):
        img = IMG + number
        _, body = ask(conn, "POST", INFERENCE, protobuf({"img": img, "ids": IDS}), PROTO)
        assert (prob_of(body) == img.reshape(2, -1)[:, :2]).all()


def test_the_other_protocol_is_on_the_same_port(teacher, conn):
    with TeacherClient(teacher.endpoint) as client:
        outputs = client.infer({"img": IMG, "ids": IDS})
    assert outputs["total"].tolist() == [[303], [70004]]
    assert ask(conn, "GET", "/healthz")[1] == b"ok\n"


def test_a_gzip_body_is_unpacked(conn):
    headers = {**PROTO, "Content-Encoding": "gzip"}
    _, body = ask(conn, "POST", INFERENCE, gzip.compress(protobuf()), headers)
    assert prob_of(body).tolist() == [[0, 0.125], [0.5, 0.625]]


@pytest.mark.parametrize(("rows", "packed"), [(1, False), (500, True)])
def test_a_large_answer_is_packed_for_a_client_that_accepts_it(conn, rows, packed):
    feeds = {"img": np.zeros((rows, 1, 2, 2), "f4"), "ids": np.zeros((rows, 3), "i8")}
    headers = {**PROTO, "Accept-Encoding": "gzip, deflate"}
    answer, body = ask(conn, "POST", INFERENCE, protobuf(feeds), headers)
    assert (answer.headers.get("Content-Encoding") == "gzip") == packed
    assert prob_of(gzip.decompress(body) if packed else body).shape == (rows, 2)


def test_a_chunked_body(conn):
    message = protobuf()
    chunks = iter([message[:10], message[10:11], message[11:]])
    conn.request("POST", INFERENCE, chunks, PROTO, encode_chunked=True)
    assert prob_of(conn.getresponse().read()).shape == (2, 2)


def test_who_expects_a_100_gets_it(teacher):
    host, port = teacher.endpoint.split(":")
    message = protobuf()
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        head = f"POST {INFERENCE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n"
        sock.sendall(
            f"{head}Content-Length: {len(message)}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert sock.recv(1000).startswith(b"HTTP/1.1 100")
        sock.sendall(message)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("body", "headers", "status", "complaint"),
    [
        (b"\xff\xff", PROTO, 400, "malformed request"),
        (b"{", JSON, 400, "malformed request: body is not JSON"),
        (b"{}", JSON, 400, "feed 'img' is missing"),
        (protobuf({"img": IMG}), PROTO, 400, "feed 'ids' is missing"),
        (protobuf(fetches=["nothing"]), PROTO, 400, "unknown fetch 'nothing'"),
        (protobuf(), {"Content-Type": "text/csv"}, 400, "text/csv is not supported"),
        (protobuf(), {**PROTO, "Content-Encoding": "br"}, 400, "br is not supported"),
        (b"nonsense", {**PROTO, "Content-Encoding": "gzip"}, 400, "not valid gzip"),
        (
            gzip.compress(b"a", mtime=0)[:-2],
            {**PROTO, "Content-Encoding": "gzip"},
            400,
            "not one whole gzip",
        ),
    ],
)
def test_a_wrong_request_is_answered_with_the_reason(conn, body, headers, status, complaint):
    answer, text = ask(conn, "POST", INFERENCE, body, headers)
    assert (answer.status, answer.headers["x-bd-error-code"]) == (status, "1003")
    assert complaint in text.decode()
    assert ask(conn, "GET", "/healthz")[0].status == 200, "the connection lives on"


def test_unknown_pages_and_methods(conn):
    answer, text = ask(conn, "GET", "/favicon.ico")
    assert (answer.status, b"/healthz" in text) == (404, True)
    answer, _ = ask(conn, "GET", INFERENCE)
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert ask(conn, "HEAD", "/healthz")[1] == b""


def test_a_model_that_fails_is_a_500():
    def fail(x):
        raise RuntimeError("out of luck")

    spec = {"x": ((1,), "float32")}
    with serve(fail, spec, {"y": ((1,), "float32")}) as teacher:
        conn = http.client.HTTPConnection(teacher.endpoint, timeout=10)
        body = protobuf({"x": np.ones((1, 1), "f4")}, [])
        answer, text = ask(conn, "POST", INFERENCE, body, PROTO)
        conn.close()
    assert (answer.status, answer.headers["x-bd-error-code"]) == (500, "2001")
    assert "out of luck" in text.decode()


def test_what_is_served_can_be_read(conn):
    answer, body = ask(conn, "GET", "/GeneralModelService/describe")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(body)["feeds"]["img"] == {"shape": [1, 2, 2], "dtype": "float32"}


def test_metrics_count_what_happened():
    with serve(compute, FEEDS, FETCHES) as teacher:
        conn = http.client.HTTPConnection(teacher.endpoint, timeout=10)
        with TeacherClient(teacher.endpoint) as client:
            client.infer({"img": IMG, "ids": IDS})
            ask(conn, "POST", INFERENCE, protobuf(), PROTO)
            ask(conn, "POST", INFERENCE, b"", PROTO)
            answer, text = ask(conn, "GET", "/metrics")
        conn.close()
    lines = text.decode().splitlines()
    assert answer.headers["Content-Type"].startswith("text/plain")
    for line in (
        'edl_requests_total{outcome="ok",protocol="baidu_std"} 1.0',
        'edl_requests_total{outcome="ok",protocol="http"} 1.0',
        'edl_requests_total{outcome="refused",protocol="http"} 1.0',
        "edl_rows_total 4.0",
        'edl_batch_rows_bucket{le="2.0"} 2.0',
        "edl_queued_requests 0.0",
        "edl_workers_ready 1.0",
        "edl_connections 2.0",
        "edl_worker_restarts_total 0.0",
    ):
        assert line in lines
    for name in ("edl_request_seconds_count", "edl_queue_seconds_count", "edl_compute_seconds_sum"):
        assert any(line.startswith(name) for line in lines)


def test_a_body_beyond_the_limit_is_refused_before_it_is_read():
    options = ServerOptions(limits=Limits(max_body=1000))
    with serve(compute, FEEDS, FETCHES, options=options) as teacher:
        host, port = teacher.endpoint.split(":")
        for framing in ("Content-Length: 1001", f"Content-Length: {10**14}"):
            with socket.create_connection((host, int(port)), timeout=5) as sock:
                sock.sendall(f"POST {INFERENCE} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
                assert sock.recv(1000).startswith(b"HTTP/1.1 413")
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=5)) as conn:
            chunks = iter([b"a" * 600] * 2)
            conn.request("POST", INFERENCE, chunks, PROTO, encode_chunked=True)
            assert conn.getresponse().status == 413
        bomb = gzip.compress(b"\0" * 100_000)
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=5)) as conn:
            answer, text = ask(conn, "POST", INFERENCE, bomb, {**PROTO, "Content-Encoding": "gzip"})
        assert (answer.status, b"more than 1000 bytes" in text) == (400, True)


@pytest.mark.parametrize(
    "start",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000,
        b"GET /healthz HTTP/x\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
    ],
)
def test_malformed_heads_are_answered_with_an_error_and_closed(teacher, conn, start):
    host, port = teacher.endpoint.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(start)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(1000):
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 4")
    assert ask(conn, "GET", "/healthz")[0].status == 200


def test_slow_heads_and_bodies_and_silence_are_cut_off():
    options = ServerOptions(limits=Limits(patience=0.4, idle=0.4))
    with serve(compute, FEEDS, FETCHES, options=options) as teacher:
        host, port = teacher.endpoint.split(":")
        for start in (
            b"",
            b"GET /hea",
            b"GET /healthz HTTP/1.1\r\n",
            f"POST {INFERENCE} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na".encode(),
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRPC\0\0\0\x20\0\0\0\x10",
        ):
            with socket.create_connection((host, int(port)), timeout=5) as sock:
                started = time.monotonic()
                sock.sendall(start)
                with contextlib.suppress(ConnectionResetError):
                    while sock.recv(1000):
                        pass
                assert time.monotonic() - started < 3, start
