"""While a worker computes, the next batch is gathered and the last one's answers are laid out."""

import concurrent.futures
import os
import signal

import numpy as np
import pytest

from edl.serving import ServerOptions, TeacherClient
from edl.serving.model.predictor import PredictorOptions
from edl.serving.server.hosting import ServedTeacher
from edl.serving.worker.batch import LARGE
from edl.serving.worker.handles import processes
from tests.support.processes import eventually

WIDTH = LARGE // 4 // 2  # two rows are large

#: Answers with its rows, from one buffer or not; and says of each batch whether, while it was
#: computed, there was a thread that copies. It waits for that: once, if ``patience`` says so.
PREDICTORS = f"""
import os, threading, time
import numpy as np
from edl.serving import Description, TensorSpec

WIDTH = {WIDTH}

class Echo:
    description = Description(
        {{"x": TensorSpec((WIDTH,), "float32")}},
        {{"y": TensorSpec((WIDTH,), "float32"), "seen": TensorSpec((1,), "float32")}},
    )
    batches = 0

    def run(self, feeds, fetches):
        self.batches += 1
        patience = float(os.environ["EDL_TEST_PATIENCE"]) if self.batches == 2 else 0
        deadline = time.monotonic() + patience
        while not self.copying() and time.monotonic() < deadline:
            time.sleep(0.001)
        seen = np.full((len(feeds["x"]), 1), self.copying(), "f4")
        return {{"y": self.output(feeds["x"]), "seen": seen}}

    def copying(self):
        return any("edl-copy" in thread.name for thread in threading.enumerate())

class Fresh(Echo):
    fresh_outputs = True

    def output(self, x):
        return x + 1

class Reusing(Echo):
    buffer = np.empty((8, WIDTH), np.float32)

    def output(self, x):
        np.add(x, 1, self.buffer[: len(x)])
        return self.buffer[: len(x)]
"""


@pytest.fixture
def hosted(tmp_path, monkeypatch):
    """A server of one of these predictors, whose batches have two rows."""
    (tmp_path / "copying.py").write_text(PREDICTORS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(name, patience="0", **options):
        monkeypatch.setenv("EDL_TEST_PATIENCE", patience)
        make_workers = processes(PredictorOptions(python=f"copying:{name}"), **options)
        return ServedTeacher(make_workers, ServerOptions(max_batch_rows=2))

    return start


def send(client, values):
    """Futures of the answers to single rows."""
    futures = []
    for value in values:
        future = concurrent.futures.Future()
        client.submit({"x": np.full((1, WIDTH), value, "f4")}, [], future.set_result)
        futures.append(future)
    return futures


@pytest.mark.parametrize("name", ["Fresh", "Reusing"])
@pytest.mark.parametrize("output_bytes", [1 << 30, 3 * LARGE])
def test_every_row_gets_its_own_answer_whatever_is_copied_meanwhile(hosted, name, output_bytes):
    with hosted(name, output_bytes=output_bytes) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            answers = [future.result(timeout=60) for future in send(client, range(100))]
    for value, answer in enumerate(answers):
        assert (answer["y"] == value + 1).all()


def test_the_next_batch_is_gathered_while_one_is_computed(hosted):
    # The first batch is the one of zeros at the start; the second waits until something is copied.
    with hosted("Reusing", patience="60") as teacher, TeacherClient(teacher.endpoint) as client:
        engine = teacher._server.engine
        (pid,) = engine.worker_pids
        os.kill(pid, signal.SIGSTOP)
        try:
            answers = send(client, range(20))
            eventually(lambda: [len(batches) for batches in engine._running.values()] == [3])
        finally:
            os.kill(pid, signal.SIGCONT)
        assert answers[0].result(timeout=60)["seen"] == 1
