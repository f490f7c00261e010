"""The tutorial as it is written: its files, and its commands in one shell.

Ports are free ones, and the student takes fewer epochs.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks
from tests.support.modules import need
from tests.support.processes import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
pytest.importorskip("paddle")
need("sklearn")

PAGE = "docs/tutorial.md"
PORTS = ("2379", "9292", "9293", "9294")


@pytest.fixture
def text(tmp_path):
    """What the page has, with ports that are free: (files by name, commands)."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        free = {written: str(one.getsockname()[1]) for written, one in zip(PORTS, sockets)}

    def real(code):
        code = code.replace("range(200)", "range(60)")
        return re.sub("|".join(PORTS), lambda port: free[port[0]], code)

    found = [block for block in blocks(PAGE) if not block.not_run]
    files = {block.title: real(block.code) for block in found if block.title}
    return files, [real(block.code) for block in found if block.language == "bash"]


class Shell:
    """A bash to which commands are given one after the other."""

    def __init__(self, directory):
        self._log = directory / "output"
        self._bin = directory / "bin"
        self._bin.mkdir()
        for name, module in (("edl", "-m edl.cli.main"), ("python", "")):
            program = self._bin / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore {module} "$@"\n')
            program.chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash"], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
                cwd=directory, env=environment, start_new_session=True,
            )  # fmt: skip

    def give(self, commands):
        self.process.stdin.write(commands)
        self.process.stdin.flush()

    @property
    def output(self):
        return self._log.read_text(encoding="utf-8")

    def shows(self, pattern, times=1):
        def shown():
            ended = self.process.poll() is not None
            return len(re.findall(pattern, self.output)) >= times or ended

        eventually(shown, timeout=90)
        assert len(re.findall(pattern, self.output)) >= times, self.output

    def close(self):
        self.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def shell(tmp_path):
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


def test_the_tutorial_as_it_is_written(text, shell, tmp_path):
    files, commands = text
    train, etcd, teachers, ls, student, kill, another, clean_up = commands
    for name, code in files.items():
        Path(tmp_path, name).write_text(code)

    shell.give(train)
    shell.give(etcd)
    shell.shows("etcd ready at")
    assert (tmp_path / "teacher_model").is_dir()
    shell.give(teachers)
    shell.shows("teacher ready at", times=2)
    shell.give(ls)
    shell.shows("digits: 2 teachers, 0 students")
    shell.give(student)
    shell.shows("epoch 20: 38 batches, .* 2 teachers, 0 lost")
    shell.give(kill)
    shell.shows("is gone: ")
    shell.give(another)
    shell.give(clean_up + "wait %1\necho the end\n")
    shell.shows("the end")

    assert len(re.findall("epoch .*: 38 batches", shell.output)) == 3
    assert re.search(r"epoch 60: .* 1 lost", shell.output)
    right = float(re.search(r"epoch 60: .* (0\.\d+) right", shell.output)[1])
    assert right > 0.85
    assert "etcd stopped" in shell.output
    assert "Traceback" not in shell.output
