"""What peers do to their connections, and what a server answers before and after it serves."""

import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import struct
import threading
import time

import numpy as np
import pytest

from edl.discovery.embedded import free_port
from edl.errors import TeacherConnectionLost, TeacherUnavailable, TeacherUnreachable
from edl.serving import ServerOptions, TeacherClient, serve
from edl.serving.model.predictor import PredictorOptions
from edl.serving.server import service
from edl.serving.server.hosting import ServedTeacher
from edl.serving.server.service import Limits
from edl.serving.wire import frame
from edl.serving.wire.messages import encode_request
from edl.serving.worker.handles import processes
from tests.support.processes import alive, children_of, eventually, python_teacher
from tests.support.wire import connect, get, post, read_http, read_rpc, receive, rpc, until_closed

FEEDS, FETCHES = {"x": ((-1,), "float32")}, {"y": ((-1,), "float32")}
X = np.ones((2, 3), "f4")
PAYLOAD = b"".join(encode_request({"x": X}, []))


@pytest.fixture(scope="module")
def teacher():
    with serve(lambda x: 2 * x, FEEDS, FETCHES) as teacher:
        yield teacher


def all_comes_back(teacher):
    memory = teacher._server._service.memory
    eventually(lambda: memory.budget.blocks == memory.budget.loose == 0)


@pytest.mark.parametrize(
    ("meta", "code", "said"),
    [
        ({"service": "Other"}, frame.ENOSERVICE, "no service 'Other'; there is baidu"),
        ({"method": "other"}, frame.ENOMETHOD, "no method 'other'; there are inference and debug"),
        ({"compress_type": 9}, frame.EREQUEST, "compression 9 is not known; snappy (1), gzip (2)"),
    ],
)
def test_what_is_not_for_the_model_is_refused_with_what_is_there(teacher, meta, code, said):
    with connect(teacher) as sock:
        sock.sendall(rpc(PAYLOAD, **meta))
        answer, _ = read_rpc(sock)
        assert (answer.error_code, answer.correlation_id) == (code, 7)
        assert said in answer.error_text
        sock.sendall(rpc(PAYLOAD))
        assert read_rpc(sock)[0].error_code == 0, "the connection lives on"


def test_an_answer_where_a_request_should_be_ends_its_connection(teacher):
    with connect(teacher) as sock:
        sock.sendall(b"".join(frame.encode_frame(frame.ResponseMeta(7), [])))
        assert until_closed(sock) == b""
    all_comes_back(teacher)


@pytest.mark.parametrize(
    "beginning",
    [
        rpc(PAYLOAD)[:12],
        rpc(PAYLOAD)[:40],
        b"POST /GeneralMo",
        get("/healthz")[:-2],
        post(PAYLOAD)[:-5],
        post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"5\r\nab",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_who_leaves_in_the_middle_of_a_message_leaves_nothing_behind(
    teacher, beginning, reset, caplog
):
    caplog.set_level(logging.WARNING)
    with connect(teacher) as sock:
        sock.sendall(rpc(PAYLOAD))
        read_rpc(sock)
        sock.sendall(beginning)
        time.sleep(0.05)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            sock.shutdown(socket.SHUT_WR)
            until_closed(sock)
    all_comes_back(teacher)
    eventually(lambda: not teacher._server._streams)
    assert not caplog.records


def test_a_message_may_come_in_pieces(teacher):
    with connect(teacher) as sock:
        for _ in range(2):  # as somebody new, and as somebody who is trusted
            for piece in (rpc(PAYLOAD)[:12], rpc(PAYLOAD)[12:30], rpc(PAYLOAD)[30:]):
                sock.sendall(piece)
                time.sleep(0.05)
            assert (read_rpc(sock)[1].outputs["y"] == 2 * X).all()


def hanging(**options):
    """A teacher that computes when the event is set."""
    gate = threading.Event()

    def compute(x):
        gate.wait(30)
        return 2 * x

    return gate, serve(compute, FEEDS, FETCHES, options=ServerOptions(**options))


@pytest.mark.parametrize("ask", [rpc, post])
def test_who_is_gone_when_its_answer_is_there_harms_nobody(ask):
    big = b"".join(encode_request({"x": np.ones((1, 2_000_000), "f4")}, []))
    gate, teacher = hanging()
    with teacher, TeacherClient(teacher.endpoint) as client:
        with connect(teacher) as sock:
            sock.sendall(ask(big))
            eventually(lambda: teacher._server._service._unanswered)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gate.set()
        assert (client.infer({"x": X})["y"] == 2 * X).all()
        all_comes_back(teacher)
        eventually(lambda: not teacher._server._service._unanswered)


def test_who_takes_its_answer_slowly_but_steadily_gets_all_of_it():
    options = ServerOptions(limits=Limits(patience=1.0))
    with serve(lambda x: 2 * x, FEEDS, FETCHES, options=options) as teacher:
        big = b"".join(encode_request({"x": np.ones((1, 4_000_000), "f4")}, []))
        with connect(teacher) as sock:  # more than the sockets' buffers hold
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            sock.sendall(rpc(big))
            body_size, meta_size = frame.parse_header(receive(sock, 12))
            body, started = b"", time.monotonic()
            while len(body) < body_size:
                body += receive(sock, min(128 << 10, body_size - len(body)))
                time.sleep(0.02)
        assert time.monotonic() - started > 1.0, "longer than anybody may stall"
        meta, _ = frame.parse_body(memoryview(body), meta_size)
        assert meta.error_code == 0


def test_an_answer_that_is_too_long_as_json_is_refused_with_the_remedy():
    with serve(lambda x: x[:, :1] + np.random.random((1, 2_000_000)), FEEDS, FETCHES) as teacher:
        tensor = {"float_data": [1], "elem_type": 1, "shape": [1, 1], "name": "x"}
        with connect(teacher, timeout=60) as sock:
            sock.sendall(post(json.dumps({"tensor": [tensor]}).encode(), "application/json"))
            status, text = read_http(sock)
        assert status == 500
        assert b"beyond 32 MiB as JSON; ask with application/proto" in text
        all_comes_back(teacher)


@pytest.mark.parametrize("ask", [rpc, post])
def test_what_is_not_answered_in_time_is_lost_with_the_teacher(ask, monkeypatch, caplog):
    monkeypatch.setattr(service, "_SAY_EVERY", 0.1)
    gate, teacher = hanging()
    with connect(teacher) as sock:
        sock.sendall(ask(PAYLOAD))
        eventually(lambda: teacher._server.engine._running)
        started = time.monotonic()
        teacher.close(patience=0.5)
        assert time.monotonic() - started < 10
        assert "1 unanswered" in caplog.text
        assert until_closed(sock) == b""
    gate.set()


def page(port, path):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as conn:
        conn.request("GET", path)
        answer = conn.getresponse()
        return answer.status, answer.read().decode()


def test_a_teacher_says_whether_it_loads_serves_or_leaves(monkeypatch):
    monkeypatch.setenv("EDL_TEST_DELAY", "0")
    port, teachers = free_port(), []
    predictor = PredictorOptions(python="tests.support.predictors:Slow")

    def host():
        teachers.append(ServedTeacher(processes(predictor), ServerOptions(port=port)))

    thread = threading.Thread(target=host)
    thread.start()
    client = eventually(lambda: connected(port))
    with client:
        with pytest.raises(TeacherUnavailable, match="still loading"):
            client.describe()
        with pytest.raises(TeacherUnavailable, match="still loading"):
            client.infer({"img": X})
        for path in ("/readyz", "/GeneralModelService/describe"):
            status, text = page(port, path)
            assert (status, "still loading" in text) == (503, True)
        assert page(port, "/healthz")[0] == 200
        thread.join()
        assert page(port, "/readyz") == (200, "ok\n")
        (pid,) = teachers[0]._server.engine.worker_pids
        os.kill(pid, signal.SIGSTOP)
        answers = []
        client.submit({"img": X}, [], answers.append)
        eventually(lambda: teachers[0]._server.engine._running)
        with connect(teachers[0]) as sock:
            sock.sendall(get("/readyz"))
            assert read_http(sock)[0] == 200
            closing = threading.Thread(target=teachers[0].close)
            closing.start()
            eventually(lambda: teachers[0]._server._service.draining)
            sock.sendall(get("/readyz"))
            assert read_http(sock) == (503, b"shutting down\n")
            with pytest.raises(TeacherUnavailable, match="shutting down"):
                client.infer({"img": X})
            os.kill(pid, signal.SIGCONT)
            closing.join()
        assert answers[0]["prob"].tolist() == [[3, 6]] * 2


def connected(port):
    try:
        return TeacherClient(f"127.0.0.1:{port}")
    except TeacherUnreachable:
        return None


def test_a_teacher_that_is_killed_while_it_computes_leaves_no_worker_behind():
    with python_teacher("Sums", delay=0.5) as teacher, TeacherClient(teacher.endpoint) as client:
        workers = children_of(teacher.process.pid)
        answers = []
        client.submit({"img": X}, [], answers.append)
        time.sleep(0.2)
        teacher.kill(signal.SIGKILL)
        eventually(lambda: answers)
        assert isinstance(answers[0], TeacherConnectionLost)
        eventually(lambda: not any(alive(pid) for pid in workers))
