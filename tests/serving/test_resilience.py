"""Workers that die or hang, and teachers that leave, under load: no request goes unanswered."""

import concurrent.futures
import os
import random
import signal
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from edl.discovery.embedded import free_port
from edl.distill import DistillReader
from edl.errors import (
    TeacherConnectionLost,
    TeacherFailed,
    TeacherUnavailable,
    TeacherUnreachable,
)
from edl.serving import ServerOptions, TeacherClient, serve
from edl.serving.model.predictor import PredictorOptions
from edl.serving.worker.handles import _shares
from tests.support.processes import children_of, eventually, python_teacher

FEEDS, FETCHES = {"x": ((1,), "float32")}, {"y": ((1,), "float32")}
POISON = np.inf  # the Fragile predictor dies of it


def ones(value, rows=1):
    return {"img": np.full((rows, 2), value, "f4")}


def test_a_request_that_kills_workers_is_refused_and_those_beside_it_are_answered():
    with python_teacher("Fragile", delay=0.1) as teacher, TeacherClient(teacher.endpoint) as client:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            values = [1, 2, POISON, 3, 4, 5, 6, 7]
            futures = [pool.submit(client.infer, ones(value), (), 30) for value in values]
        for value, future in zip(values, futures):
            if value == POISON:
                with pytest.raises(TeacherFailed, match="killed by SIGKILL while computing this"):
                    future.result()
            else:
                assert future.result()["prob"][0, 0] == 2 * value
        restarts = metric(teacher, "edl_worker_restarts_total")
    assert 1 <= restarts <= 2, "once in company, at most once more alone"


def test_other_workers_are_not_given_what_killed_one():
    with python_teacher("Fragile", "--workers", 3) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            with pytest.raises(TeacherFailed, match="killed by SIGKILL"):
                client.infer(ones(POISON))
            eventually(lambda: metric(teacher, "edl_worker_restarts_total") == 1)
            time.sleep(0.3)
            assert metric(teacher, "edl_worker_restarts_total") == 1


def test_a_worker_that_hangs_is_replaced_and_its_request_refused():
    hang = threading.Event()

    def compute(x):
        if x[0, 0] < 0:
            hang.wait(20)
        return x

    options = ServerOptions(run_timeout=0.4, max_batch_rows=1)
    with serve(compute, FEEDS, FETCHES, options=options) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            with pytest.raises(TeacherFailed, match=r"took more than 0\.4 s"):
                client.infer({"x": np.full((1, 1), -1, "f4")})
            assert client.infer({"x": np.ones((1, 1), "f4")})["y"] == 1
    hang.set()


def metric(teacher, name):
    with urllib.request.urlopen(f"http://{teacher.endpoint}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise AssertionError(f"no metric {name}")


@pytest.mark.slow
def test_kill_9_of_workers_under_load_leaves_no_request_unanswered():
    generator = random.Random(0)
    with python_teacher("Sums", "--workers", 2, delay=0.002) as teacher:
        finished = threading.Event()
        counts = {"right": 0, "failed": 0}
        lock = threading.Lock()

        def load(number):
            with TeacherClient(teacher.endpoint) as client:
                while not finished.is_set():
                    value = generator.randint(1, 1000)
                    try:
                        right = client.infer(ones(value), (), 30)["prob"][0, 0] == 2 * value
                        assert right
                        key = "right"
                    except TeacherFailed as error:
                        assert "killed by SIGKILL" in str(error)  # noqa: PT017
                        key = "failed"
                    with lock:
                        counts[key] += 1

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            loads = [pool.submit(load, number) for number in range(8)]
            for kills in range(1, 11):
                time.sleep(0.05)
                os.kill(generator.choice(children_of(teacher.process.pid)), signal.SIGKILL)
                eventually(lambda n=kills: metric(teacher, "edl_worker_restarts_total") == n, 20)
            finished.set()
        for future in loads:
            future.result()
    print(f"10 workers killed: {counts}")
    assert counts["right"] > 100
    assert counts["failed"] <= 10 * 8


class Load:
    """Sends requests until it is turned away. ``answered``: rows that came back computed."""

    def __init__(self, endpoint):
        self.answered = self.turned_away = 0
        self._client = TeacherClient(endpoint)

    def run(self):
        answers, sent = [], 0
        with self._client as client:
            while not any(isinstance(answer, Exception) for answer in answers):
                client.submit({"x": np.full((1, 1), sent, "f4")}, [], answers.append)
                sent += 1
                if sent - len(answers) > 16:
                    time.sleep(0.0005)
            eventually(lambda: len(answers) == sent)
        for answer in answers:
            if not isinstance(answer, dict):
                assert isinstance(answer, (TeacherUnavailable, TeacherConnectionLost)), answer
        self.answered = sum(isinstance(answer, dict) for answer in answers)
        self.turned_away = sent - self.answered


@pytest.mark.slow
def test_100_drains_under_load_lose_no_accepted_request():
    answered = turned_away = 0
    for number in range(100):
        computed = []

        def compute(x, computed=computed):
            computed.append(len(x))
            return x

        teacher = serve(compute, FEEDS, FETCHES)
        loads = [Load(teacher.endpoint) for _ in range(3)]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(load.run) for load in loads]
            time.sleep(0.02 + 0.01 * (number % 5))
            teacher.close()
        for future in futures:
            future.result()
        assert sum(computed) == sum(load.answered for load in loads) > 0
        answered += sum(load.answered for load in loads)
        turned_away += sum(load.turned_away for load in loads)
    print(f"100 drains: {answered} computed and answered, {turned_away} turned away")


@pytest.mark.slow
def test_a_student_notices_nothing_of_teachers_that_leave_on_sigterm():
    with python_teacher("Sums", delay=0.002) as stays:
        for _ in range(5):
            leaves = python_teacher("Sums", delay=0.002)
            source = [(np.full((4, 2), number, "f4"),) for number in range(300)]
            teachers = [stays.endpoint, leaves.endpoint]
            with DistillReader(["img"], ["prob"], source=source, teachers=teachers) as reader:
                for number, (img, prob) in enumerate(reader):
                    assert (prob[:, 0] == img.sum(axis=1)).all()
                    if number == 100:
                        leaves.kill(signal.SIGTERM)
            assert number == 299
            assert leaves.wait() == 0
            leaves.close()


def test_a_teacher_answers_that_it_is_busy_while_it_loads():
    with python_teacher("Slow", wait=False, port=(port := free_port())) as teacher:
        client = eventually(lambda: connected(f"127.0.0.1:{port}"))
        with client:
            with pytest.raises(TeacherUnavailable, match="still loading"):
                client.infer(ones(1))
            with pytest.raises(TeacherUnavailable, match="still loading"):
                client.describe()
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz")
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz").status == 200
            teacher.wait_until_ready()
            assert client.infer(ones(1))["prob"][0, 0] == 2
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").status == 200


def connected(endpoint):
    try:
        return TeacherClient(endpoint)
    except TeacherUnreachable:
        return None


@pytest.mark.parametrize(
    ("device", "count", "devices"),
    [
        ("cpu", 0, ["cpu"]),
        ("gpu:0,gpu:1", 0, ["gpu:0", "gpu:1"]),
        ("gpu:0, gpu:1", 3, ["gpu:0", "gpu:1", "gpu:0"]),
        ("cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_there_is_a_worker_for_each_device(device, count, devices):
    shares = _shares(PredictorOptions(device=device), count)
    assert [share["device"] for share in shares] == devices


def test_workers_on_the_cpu_share_the_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5, 6, 7})
    shares = _shares(PredictorOptions(), 3)
    assert [share["cpus"] for share in shares] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert "cpus" not in _shares(PredictorOptions(), 1)[0]
    assert "cpus" not in _shares(PredictorOptions(), 9)[0]
