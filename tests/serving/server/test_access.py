"""Who may use a teacher, and what a connection may cost it."""

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import AccessDenied, ReaderError, TeacherConnectionLost, TeacherUnavailable
from edl.serving import ServerOptions, TeacherClient, serve
from edl.serving.server.service import Limits
from edl.serving.wire import frame
from edl.serving.wire.messages import METHOD, SERVICE, encode_request
from tests.support.processes import ROOT, eventually, python_teacher

TOKEN = "correct horse battery staple"
X = np.ones((2, 3), "f4")
FEEDS, FETCHES = {"x": ((3,), "float32")}, {"y": ((3,), "float32")}
INFERENCE = "/GeneralModelService/inference"


def host(function=lambda x: 2 * x, **options):
    limits = Limits(**{name: options.pop(name) for name in ("patience", "idle", "max_body")
                       if name in options})  # fmt: skip
    return serve(function, FEEDS, FETCHES, options=ServerOptions(limits=limits, **options))


def connect(teacher):
    address, port = teacher.endpoint.split(":")
    return socket.create_connection((address, int(port)), timeout=10)


@pytest.fixture(scope="module")
def guarded():
    with host(token=TOKEN) as teacher:
        yield teacher


def test_a_client_with_the_token_is_served(guarded):
    with TeacherClient(guarded.endpoint, token=TOKEN) as client:
        assert client.describe().feeds
        for _ in range(3):
            assert (client.infer({"x": X})["y"] == 2 * X).all()


@pytest.mark.parametrize("token", ["", "correct horse", TOKEN + "!"])
def test_a_client_without_it_is_turned_away(guarded, token):
    with TeacherClient(guarded.endpoint, token=token) as client:
        with pytest.raises(AccessDenied, match="token"):
            client.infer({"x": X})
        with pytest.raises((AccessDenied, TeacherConnectionLost)):
            client.infer({"x": X})


def test_nothing_large_is_received_for_a_stranger(guarded):
    meta = frame.RequestMeta(SERVICE, METHOD, 7)
    head = frame.encode_frame(meta, [])[0][12:]
    with connect(guarded) as sock:
        sock.sendall(b"PRPC" + (len(head) + (400 << 20)).to_bytes(4, "big"))
        sock.sendall(len(head).to_bytes(4, "big") + head)
        header = sock.recv(12, socket.MSG_WAITALL)
        body_size, meta_size = frame.parse_header(header)
        body = memoryview(sock.recv(body_size, socket.MSG_WAITALL))
        answer, _ = frame.parse_body(body, meta_size)
        assert (answer.correlation_id, answer.error_code) == (7, frame.ERPCAUTH)
        assert sock.recv(1) == b"", "the connection is closed"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"bearer {TOKEN}"}, 200),
    ],
)
def test_over_http_the_token_is_a_bearer(guarded, headers, status):
    with contextlib.closing(http.client.HTTPConnection(guarded.endpoint, timeout=10)) as conn:
        body = b"".join(encode_request({"x": X}, []))
        conn.request("POST", INFERENCE, body, {"Content-Type": "application/proto", **headers})
        answer = conn.getresponse()
        answer.read()
        assert answer.status == status
    with contextlib.closing(http.client.HTTPConnection(guarded.endpoint, timeout=10)) as conn:
        conn.request("GET", "/metrics", headers=headers)
        assert conn.getresponse().status == status


def test_who_probes_health_needs_no_token(guarded):
    for page in ("/healthz", "/readyz"):
        with contextlib.closing(http.client.HTTPConnection(guarded.endpoint, timeout=10)) as conn:
            conn.request("GET", page)
            assert conn.getresponse().status == 200


def test_a_reader_shows_the_token(guarded, monkeypatch):
    def read(**options):
        teachers = [guarded.endpoint]
        with DistillReader(["x"], ["y"], source=[(X,)], teachers=teachers, **options) as reader:
            return list(reader)

    with pytest.raises(ReaderError, match="give it to the reader as token"):
        read()
    ((_, y),) = read(token=TOKEN)
    assert (y == 2 * X).all()
    monkeypatch.setenv("EDL_TOKEN", TOKEN)
    assert len(read()) == 1


def test_a_teacher_takes_its_token_from_the_environment():
    environment = {**os.environ, "EDL_TOKEN": TOKEN}
    command = [sys.executable, "-m", "edl.cli.main", "teacher"]
    process = subprocess.Popen(
        [*command, "--python", "tests.support.predictors:Sums"],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        endpoint = process.stdout.readline().split()[-1]
        with TeacherClient(endpoint) as client, pytest.raises(AccessDenied):
            client.describe()
        with TeacherClient(endpoint, token=TOKEN) as client:
            assert client.describe().feeds
    finally:
        process.kill()
        process.communicate()


def test_a_frame_beyond_the_limit_closes_its_connection():
    with host(max_body=1000) as teacher, connect(teacher) as sock:
        sock.sendall(b"PRPC" + (1001).to_bytes(4, "big") + (10).to_bytes(4, "big"))
        assert sock.recv(1) == b""


def test_who_drips_bytes_does_not_hold_a_connection():
    meta = b"".join(frame.encode_frame(frame.RequestMeta(SERVICE, METHOD, 1), [b"x" * 5000]))
    with host(patience=0.5) as teacher, connect(teacher) as sock:
        started = time.monotonic()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for byte in meta:
                sock.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - started < 5


def test_who_takes_no_answers_is_cut_off_and_harms_nobody():
    big = np.ones((50_000, 3), "f4")
    request = b"".join(
        frame.encode_frame(frame.RequestMeta(SERVICE, METHOD, 1), encode_request({"x": big}, []))
    )
    with host(patience=0.5) as teacher, connect(teacher) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def flood():
            with contextlib.suppress(OSError):
                while True:
                    sock.sendall(request)

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        time.sleep(0.3)
        with TeacherClient(teacher.endpoint) as client:
            assert (client.infer({"x": X}, timeout=30)["y"] == 2 * X).all()
        thread.join(20)
        assert not thread.is_alive(), "its connection was closed"


def test_thousands_of_idle_connections_leave_room_for_students():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))  # which the teacher raises for itself
    teacher = python_teacher("Sums")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with teacher:
        idle = [socket.create_connection(("127.0.0.1", teacher.port)) for _ in range(3000)]
        with TeacherClient(teacher.endpoint) as client:
            assert client.infer({"img": X})["prob"][0, 0] == 3
        for sock in idle:
            sock.close()

        def open_files():
            return len(os.listdir(f"/proc/{teacher.process.pid}/fd"))

        eventually(lambda: open_files() < 50)
        teacher.kill(signal.SIGTERM)
        assert teacher.wait() == 0


def test_beyond_the_limit_silent_connections_make_room_for_new_ones():
    with host(max_connections=20) as teacher, TeacherClient(teacher.endpoint) as student:
        student.infer({"x": X})
        idle = [connect(teacher) for _ in range(60)]
        with TeacherClient(teacher.endpoint) as client:
            assert (client.infer({"x": X})["y"] == 2 * X).all()
        assert (student.infer({"x": X})["y"] == 2 * X).all(), "who has spoken is not sent away"
        assert idle[0].recv(1) == b""
        for sock in idle:
            sock.close()


def test_a_full_queue_says_busy_to_who_filled_it_and_serves_the_others():
    gate = threading.Event()

    def slow(x):
        gate.wait(10)
        return x

    with host(slow, max_queued=8, max_batch_rows=1) as teacher:
        answers = []
        with TeacherClient(teacher.endpoint) as greedy, TeacherClient(teacher.endpoint) as modest:
            for _ in range(20):
                greedy.submit({"x": X}, [], answers.append)
            eventually(lambda: len(answers) >= 8)
            assert all(isinstance(answer, TeacherUnavailable) for answer in answers)
            assert "busy: 8 requests wait already" in str(answers[0])
            served = []
            modest.submit({"x": X}, [], served.append)
            threading.Timer(0.1, gate.set).start()
            eventually(lambda: served and len(answers) == 20)
            assert isinstance(served[0], dict)
            assert sum(isinstance(answer, dict) for answer in answers) >= 8


def test_students_share_a_teacher_however_much_each_of_them_queues():
    order = []

    def record(x):
        time.sleep(0.002)
        order.append(x[0, 0])
        return x

    with host(record, max_batch_rows=1) as teacher:
        with TeacherClient(teacher.endpoint) as greedy, TeacherClient(teacher.endpoint) as modest:
            answers = []
            for _ in range(200):
                greedy.submit({"x": np.zeros((1, 3), "f4")}, [], answers.append)
            eventually(lambda: len(order) > 5)
            for _ in range(20):
                modest.submit({"x": np.ones((1, 3), "f4")}, [], answers.append)
            eventually(lambda: len(answers) == 220)
    first, last = order.index(1), len(order) - 1 - order[::-1].index(1)
    assert last - first < 60, "20 requests of the one among as many of the other's"
