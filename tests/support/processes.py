"""Real teachers in real processes, for tests."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from edl.discovery.embedded import free_port

ROOT = Path(__file__).parents[2]


def edl(*arguments):
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "edl.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )


def edl_on_terminal(*arguments):
    """The command line, with a terminal for its errors."""
    return on_terminal_do(sys.executable, "-m", "edl.cli.main", *map(str, arguments))


@contextlib.contextmanager
def on_terminal_do(*command):
    """A program with a terminal for its errors: its process, whose ``shown`` grows as long as it
    has the terminal open.
    """
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        text=True,
    )
    os.close(terminal)
    process.shown = ""

    def look():
        with contextlib.suppress(OSError):  # the end of the terminal
            while more := os.read(screen, 1 << 16):
                process.shown += more.decode(errors="replace")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield process
        process.wait(60)
    finally:
        process.kill()
        process.communicate()
        looking.join()
        os.close(screen)


class Teacher:
    """``edl teacher`` with the given arguments. ``endpoint`` is set once it is ready."""

    def __init__(self, *arguments, delay=0.0, wait=True, port=0, verbose=True):
        environment = {**os.environ, "EDL_TEST_DELAY": str(delay)}
        command = [sys.executable, "-m", "edl.cli.main", *(["-v"] if verbose else []), "teacher"]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *map(str, arguments)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )
        self.endpoint = ""
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self):
        line = self.process.stdout.readline()
        assert line.startswith("teacher ready at "), f"teacher said {line!r}"
        self.endpoint = line.split()[-1]
        return self

    @property
    def port(self):
        return int(self.endpoint.rpartition(":")[2])

    def kill(self, signum=signal.SIGKILL):
        self.process.send_signal(signum)

    def wait(self, timeout=20):
        return self.process.wait(timeout)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Targets:
    """``edl targets --port`` in a process of its own."""

    def __init__(self, etcd, port=0):
        command = [sys.executable, "-m", "edl.cli.main", "targets", "--etcd", etcd]
        self.process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        line = self.process.stdout.readline()
        assert line.startswith("targets are at http://127.0.0.1:"), line
        self.address = line.split()[-1]

    def get(self, page):
        """What a page says."""
        with urllib.request.urlopen(f"{self.address}{page}", timeout=20) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            return json.load(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(20) == 0
        self.process.stdout.close()


class Registrar:
    """``edl register`` with the given arguments."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edl.cli.main", "register", *map(str, arguments)], cwd=ROOT
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0


def python_teacher(name="Sums", *arguments, **options):
    return Teacher("--python", f"tests.support.predictors:{name}", *arguments, **options)


def python_teachers(count, *arguments, **options):
    """So many of one kind, started side by side, at ports that are theirs when they come again."""
    teachers = [
        python_teacher(*arguments, wait=False, port=free_port(), **options) for _ in range(count)
    ]
    return [teacher.wait_until_ready() for teacher in teachers]


def children_of(pid):
    """Process ids of the direct children."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def descendants(pid):
    """All processes below ``pid``, by their parents' ids in /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except (FileNotFoundError, ProcessLookupError):
                pass
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        children = [child for child, its_parent in parents.items() if its_parent == parent]
        found += children
        queue += children
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition, timeout=10.0):
    """Wait until ``condition()`` is true; its value."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{condition} did not become true within {timeout} s")
