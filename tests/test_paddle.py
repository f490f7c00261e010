"""How Paddle is imported where it is needed."""

import signal
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

pytest.importorskip("paddle")

PROGRAM = """
import gc, os, signal, sys, weakref

class Cycle:
    def __init__(self):
        self.itself = self

gc.disable()
garbage = weakref.ref(Cycle())
gc.enable()
from edl.distill import DistillReader
assert gc.isenabled()
assert garbage() is None
paddle = sys.modules["paddle"]
assert issubclass(DistillReader, paddle.io.IterableDataset)
assert not any(one is paddle.__dict__ for one in gc.get_objects())
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_it_is_left_alone_by_the_garbage_collector_and_leaves_signals_alone():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stderr == ""
