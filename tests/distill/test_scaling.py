"""The number of teachers wanted, followed by an autoscaler, with real teachers and students."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from edl.discovery.embedded import free_port
from tests.support.processes import ROOT, eventually, python_teacher

FALL_AFTER = 4
STAYS = FALL_AFTER + 4
POLL = 0.5
#: What one doubling takes at most, beside the autoscaler and a teacher's start: the page says so.
DOUBLING = 20.0


class Autoscaler:
    """Starts and stops teachers, so that as many run as ``metrics`` says are wanted."""

    def __init__(self, metrics, *arguments, **options):
        self._metrics, self._arguments, self._options = metrics, arguments, options
        self.teachers, self._leaving = [], []
        self.asked = [0]  # each number once, in a row
        self.slowest_start = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self):
        while not self._over.wait(POLL):
            number = self.wanted()
            if number is None:
                continue
            if number != self.asked[-1]:
                self.asked.append(number)
            while len(self.teachers) > number:
                self._leaving.append(self.teachers.pop())
                self._leaving[-1].kill(signal.SIGTERM)
            started = time.monotonic()
            new = [
                python_teacher(*self._arguments, wait=False, **self._options)
                for _ in range(number - len(self.teachers))
            ]
            self.teachers += [teacher.wait_until_ready() for teacher in new]
            self.slowest_start = max(self.slowest_start, time.monotonic() - started)

    def wanted(self):
        with urllib.request.urlopen(self._metrics) as page:
            found = re.search(r"^edl_teachers_wanted\{.*\} (.*)$", page.read().decode(), re.M)
        return None if found is None else int(float(found[1]))

    def settles(self, number, stays=0.0):
        """Wait until as many are wanted, and that many seconds more; what was asked for on the
        way.
        """
        eventually(lambda: self.asked[-1] == len(self.teachers) == number, 90)
        time.sleep(stays)
        way, self.asked = self.asked, self.asked[-1:]
        assert way[-1] == number
        return way

    def close(self):
        self._over.set()
        self._thread.join()
        for teacher in self.teachers:
            teacher.kill(signal.SIGTERM)
        left = [teacher.wait() for teacher in [*self.teachers, *self._leaving]]
        for teacher in [*self.teachers, *self._leaving]:
            teacher.close()
        assert set(left) <= {0}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_load_that_rises_falls_and_rises_again(etcd_server, service):
    port = free_port()
    where = ("--etcd", etcd_server.endpoint, "--service", service)
    metrics = ("--metrics-port", str(port), "--fall-after", str(FALL_AFTER), "--max-teachers", "6")
    balancer = subprocess.Popen(
        [sys.executable, "-m", "edl.cli.main", "balancer", *where, *metrics],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    balancer.stdout.readline()
    # A teacher's rate is 80 rows per second: 8 in 0.1 s, without any load on this machine.
    scaler = Autoscaler(
        f"http://127.0.0.1:{port}/metrics", "Sums", *where, "--max-batch-rows", "8", delay=0.1,
        verbose=False,
    )  # fmt: skip
    student = subprocess.Popen(
        [sys.executable, "-m", "tests.support.paced_student", etcd_server.endpoint, service],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def pace(rows_per_second):
        student.stdin.write(f"{rows_per_second}\n")
        student.stdin.flush()

    def said():
        return json.loads(student.stdout.readline())

    try:
        # Few: one teacher, from none.
        pace(50)
        assert scaler.settles(1) == [0, 1]
        # Many: 2.55 teachers with what is to spare. They double once, and then it is known.
        pace(170)
        before = said()
        assert scaler.settles(3) == [1, 2, 3]
        # Few again.
        pace(50)
        after = said()
        waited = after["waited"] - before["waited"]
        assert waited <= 2 * (DOUBLING + POLL + scaler.slowest_start)
        assert scaler.settles(1) in ([3, 1], [3, 2, 1])
        pace(170)
        falling = said()
        assert falling["waited"] - after["waited"] < 2
        assert scaler.settles(3) == [1, 2, 3]
        # Settled, it does not wait, and no more are wanted.
        pace(170)
        settled = said()
        assert scaler.settles(3, STAYS) == [3]
        pace(0)
        end = said()
        assert end["waited"] - settled["waited"] < 0.5
        assert end["batches"] > settled["batches"]
        assert student.wait(20) == 0
        # Nobody reads: none.
        scaler.settles(0)
    finally:
        for process in (student, balancer):
            process.kill()
            process.wait()
        scaler.close()
