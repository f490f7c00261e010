"""Worker processes that fail, die, hang and do not come back, behind a server in this process."""

import concurrent.futures
import contextlib
import logging
import os
import signal
import threading
import time

import numpy as np
import pytest

from edl.errors import (
    BadRequest,
    ModelError,
    RequestRefused,
    TeacherConnectionLost,
    TeacherFailed,
    TeacherUnavailable,
)
from edl.serving import Description, ServerOptions, TeacherClient, TensorSpec, serve
from edl.serving.model.predictor import PredictorOptions
from edl.serving.server import engine
from edl.serving.server.hosting import FunctionPredictor, ServedTeacher
from edl.serving.wire import frame
from edl.serving.wire.messages import Request
from edl.serving.worker.handles import WorkerThread, processes
from tests.support.processes import eventually

POISON = np.inf  # the Fragile predictor dies of it


def ones(value, rows=1):
    return {"img": np.full((rows, 2), value, "f4")}


def hosted(name, workers=1, output_bytes=1 << 30, **options):
    """A server of a predictor in worker processes. A name without a colon: a test's predictor."""
    factory = name if ":" in name else f"tests.support.predictors:{name}"
    make_workers = processes(PredictorOptions(python=factory), workers, output_bytes)
    return ServedTeacher(make_workers, ServerOptions(**options))


@contextlib.contextmanager
def held(teacher):
    """All workers of the teacher stand still, so that what comes is waiting in one batch."""
    pids = teacher._server.engine.worker_pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def send(client, values):
    """Futures of the answers to requests of one row each."""
    futures = []
    for value in values:
        future = concurrent.futures.Future()
        client.submit(ones(value), [], future.set_result)
        futures.append(future)
    return [future.result for future in futures]


def waiting(teacher):
    return len(teacher._server.engine._batcher)


def ask_in_one_batch(teacher, client, values):
    """Answers to requests that are merged: the first one alone occupies the worker meanwhile."""
    with held(teacher):
        answers = send(client, [1, *values])
        eventually(lambda: waiting(teacher) == len(values))
    return [answer(timeout=60) for answer in answers][1:]


def test_each_request_of_a_batch_that_fails_is_computed_alone():
    with hosted("Fragile") as teacher, TeacherClient(teacher.endpoint) as client:
        answers = ask_in_one_batch(teacher, client, [1, -1, 2, np.nan, 3])
    assert [a["prob"][0, 0] for a in answers if isinstance(a, dict)] == [2, 4, 6]
    assert "negative input" in str(answers[1])
    assert "rows" in str(answers[3])


def test_a_request_that_kills_a_worker_is_found_and_those_beside_it_are_answered():
    with hosted("Fragile") as teacher, TeacherClient(teacher.endpoint) as client:
        answers = ask_in_one_batch(teacher, client, [1, POISON, 2])
        assert [a["prob"][0, 0] for a in answers if isinstance(a, dict)] == [2, 4]
        assert isinstance(answers[1], TeacherFailed)
        assert "killed by SIGKILL while computing this request" in str(answers[1])


def test_a_worker_that_dies_while_it_computes_nothing_is_replaced_and_no_request_is_blamed(caplog):
    with hosted("Sums") as teacher, TeacherClient(teacher.endpoint) as client:
        for _ in range(3):
            caplog.clear()
            os.kill(teacher._server.engine.worker_pids[0], signal.SIGKILL)
            eventually(lambda: "while it computed nothing" in caplog.text)
            assert client.infer(ones(1))["prob"][0, 0] == 2
            assert "the worker process was killed by SIGKILL" in caplog.text


def test_what_a_predictor_refuses_is_refused_with_its_words_and_nothing_beside_it():
    with hosted("Picky") as teacher, TeacherClient(teacher.endpoint) as client:
        answers = ask_in_one_batch(teacher, client, [1, -1, 2])
    assert [a["prob"][0, 0] for a in answers if isinstance(a, dict)] == [2, 4]
    assert isinstance(answers[1], RequestRefused)
    assert answers[1].message == "'img' holds -4"


def test_a_served_function_can_refuse_a_request_too():
    def compute(img):
        raise BadRequest("not today")

    specs = {"img": ((2,), "float32")}, {"prob": ((2,), "float32")}
    with serve(compute, *specs) as teacher, TeacherClient(teacher.endpoint) as client:
        with pytest.raises(RequestRefused, match="not today"):
            client.infer(ones(1))


#: It raises if there are several rows, and dies of infinity alone.
SHY = """
from tests.support.predictors import Fragile
class Predictor(Fragile):
    def run(self, feeds, fetches):
        if len(feeds["img"]) > 1:
            raise ValueError("too many")
        return super().run(feeds, fetches)
"""


def test_a_worker_that_dies_of_one_request_of_a_batch_that_had_failed_harms_no_other(
    tmp_path, monkeypatch
):
    (tmp_path / "shy.py").write_text(SHY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with hosted("shy:Predictor") as teacher, TeacherClient(teacher.endpoint) as client:
        answers = ask_in_one_batch(teacher, client, [1, POISON, 2, 3])
    assert [a["prob"][0, 0] for a in answers if isinstance(a, dict)] == [2, 4, 6]
    assert "killed by SIGKILL while computing this request" in str(answers[1])


def test_a_busy_worker_is_given_the_next_batch_only_if_nothing_could_join_it():
    with hosted("Sums", max_batch_rows=2) as teacher, TeacherClient(teacher.endpoint) as client:
        with held(teacher):
            answers = send(client, [1, 2])
            eventually(lambda: waiting(teacher) == 1)
            answers += send(client, [3, 4, 5, 6, 7, 8])
            eventually(lambda: waiting(teacher) == 3)
            (batches,) = teacher._server.engine._running.values()
            assert [len(batch.jobs) for batch in batches] == [1, 2, 2]
        doubled = [answer(timeout=60)["prob"][0, 0] for answer in answers]
    assert doubled == [2, 4, 6, 8, 10, 12, 14, 16]


def test_a_batch_that_was_given_to_a_worker_ahead_of_time_does_not_die_with_it():
    with hosted("Fragile", max_batch_rows=2) as teacher, TeacherClient(teacher.endpoint) as client:
        with held(teacher):
            answers = send(client, [POISON, 1, 2])
            eventually(lambda: client._in_flight and not waiting(teacher))
        answers = [answer(timeout=60) for answer in answers]
    assert "killed by SIGKILL while computing this request" in str(answers[0])
    assert [a["prob"][0, 0] for a in answers[1:]] == [2, 4]


def test_what_a_served_function_passes_through_is_not_lost_to_the_next_request():
    specs = {"x": ((1 << 16,), "float32")}, {"y": ((1 << 16,), "float32")}
    with serve(lambda x: x, *specs) as teacher, TeacherClient(teacher.endpoint) as client:
        futures = []
        for value in range(200):
            futures.append(concurrent.futures.Future())
            feeds = {"x": np.full((1, 1 << 16), value, "f4")}
            client.submit(feeds, [], futures[-1].set_result)
        for value, future in enumerate(futures):
            assert (future.result(timeout=60)["y"] == value).all()


class Immortal(WorkerThread):
    """A worker whose end cannot be brought about: a bug."""

    def kill(self, reason):
        raise RuntimeError("no such worker")


def test_what_goes_wrong_in_the_background_is_logged(caplog):
    specs = {"img": TensorSpec((2,), "float32")}, {"prob": TensorSpec((2,), "float32")}
    finished = threading.Event()

    def compute(img):
        finished.wait(20)
        return img

    predictor = FunctionPredictor(compute, Description(*specs))
    options = ServerOptions(run_timeout=0.2)
    with ServedTeacher(lambda inputs: [Immortal(predictor, inputs)], options) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            (answer,) = send(client, [1])
            eventually(lambda: "the engine's work ended with an error" in caplog.text)
            finished.set()
            assert answer(timeout=20)["prob"][0, 0] == 1
    assert "no such worker" in caplog.text


def test_the_rate_is_known_once_something_was_computed(monkeypatch):
    monkeypatch.setenv("EDL_TEST_DELAY", "0.01")
    with hosted("Sums") as teacher, TeacherClient(teacher.endpoint) as client:
        assert teacher._server.engine.rate == 0
        for _ in range(30):
            client.infer(ones(1, rows=8))
        assert 8 < teacher._server.engine.rate < 800, "8 rows take 10 ms, and what comes on top"


def test_a_request_waits_for_others_and_no_longer_than_was_said():
    batches = []

    def compute(img):
        batches.append(len(img))
        return img

    specs = {"img": ((2,), "float32")}, {"prob": ((2,), "float32")}
    with serve(compute, *specs, options=ServerOptions(max_wait=0.4, max_batch_rows=4)) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            for count in (2, 4):
                started = time.monotonic()
                for answer in send(client, range(count)):
                    assert answer(timeout=20)["prob"].shape == (1, 2)
                assert count == 4 or time.monotonic() - started >= 0.4
    assert batches == [2, 4]


def test_a_request_that_waits_for_others_is_lost_if_the_teacher_must_close():
    specs = {"img": ((2,), "float32")}, {"prob": ((2,), "float32")}
    teacher = serve(lambda img: img, *specs, options=ServerOptions(max_wait=60))
    with TeacherClient(teacher.endpoint) as client:
        (answer,) = send(client, [1])
        eventually(lambda: waiting(teacher))
        started = time.monotonic()
        teacher.close(patience=0.2)
        assert time.monotonic() - started < 10
        assert isinstance(answer(timeout=10), TeacherConnectionLost)


IMG = TensorSpec((2,), "float32")
DESCRIPTION = Description({"a": IMG, "b": IMG}, {"y": IMG})
ROW = np.zeros((1, 2), "f4")


@pytest.mark.parametrize(
    ("feeds", "fetches", "complaint"),
    [
        ({"a": ROW, "b": ROW, "c": ROW}, [], "unknown feed 'c'; this teacher's feeds: 'a', 'b'"),
        ({"a": ROW}, [], "feed 'b' is missing; this teacher needs 'a', 'b'"),
        ({"a": ROW, "b": ROW[:, :1]}, [], "feed 'b': expected shape (rows, 2), got (1, 1)"),
        ({"a": ROW, "b": ROW}, ["z"], "unknown fetch 'z'; this teacher's fetches: 'y'"),
        ({"a": ROW, "b": ROW.repeat(3, 0)}, [], "differ in their number of rows (a: 1, b: 3)"),
    ],
)
def test_a_wrong_request_is_refused_with_the_culprit(feeds, fetches, complaint):
    def check():
        asked = engine.read_fetches(DESCRIPTION, fetches)
        engine.check_feeds(DESCRIPTION, asked.feeds, Request(feeds, fetches))

    with pytest.raises(engine.Refusal) as refusal:
        check()
    assert complaint in str(refusal.value)
    assert refusal.value.code == frame.EREQUEST


def test_no_rows_are_computed_without_a_worker():
    with hosted("Sums") as teacher, TeacherClient(teacher.endpoint) as client, held(teacher):
        outputs = client.infer({"img": np.zeros((0, 3), "f4")})
    assert (outputs["prob"].shape, outputs["prob"].dtype) == ((0, 2), np.float32)


def test_a_batch_that_takes_long_is_said_and_one_that_takes_too_long_ends_its_worker(
    monkeypatch, caplog
):
    monkeypatch.setattr(engine, "_WATCH_EVERY", 0.1)
    monkeypatch.setenv("EDL_TEST_DELAY", "0")
    with hosted("Sums", run_timeout=1.5) as teacher, TeacherClient(teacher.endpoint) as client:
        (pid,) = teacher._server.engine.worker_pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TeacherFailed, match=r"the worker took more than 1\.5 s"):
            client.infer(ones(1))
        assert f"worker {pid} has computed for" in caplog.text
        assert client.infer(ones(1), timeout=60)["prob"][0, 0] == 2


#: A predictor whose weights can be gone.
WEIGHTS = """
import os
from tests.support.predictors import Sums
class Predictor(Sums):
    def __init__(self):
        with open(os.environ["EDL_TEST_WEIGHTS"]):
            pass
"""


@pytest.fixture
def weights(tmp_path, monkeypatch):
    (tmp_path / "weighty.py").write_text(WEIGHTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("EDL_TEST_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").touch()
    return tmp_path / "weights"


def test_while_no_worker_can_be_started_requests_are_told_why_and_afterwards_computed(weights):
    with hosted("weighty:Predictor") as teacher, TeacherClient(teacher.endpoint) as client:
        assert client.infer(ones(1))["prob"][0, 0] == 2
        weights.unlink()
        with held(teacher):
            (first,) = send(client, [1])
            eventually(lambda: teacher._server.engine._running)
            os.kill(teacher._server.engine.worker_pids[0], signal.SIGKILL)
        assert "killed by SIGKILL" in str(first(timeout=20))
        with pytest.raises(TeacherUnavailable, match=r"busy: no worker can be started \(.*weights"):
            client.infer(ones(1))
        with pytest.raises(TeacherUnavailable, match="no worker can be started"):
            client.infer(ones(1))
        assert not teacher._server.healthy
        weights.touch()
        eventually(lambda: teacher._server.healthy, 30)
        assert client.infer(ones(1))["prob"][0, 0] == 2


def test_a_model_that_cannot_be_loaded_is_said_and_leaves_no_process(weights):
    weights.unlink()
    with pytest.raises(ModelError, match="FileNotFoundError"):
        hosted("weighty:Predictor")


def test_a_model_that_takes_too_long_to_load_is_said(monkeypatch):
    with pytest.raises(ModelError, match=r"was not ready in 0\.2 s while loading"):
        hosted("Slow", load_timeout=0.2)


def test_outputs_beyond_the_output_memory_are_refused_and_waited_for_where_they_fit():
    with hosted("Sums", output_bytes=1 << 12) as teacher, TeacherClient(teacher.endpoint) as client:
        with pytest.raises(TeacherFailed, match="do not fit the output arena of 4096 bytes"):
            client.infer(ones(1, rows=1024))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:  # as much as is there at a time
            rows = [400] * 40
            answers = list(pool.map(lambda count: client.infer(ones(1, rows=count)), rows))
        assert all((answer["prob"][:, 0] == 2).all() for answer in answers)


def test_closing_a_teacher_whose_model_hangs_takes_its_patience_and_no_longer(caplog):
    caplog.set_level(logging.ERROR)
    with hosted("Sums") as teacher, TeacherClient(teacher.endpoint) as client:
        (pid,) = teacher._server.engine.worker_pids
        os.kill(pid, signal.SIGSTOP)
        answers = []
        client.submit(ones(1), [], answers.append)
        eventually(lambda: teacher._server.engine._running)
        started = time.monotonic()
        teacher.close(patience=0.5)
        assert time.monotonic() - started < 10
        eventually(lambda: answers)
        assert isinstance(answers[0], Exception)
        assert not [thread for thread in threading.enumerate() if thread.name == "edl-teacher"]
