"""Students, teachers and etcd as processes; all of them are killed in turn."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from edl.discovery import Etcd
from edl.discovery.balancer import LEADER_TTL
from edl.discovery.embedded import EmbeddedEtcd
from edl.discovery.keys import service_prefix
from edl.discovery.participation import STUDENT_TTL
from edl.discovery.records import parse_assignment
from edl.discovery.watch import list_prefix
from tests.support.processes import ROOT, eventually, python_teacher

SERVICE = "cluster"
TEACHER_TTL = 3


class Student:
    """A process that reads; ``seen`` counts the batches that were right."""

    def __init__(self, etcd):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.student", etcd, SERVICE],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seen, self.last = 0, ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.seen += line.strip().isdigit()
            self.last = line

    def finish(self, timeout=60):
        """Let it read what it has begun; how many batches its source has yielded."""
        self.process.stdin.close()
        assert self.process.wait(timeout) == 0
        self._thread.join()
        word, yielded = self.last.split()
        assert word == "done"
        return int(yielded)

    def close(self):
        self.process.kill()
        self.process.wait()


class World:
    def __init__(self, server):
        self.server = server
        self.etcd = Etcd(server.endpoint, timeout=1.0)

    def read(self):
        """(teachers, students by pid, assignments by pid, the leader's pid or None)"""
        entries, _ = list_prefix(self.etcd, service_prefix(SERVICE))
        records = {
            key[len("students/") :]: json.loads(value)
            for key, value in entries.items()
            if key.startswith("students/")
        }
        assigned = {
            records[student]["pid"]: parse_assignment(entries.get(f"assignments/{student}", ""))
            for student in records
        }
        teachers = {key[len("nodes/") :] for key in entries if key.startswith("nodes/")}
        return teachers, assigned, "leader" in entries

    def settled(self, students, teachers):
        """Whether exactly these are registered, and share all teachers fairly."""
        try:
            found, assigned, led = self.read()
        except Exception:
            return False
        pids = {student.process.pid for student in students}
        endpoints = {teacher.endpoint for teacher in teachers}
        if not (found == endpoints and assigned.keys() == pids and led):
            return False
        links = list(assigned.values())
        return (
            all(links)
            and all(teachers <= endpoints for teachers in links)
            and max(map(len, links)) - min(map(len, links)) <= 1
        )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_students_teachers_the_leader_and_etcd_are_killed_in_turn(tmp_path):
    lease = max(STUDENT_TTL, LEADER_TTL, TEACHER_TTL)
    everything = []
    with EmbeddedEtcd(tmp_path) as server:

        def teacher():
            where = ("--etcd", server.endpoint, "--service", SERVICE, "--ttl", TEACHER_TTL)
            made = python_teacher("Sums", *where, delay=0.005, verbose=False)
            everything.append(made)
            return made

        def student():
            made = Student(server.endpoint)
            everything.append(made)
            return made

        def converges(what):
            started = time.monotonic()
            eventually(lambda: world.settled(students, teachers), 2 * lease)
            print(f"{what}: settled after {time.monotonic() - started:.1f} s")

        world = World(server)
        try:
            teachers = [teacher() for _ in range(6)]
            students = [student() for _ in range(3)]
            converges("3 students and 6 teachers")

            lost = teachers.pop()
            lost.kill()
            converges("a teacher is killed")

            stopped = teachers.pop()
            stopped.kill(signal.SIGTERM)
            converges("a teacher leaves")

            victim = students.pop()
            os.kill(victim.process.pid, signal.SIGKILL)
            converges("a student is killed")

            students.append(student())
            teachers.append(teacher())
            converges("a student and a teacher join")

            eldest = students.pop(0)  # it was the first to stand for election
            os.kill(eldest.process.pid, signal.SIGKILL)
            converges("the likely leader is killed")

            before = [student.seen for student in students]
            server.kill()
            time.sleep(2.0)
            assert all(now.seen > then for now, then in zip(students, before)), "without etcd"
            server.start()
            teachers.pop(0).kill()
            converges("etcd is killed and started again, and then a teacher is killed")

            for remaining in students:
                assert remaining.finish() == remaining.seen > 1000
        finally:
            for process in everything:
                process.close()
            world.etcd.close()
