"""Answers as real servers put them on the wire (tests/vectors), read by the client."""

import gzip
import queue
import socket
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from edl.errors import (
    RequestRefused,
    TeacherConnectionLost,
    TeacherFailed,
    TeacherProtocolError,
)
from edl.serving import TeacherClient
from edl.serving.wire import compression, frame
from edl.serving.wire.messages import decode_request, encode_response
from tests.serving.client.test_teacher import answer, peer, read_request, receive  # noqa: F401

VECTORS = Path(__file__).parents[2] / "vectors"
FRAME_ID = 7  # of every recorded request and response


def recorded(name):
    return (VECTORS / f"{name}.request.bin").read_bytes(), (
        VECTORS / f"{name}.response.bin"
    ).read_bytes()


def feeds_of(request):
    body_size, meta_size = frame.parse_header(request)
    body = memoryview(request)[frame.HEADER_SIZE :]
    assert len(body) == body_size
    meta, payload = frame.parse_body(body, meta_size)
    assert meta.correlation_id == FRAME_ID
    return decode_request(payload)


def answer_to_the_seventh(name):
    """A peer's script: take requests up to the one that has the recorded id, then answer that."""

    def script(conn):
        for _ in range(FRAME_ID):
            body_size, _ = frame.parse_header(receive(conn, frame.HEADER_SIZE))
            receive(conn, body_size)
        conn.sendall(recorded(name)[1])
        conn.recv(1)

    return script


def ask(endpoint, request, **options):
    """What the client makes of the recorded answer to the recorded request."""
    answers = queue.SimpleQueue()
    with TeacherClient(endpoint, **options) as client:
        for _ in range(FRAME_ID - 1):
            client.submit(request.feeds, request.fetches, lambda answer: None)
        client.submit(request.feeds, request.fetches, answers.put)
        return answers.get(timeout=5)


@pytest.mark.parametrize("kind", ["none", "gzip", "zlib", "snappy"])
def test_an_answer_is_the_same_however_it_is_compressed(peer, kind):  # noqa: F811
    request = feeds_of(recorded(f"brpc_answer_{kind}")[0])
    outputs = ask(peer(answer_to_the_seventh(f"brpc_answer_{kind}")), request)
    sums = request.feeds["img"].reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(outputs["logits"], sums[:, None] * np.arange(1, 11), rtol=1e-6)
    assert (outputs["echo_ids"] == request.feeds["ids"]).all()


def test_the_answer_of_a_generated_paddle_serving_is_read(peer):  # noqa: F811
    name = "paddle_serving_generated_answer"
    request = feeds_of(recorded(name)[0])
    outputs = ask(peer(answer_to_the_seventh(name)), request)
    assert outputs["logits"].shape[0] == 2
    assert np.isfinite(outputs["logits"]).all()


def test_an_attachment_that_nobody_asked_for_is_no_part_of_the_answer(peer):  # noqa: F811
    request = feeds_of(recorded("brpc_attachment")[0])
    outputs = ask(peer(answer_to_the_seventh("brpc_attachment")), request)
    sums = request.feeds["img"].reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(outputs["logits"], sums[:, None] * np.arange(1, 11), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("paddle_serving_generated_error", TeacherFailed, "InferService inference failed"),
        ("brpc_err_no", TeacherFailed, ""),
        ("brpc_setfailed", TeacherFailed, ""),
        ("paddle_serving_unknown_service", RequestRefused, ""),
    ],
)
def test_an_error_comes_with_the_servers_words(peer, name, kind, words):  # noqa: F811
    request = feeds_of(recorded("brpc_answer_none")[0])
    error = ask(peer(answer_to_the_seventh(name)), request)
    assert type(error) is kind
    assert words in error.message
    assert error.message != "error 3"


def test_a_small_answer_does_not_unpack_beyond_the_limit(peer):  # noqa: F811
    def script(conn):
        meta, _ = read_request(conn)
        payload = b"".join(encode_response({"y": np.zeros((1, 5000), "f4")}))
        packed = frame.ResponseMeta(meta.correlation_id, compress_type=2)
        conn.sendall(b"".join(frame.encode_frame(packed, [gzip.compress(payload)])))
        conn.recv(1)

    with TeacherClient(peer(script), max_answer_bytes=10_000) as client:
        with pytest.raises(TeacherProtocolError, match="unpacks to more than 10000 bytes"):
            client.infer({"x": np.zeros((1, 1), "f4")})


@pytest.mark.parametrize("kind", ["gzip", "zlib", "snappy"])
def test_a_bomb_costs_no_more_than_the_limit(kind):
    from cramjam import snappy

    pack = {"gzip": gzip.compress, "zlib": zlib.compress, "snappy": snappy.compress_raw}[kind]
    bomb = bytes(pack(bytes(64 << 20)))
    with pytest.raises(compression.WireError, match="unpacks to"):
        compression.decompress(bomb, kind, 1 << 20)
    assert len(compression.decompress(bytes(pack(b"fine")), kind, 4)) == 4
    with pytest.raises(compression.WireError):
        compression.decompress(bomb[: len(bomb) // 2], kind, 128 << 20)


def test_without_a_library_for_snappy_the_error_names_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "cramjam", None)
    with pytest.raises(compression.WireError, match="pip install cramjam"):
        compression.decompress(b"\x00", "snappy", 10)


def test_a_connection_that_ends_under_a_large_request_is_taken_for_a_limit():
    """As brpc refuses it: it closes the connection when it sees the length."""
    listener = socket.create_server(("127.0.0.1", 0))

    def close_at_the_header():
        conn, _ = listener.accept()
        receive(conn, frame.HEADER_SIZE)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        conn.close()

    threading.Thread(target=close_at_the_header, daemon=True).start()
    endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    with TeacherClient(endpoint) as client, pytest.raises(TeacherConnectionLost) as raised:
        client.infer({"img": np.zeros((1, 70_000_000), "u1")})
    listener.close()
    assert "a request of 70.0 MB and may allow less" in str(raised.value)
    assert "teacher_batch_size" in str(raised.value)
    assert "max_body_size" in str(raised.value)


def test_a_connection_that_took_such_requests_before_ends_for_other_reasons(peer):  # noqa: F811
    def script(conn):
        meta, _ = read_request(conn)
        answer(conn, meta.correlation_id, encode_response({"y": np.zeros((1, 1), "f4")}))
        read_request(conn)

    big = {"x": np.zeros((1, 20 << 20), "u1")}
    with TeacherClient(peer(script)) as client:
        client.infer(big)
        with pytest.raises(TeacherConnectionLost) as raised:
            client.infer(big)
    assert "may allow less" not in str(raised.value)
