"""Teachers without a source: rows go in, labels come out in order."""

import json
import threading

import numpy as np

from edl.distill.batches import ArrayBatch
from edl.distill.link import Wants
from edl.distill.pool import Pool
from edl.distill.settings import PoolConfig
from edl.distill.teachers import fixed_teachers
from edl.distill.trace import Trace


def batch(number, rows=4):
    img = np.full((rows, 3), number, "f4")
    return ArrayBatch((img,), rows, img.nbytes)


def pool_of(teacher, trace=None):
    config = PoolConfig(fixed_teachers(teacher.endpoint), Wants(["img"], ["prob"]), task_rows=2)
    pool = Pool(config, trace)
    pool.start()
    return pool


def test_batches_that_are_put_into_a_stream_come_out_labelled_and_in_order(sums_teacher):
    pool = pool_of(sums_teacher)
    for _ in range(2):  # one stream after the other
        stream = pool.open()
        for number in range(5):
            assert stream.put(batch(number))
        stream.end()
        for number in range(5):
            finished = stream.take()
            assert finished.error is None
            labels = np.concatenate([part["prob"] for part in finished.parts])
            assert (labels[:, 0] == 3 * number).all()
        assert stream.take() is None
    pool.close()


def test_nothing_is_put_into_a_stream_that_was_left(sums_teacher):
    pool = pool_of(sums_teacher)
    stream = pool.open()
    stream.leave()
    assert not stream.put(batch(0))
    assert not stream.wait_until_wanted()
    pool.close()


def test_the_trace_is_written_outside_the_lock(sums_teacher, tmp_path):
    held = []

    class Watched(Trace):
        def span(self, *arguments, **details):
            owner = getattr(threads, "inside", False)
            held.append(owner)
            super().span(*arguments, **details)

    threads = threading.local()
    trace = Watched(tmp_path / "trace.json")
    pool = pool_of(sums_teacher, trace)
    pool._exchange._lock = _Marked(pool._exchange._lock, threads)
    stream = pool.open()
    for number in range(5):
        stream.put(batch(number))
    stream.end()
    while stream.take() is not None:
        pass
    pool.close()
    trace.close()
    assert held
    assert not any(held)


def test_what_happens_after_the_end_is_not_in_the_trace(tmp_path):
    trace = Trace(tmp_path / "trace.json")
    trace.span("student", "wait", 0.0, 1.0)
    trace.close()
    trace.span("student", "an answer that comes late", 1.0, 2.0)
    events = json.loads((tmp_path / "trace.json").read_text())
    assert [event["name"] for event in events] == ["thread_name", "wait"]


class _Marked:
    """A lock that says whether the thread that asks is inside."""

    def __init__(self, lock, threads):
        self._lock, self._threads = lock, threads

    def __enter__(self):
        self._lock.__enter__()
        self._threads.inside = True

    def __exit__(self, *error):
        self._threads.inside = False
        self._lock.__exit__(*error)
