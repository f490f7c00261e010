"""A teacher that has run out of files, memory, places or room: it says so, and goes on."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from edl.errors import (
    RequestRefused,
    TeacherConnectionLost,
    TeacherFailed,
    TeacherUnavailable,
    TeacherUnreachable,
)
from edl.serving import ServerOptions, TeacherClient, serve
from tests.support.processes import ROOT, Teacher, eventually, python_teacher
from tests.support.wire import connect, post, until_closed

MIB = 1 << 20
IMG = {"img": np.ones((1, 3), "f4")}
FETCHES = {"y": ((1,), "float32")}


@contextlib.contextmanager
def limited(pid, what, limit):
    """A process that may have so much of something for a while."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


def leaves_in_good_order(teacher):
    teacher.kill(signal.SIGTERM)
    return teacher.wait() == 0


def test_without_a_file_to_open_who_is_connected_is_served_and_who_comes_waits():
    with python_teacher("Sums") as teacher, TeacherClient(teacher.endpoint) as client:
        client.infer(IMG)
        pid, answers = teacher.process.pid, []
        needs_a_process = {"img": np.ones((1, 2_000_000), "i8")}  # to be parsed
        files = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
        with contextlib.ExitStack() as stack:
            with limited(pid, resource.RLIMIT_NOFILE, files):
                comes = stack.enter_context(TeacherClient(teacher.endpoint))
                comes.submit(IMG, [], answers.append)
                assert client.infer(IMG)["prob"][0, 0] == 3
                with pytest.raises(TeacherFailed, match="OSError"):
                    client.infer(needs_a_process)
                assert not answers
            eventually(lambda: answers)
            assert answers[0]["prob"][0, 0] == 3
            with pytest.raises(RequestRefused, match="expected dtype float32"):
                client.infer(needs_a_process)
        assert leaves_in_good_order(teacher)


def test_a_teacher_that_may_open_few_files_serves_few_at_a_time_and_not_nobody():
    command = "ulimit -n 100; exec {} -m edl.cli.main teacher --python {}:Sums"
    command = command.format(sys.executable, "tests.support.predictors")
    with subprocess.Popen(
        ["sh", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as teacher:
        try:
            endpoint = teacher.stdout.readline().split()[-1]
            with TeacherClient(endpoint) as client, contextlib.ExitStack() as stack:
                assert client.infer(IMG)["prob"][0, 0] == 3
                host, _, port = endpoint.rpartition(":")
                for _ in range(150):
                    stack.enter_context(socket.create_connection((host, int(port))))
                assert client.infer(IMG)["prob"][0, 0] == 3
        finally:
            teacher.terminate()
    assert teacher.returncode == 0


LENGTHS = """
import numpy as np
from edl.serving import Description, TensorSpec
class Predictor:
    description = Description({"text": TensorSpec((), "str")}, {"y": TensorSpec((), "int64")})
    def run(self, feeds, fetches):
        return {"y": np.char.str_len(feeds["text"])}
"""


def texts(longest, rows=1):
    """Texts, which all take the width of the longest."""
    return np.array(["x" * longest] + ["y"] * (rows - 1), object)


def test_without_memory_a_large_request_fails_alone(tmp_path, monkeypatch):
    (tmp_path / "lengths.py").write_text(LENGTHS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Teacher("--python", "lengths:Predictor") as teacher,
        TeacherClient(teacher.endpoint) as client,
    ):
        assert client.infer({"text": texts(3)})["y"] == 3
        pid = teacher.process.pid
        with open(f"/proc/{pid}/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        with limited(pid, resource.RLIMIT_AS, used + 24 * MIB):
            with connect(teacher) as sock, contextlib.suppress(OSError):
                sock.sendall(post(bytes(300 * MIB)))
                assert until_closed(sock) == b""
            assert client.infer({"text": texts(3)})["y"] == 3
            with pytest.raises(TeacherFailed, match="out of memory"):
                client.infer({"text": texts(250_000, rows=100)})  # 105 MB
            assert client.infer({"text": texts(3)})["y"] == 3
        assert leaves_in_good_order(teacher)


def test_while_every_place_belongs_to_somebody_who_is_trusted_nobody_else_gets_one():
    options = ServerOptions(max_connections=2)
    with serve(lambda x: x, {"x": ((1,), "float32")}, FETCHES, options=options) as teacher:
        x = {"x": np.ones((1, 1), "f4")}
        with TeacherClient(teacher.endpoint) as one, TeacherClient(teacher.endpoint) as other:
            one.infer(x)
            other.infer(x)
            with pytest.raises((TeacherConnectionLost, TeacherUnreachable)):
                TeacherClient(teacher.endpoint).infer(x)
            assert one.infer(x)["y"] == other.infer(x)["y"] == 1
        eventually(lambda: answered(teacher.endpoint, x))


def answered(endpoint, x):
    try:
        with TeacherClient(endpoint) as client:
            return client.infer(x)["y"] == 1
    except TeacherConnectionLost:
        return False


@pytest.fixture
def small():
    """A teacher with 64 MiB of request memory, 16 MiB for each request, that computes sums of
    integers and lengths of texts; and what lets it compute.
    """
    compute = threading.Event()
    compute.set()

    def lengths(ids, text):
        compute.wait(30)
        return ids.sum(axis=1, keepdims=True) + np.char.str_len(text)[:, None]

    feeds = {"ids": ((-1,), "int64"), "text": ((), "str")}
    options = ServerOptions(input_bytes=64 * MIB, max_batch_rows=1)
    with serve(lengths, feeds, {"y": ((1,), "int64")}, options=options) as teacher:
        yield teacher, compute
        compute.set()


def feeds(ids=1, width=1, value=1, rows=1):
    return {"ids": np.full((rows, ids), value, "i8"), "text": texts(width, rows)}


def test_arrays_beyond_what_a_request_may_take_are_refused_however_short_its_message(small):
    with TeacherClient(small[0].endpoint) as client:
        with pytest.raises(RequestRefused, match=r"would take 24\.0 MB, beyond .* of 16\.8 MB"):
            client.infer(feeds(ids=3_000_000))  # of a byte each in the message
        assert client.infer(feeds())["y"] == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (feeds(ids=1_500_000), "no request memory left for what this message holds"),
        (feeds(width=100_000, rows=8), "request memory is full"),
    ],
)
def test_while_request_memory_is_full_it_is_said_to_be_busy(small, more, said):
    teacher, compute = small
    memory = teacher._server._service.memory
    with TeacherClient(teacher.endpoint) as client:
        assert client.infer(more)["y"][0] > 1
        compute.clear()
        answers = []
        large = feeds(ids=1_550_000, value=1 << 60)  # of nine bytes each in the message
        for request in (large, large, feeds(ids=1_150_000)):
            client.submit(request, [], answers.append)
        eventually(lambda: memory.budget.blocks > 60 * MIB, 30)
        with pytest.raises(TeacherUnavailable, match=said):
            client.infer(more)
        compute.set()
        eventually(lambda: len(answers) == 3, 30)
        assert client.infer(more)["y"][0] > 1
    eventually(lambda: memory.budget.blocks == memory.budget.loose == 0)


def test_a_request_whose_parser_is_killed_is_answered_and_the_next_one_parsed(small):
    teacher = small[0]
    with TeacherClient(teacher.endpoint) as client:
        slow = feeds(ids=1_000_000)
        assert client.infer(slow)["y"] == 1_000_001
        pid = teacher._server._intake._parser.pid
        os.kill(pid, signal.SIGSTOP)
        answers = []
        client.submit(slow, [], answers.append)
        eventually(lambda: teacher._server._intake._parser._busy)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: answers)
        assert isinstance(answers[0], TeacherFailed)
        assert "could not be parsed: the worker process was killed by SIGKILL" in str(answers[0])
        assert client.infer(slow)["y"] == 1_000_001


def test_a_parser_that_dies_while_it_parses_nothing_is_replaced_and_no_request_is_blamed(small):
    parser = small[0]._server._intake._parser
    with TeacherClient(small[0].endpoint) as client:
        slow = feeds(ids=1_000_000)
        for _ in range(3):
            assert client.infer(slow)["y"] == 1_000_001
            os.kill(parser.pid, signal.SIGKILL)
            eventually(lambda: parser._child.ended)
