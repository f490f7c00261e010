"""Students on their teachers' machine: which way tensors go, and what goes wrong on it."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edl.discovery.embedded import free_port
from edl.distill import DistillReader, TeacherPool
from edl.errors import ConfigError
from edl.serving import TeacherClient
from edl.serving.wire.local import said
from tests.support.processes import ROOT, children_of, eventually, python_teacher, python_teachers
from tests.support.proxy import Proxy

ROWS, WIDTH = 16, 4096


def source(count=40):
    for number in range(count):
        img = np.full((ROWS, WIDTH), number % 251, "f4")
        img[:, 0] += np.arange(ROWS)
        yield img, np.full(ROWS, number)


def check(reader, count=40, slowly=0.0):
    """All batches, in order, each with its own answers."""
    for number, (img, label, prob) in enumerate(reader):
        assert (label == number).all()
        assert prob[:, 0] == pytest.approx(img.sum(axis=1), rel=1e-4)
        time.sleep(slowly)
    assert number == count - 1


def ways(reader):
    return [teacher["way"] for teacher in reader.stats()["teachers"].values()]


def path_of(teacher):
    with TeacherClient(teacher.endpoint) as client:
        return said(client.describe()).socket


def test_a_teacher_on_the_same_machine_is_used_by_shared_memory(sums_teacher, tmp_path):
    trace = tmp_path / "trace.json"
    teachers = sums_teacher.endpoint
    with DistillReader(["img", "label"], ["prob"], source, teachers, trace=trace) as reader:
        check(reader)
        assert ways(reader) == ["shared memory"]
        check(reader)
    assert '"way": "shared memory"' in trace.read_text()


def test_small_batches_go_through_the_socket(sums_teacher):
    small = ((np.ones((2, 3), "f4"), number) for number in range(9))
    with DistillReader(["img", "label"], ["prob"], small, sums_teacher.endpoint) as reader:
        assert len(list(reader)) == 9
        assert ways(reader) == ["unix socket"]


def test_a_student_may_be_told_to_use_tcp(sums_teacher, monkeypatch):
    monkeypatch.setenv("EDL_LOCAL", "0")
    with DistillReader(["img", "label"], ["prob"], source, sums_teacher.endpoint) as reader:
        check(reader)
        assert ways(reader) == ["tcp"]


def test_what_edl_local_cannot_be(sums_teacher, monkeypatch):
    monkeypatch.setenv("EDL_LOCAL", "perhaps")
    with DistillReader(["img", "label"], ["prob"], source, sums_teacher.endpoint) as reader:
        with pytest.raises(ConfigError, match="EDL_LOCAL is 'perhaps'"):
            list(reader)


def test_a_teacher_may_be_told_to_have_no_socket():
    with python_teacher("Sums", "--no-local") as teacher:
        with DistillReader(["img", "label"], ["prob"], source, teacher.endpoint) as reader:
            check(reader)
            assert ways(reader) == ["tcp"]


def test_a_proxy_before_the_teacher_is_not_passed_by(sums_teacher):
    with Proxy(sums_teacher.endpoint) as proxy:
        with DistillReader(["img", "label"], ["prob"], source, proxy.endpoint) as reader:
            check(reader)
            assert ways(reader) == ["tcp"]


def test_a_socket_out_of_reach_means_tcp():
    """As in a container that has the same machine, and files of its own."""
    with python_teacher("Sums") as teacher:
        os.unlink(path_of(teacher))
        with DistillReader(["img", "label"], ["prob"], source, teacher.endpoint) as reader:
            check(reader)
            assert ways(reader) == ["tcp"]


def test_a_pool_asks_by_shared_memory(sums_teacher):
    x = np.random.default_rng(0).random((ROWS, WIDTH), dtype="f4")
    with TeacherPool(["prob"], sums_teacher.endpoint) as pool:
        for _ in range(5):
            answer = pool.infer({"img": x})
            assert answer["prob"][:, 0] == pytest.approx(x.sum(axis=1), rel=1e-4)
        assert ways(pool) == ["shared memory"]


def test_a_teacher_that_is_killed_is_missed_by_nobody(tmp_path):
    with python_teacher("Sums", delay=0.002) as one, python_teacher("Sums", delay=0.002) as other:
        teachers = [one.endpoint, other.endpoint]
        with DistillReader(["img", "label"], ["prob"], lambda: source(150), teachers) as reader:
            threading.Timer(0.3, one.kill).start()
            check(reader, 150, slowly=0.005)
            assert ways(reader) == ["shared memory"]
            assert len(mapped()) <= 4, "of the one that lives, by what it was asked for"
        eventually(lambda: not mapped())


def mapped():
    with open("/proc/self/maps") as lines:
        return [line for line in lines if "edl-student" in line]


def test_a_worker_that_is_killed_is_missed_by_nobody():
    with python_teacher("Sums", delay=0.002) as teacher:

        def kill():
            os.kill(children_of(teacher.process.pid)[0], signal.SIGKILL)

        with DistillReader(
            ["img", "label"], ["prob"], lambda: source(150), teacher.endpoint
        ) as reader:
            threading.Timer(0.3, kill).start()
            check(reader, 150, slowly=0.005)
            assert ways(reader) == ["shared memory"]


def test_a_teacher_that_comes_back_is_used_by_its_new_socket():
    port = free_port()
    with python_teacher("Sums", port=port, delay=0.002) as first:
        endless = source(10**9)
        with DistillReader(["img", "label"], ["prob"], endless, first.endpoint) as reader:
            batches = iter(reader)
            next(batches)
            first.kill()
            first.wait()
            with python_teacher("Sums", port=port):
                for _ in range(60):
                    next(batches)
                assert ways(reader) == ["shared memory"]


STUDENT = """
import sys
import numpy as np
from edl.distill import DistillReader
batch = np.ones((16, 4096), "f4")
endless = (((batch, 0)) for _ in range(10**9))
reader = DistillReader(["img", "label"], ["prob"], endless, sys.argv[1])
for number, _ in enumerate(reader):
    if number == 20:
        print(next(iter(reader.stats()["teachers"].values()))["way"], flush=True)
"""


def test_a_student_that_is_killed_leaves_nothing_at_the_teacher():
    with python_teacher("Sums") as teacher:
        pids = [teacher.process.pid, *children_of(teacher.process.pid)]
        files = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
        for _ in range(2):
            student = subprocess.Popen(
                [sys.executable, "-c", STUDENT, teacher.endpoint],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert student.stdout.readline() == "shared memory\n"
            student.kill()
            student.wait()
            student.stdout.close()
        eventually(lambda: not any("edl-student" in maps_of(pid) for pid in pids))
        eventually(lambda: [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids] <= files)


def maps_of(pid):
    with open(f"/proc/{pid}/maps") as lines:
        return lines.read()


class Labelled:
    """A data set whose workers ask the teacher themselves, each by its own connection."""

    def __init__(self, teacher):
        self._teacher = teacher
        self._pools = {}

    @property
    def pool(self):
        """This process's."""
        if os.getpid() not in self._pools:
            self._pools[os.getpid()] = TeacherPool(["prob"], self._teacher)
        return self._pools[os.getpid()]

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = np.full((1, 1 << 15), index, "f4")
        for _ in range(3):
            prob = self.pool.infer({"img": x})["prob"]
        way = next(iter(self.pool.stats()["teachers"].values()))["way"]
        return np.float32(index), prob[0, 0], np.int64(way == "shared memory")


@pytest.mark.parametrize("warm", [False, True])
def test_data_loader_workers_use_it(sums_teacher, warm):
    paddle = pytest.importorskip("paddle")
    data = Labelled(sums_teacher.endpoint)
    if warm:  # the process that they are forked from has a connection, and memory handed over
        data[0]
    loader = paddle.io.DataLoader(data, batch_size=2, num_workers=2)
    for index, total, shared in loader:
        assert total.numpy() == pytest.approx(index.numpy() * (1 << 15), rel=1e-4)
        assert shared.numpy().all()
    assert data[5][2]
    data.pool.close()


@pytest.mark.slow
def test_whatever_happens_to_teachers_on_the_same_machine():
    """Killed, stopped, continued, drained, replaced, and their workers killed, at random."""
    generator = np.random.default_rng(int(time.time()))
    delay = 0.02  # they have always something in hand, and few batches do
    teachers = python_teachers(3, "Sums", delay=delay)
    ports = [teacher.port for teacher in teachers]
    until = time.monotonic() + 12
    endpoints = [teacher.endpoint for teacher in teachers]

    def happen():
        while time.monotonic() < until:
            number = int(generator.integers(1, 3))  # one is left alone
            teacher = teachers[number]
            what = generator.integers(5)
            if what < 2:
                teacher.kill(signal.SIGKILL if what else signal.SIGTERM)
                teacher.wait()
                teacher.close()
                teachers[number] = python_teacher("Sums", port=ports[number], delay=delay)
            elif what == 2:
                for child in children_of(teacher.process.pid):
                    os.kill(child, signal.SIGKILL)
            else:
                teacher.kill(signal.SIGSTOP)
                time.sleep(float(generator.random()))
                teacher.kill(signal.SIGCONT)
            time.sleep(0.2)

    chaos = threading.Thread(target=happen)
    try:
        with DistillReader(["img", "label"], ["prob"], source(10**9), endpoints) as reader:
            chaos.start()
            for number, (img, label, prob) in enumerate(reader):
                assert (label == number).all()
                assert prob[:, 0] == pytest.approx(img.sum(axis=1), rel=1e-4)
                if not chaos.is_alive():
                    break
            assert reader.stats()["lost_teachers"] > 0
            assert "shared memory" in ways(reader)
        eventually(lambda: not mapped())
    finally:
        chaos.join()
        for teacher in teachers:
            teacher.close()
