"""Shared real parts: an etcd, exported Paddle models, a cheap teacher."""

import contextlib
import gc
import itertools
import os
import signal
import stat
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import settings

from edl.discovery import Etcd
from edl.discovery.embedded import EmbeddedEtcd
from tests.support.processes import eventually, python_teacher

# Several tests share few cores. OpenMP's threads spin while they wait for one another, so that two
# training programs with two threads each take twice as long as with one. Read when numpy is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Many hundred processes import the same modules, which are compiled once, whatever the environment
# says of the files in which that is kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_numbers = itertools.count()

settings.register_profile("edl", deadline=None)  # a busy machine is not a defect
settings.load_profile("edl")


def pytest_configure():
    """A shell's background jobs ignore Ctrl-C, and so would all that the tests start and stop."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.register_at_fork(after_in_child=_let_go_of(_pipes()))


def _pipes():
    """What this process was given beyond its standard streams: under xdist, its controller's."""
    given = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return [fd for fd in given if fd > 2 and _is_pipe(fd)]


def _is_pipe(fd):
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:  # the one that listed them
        return False


def _let_go_of(pipes):
    """What a forked process runs first. The controller takes a worker for alive while anybody has
    its pipe: one that died of a time-out, with a forked process that hangs still there, would be
    waited for without end.
    """

    def let_go():
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in pipes:
            os.dup2(nothing, fd)
        os.close(nothing)

    return let_go


@pytest.hookimpl(hookwrapper=True)
def pytest_collection():
    """All modules and thousands of tests stay until the end: the garbage collector need not go
    through them, neither while they become more nor ever after.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """Modules with slow tests first, in each of xdist's workers, to whom it gives equal shares in
    turn: at the end a run would wait for one of them alone.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    firsts = [[] for _ in range(workers)]
    for number, path in enumerate(sorted(slow)):
        firsts[number % workers] += [item for item in items if item.path == path]
    rest = [item for item in items if item.path not in slow]
    left = len(items)
    items.clear()
    for number, first in enumerate(firsts):
        share = left // (workers - number)
        room = max(0, share - len(first))
        items += first + rest[:room]
        rest, left = rest[room:], left - share
    items += rest


@pytest.fixture(scope="module", autouse=True)
def _ends_with_its_module():
    """What a module has started in this process ends with it: a thread that is left is a leak, of
    ours or of the test's, and the next module's tests would find it.
    """
    before = set(threading.enumerate())
    yield

    def left():
        started = set(threading.enumerate()) - before
        return [thread.name for thread in started if thread.name.startswith("edl-")]

    if left():
        gc.collect()
    with contextlib.suppress(AssertionError):
        eventually(lambda: not left())
    assert left() == []


@pytest.fixture(scope="session")
def etcd_server():
    with EmbeddedEtcd() as server:
        yield server


@pytest.fixture
def etcd(etcd_server):
    with Etcd(etcd_server.endpoint) as client:
        yield client


@pytest.fixture
def service():
    """A service name that no other test uses."""
    return f"service_{next(_numbers)}"


@pytest.fixture(scope="session")
def sums_teacher():
    """A teacher that costs nothing. Do not kill it."""
    with python_teacher("Sums") as teacher:
        yield teacher


@pytest.fixture(scope="session")
def paddle_model(tmp_path_factory):
    """A Paddle model: feed img (3,), fetches twice (3,) = 2 * img + 1 and total (1,)."""
    paddle = pytest.importorskip("paddle")
    from edl.serving import export_model

    class Net(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.one = self.create_parameter(
                [1], default_initializer=paddle.nn.initializer.Constant(1.0)
            )

        def forward(self, img):
            return img * 2 + self.one, img.sum(axis=1, keepdim=True)

    directory = tmp_path_factory.mktemp("model")
    export_model(Net(), directory, {"img": ((3,), "float32")}, ["twice", "total"])
    return directory
