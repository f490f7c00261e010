"""Teachers without a source: rows go in, labels come out in order."""

import json
import math
import threading

import numpy as np
import pytest

from edl.discovery import Registration
from edl.discovery.embedded import free_port
from edl.discovery.keys import STUDENTS, service_prefix
from edl.discovery.watch import list_prefix
from edl.distill.batches import ArrayBatch
from edl.distill.link import Wants
from edl.distill.pool import Pool
from edl.distill.requests import Requests, read_feeds
from edl.distill.settings import PoolConfig, RequestLimits
from edl.distill.teachers import ServiceTeachers, fixed_teachers, service_teachers
from edl.distill.timeline import Timeline
from edl.distill.trace import Trace
from edl.serving import serve
from edl.serving.server.server import ServerOptions
from tests.support.processes import eventually


def batch(number, rows=4):
    img = np.full((rows, 3), number, "f4")
    return ArrayBatch((img,), rows, img.nbytes)


def sums(factor, fingerprint, port):
    """A server in this process: ``prob`` is ``factor`` times the sum of a row."""
    return serve(
        lambda img: factor * img.sum(axis=1, keepdims=True),
        {"img": ((3,), "float32")},
        {"prob": ((1,), "float32")},
        fingerprint=fingerprint,
        options=ServerOptions(port=port, input_bytes=1 << 20),
    )


def pool_of(teachers, trace=None, **options):
    if not isinstance(teachers, ServiceTeachers):
        teachers = fixed_teachers(getattr(teachers, "endpoint", teachers))
    config = PoolConfig(teachers, Wants(["img"], ["prob"]), task_rows=2, **options)
    pool = Pool(config, None if trace is None else Timeline(trace))
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


@pytest.mark.parametrize("taken", [0, 1])
def test_the_model_is_that_of_the_first_batch_that_is_taken(taken):
    """What nobody has taken decides for none: it is asked again of the model that is there."""
    port = free_port()
    pool = pool_of(f"127.0.0.1:{port}", no_teacher_timeout=1.0)
    stream = pool.open()
    with sums(1, "model:v1", port):
        for number in range(1, 5):
            stream.put(batch(number))
        eventually(lambda: pool.stats()["buffer"]["batches"] == 4)
        labels = [stream.take().parts[0]["prob"][0, 0] for _ in range(taken)]
    with sums(100, "model:v2", port):
        stream.put(batch(5))  # it is sent, so that the end of the other is seen
        if taken:
            eventually(lambda: "this epoch's is model:v1" in str(pool.stats()["unusable"]))
        else:
            eventually(lambda: pool.model == "model:v2")
        labels += [stream.take().parts[0]["prob"][0, 0] for _ in range(4 - taken)]
    factor = 1 if taken else 100
    assert labels == [3 * factor * number for number in range(1, 5)]
    pool.close()


def test_requests_let_go_of_shared_teachers_after_a_while_and_get_them_back(
    sums_teacher, etcd, etcd_server, service
):
    registration = Registration(etcd, service, sums_teacher.endpoint, "{}")
    registration.start()
    where = service_teachers(etcd_server.endpoint, service)
    pool = pool_of(where, requests=RequestLimits(10, rest_after=0.5))
    asking = Requests(pool)

    def ask():
        answer = asking.submit(read_feeds({"img": np.ones((4, 3))}, None), dict, math.inf)
        assert (answer.result(10)["prob"][:, 0] == 3).all()

    def wants():
        students = list_prefix(etcd, service_prefix(service) + STUDENTS)[0]
        return [json.loads(text)["want"] for text in students.values()]

    for _ in range(2):
        ask()
        eventually(lambda: pool.stats()["teachers"] == {})
        eventually(lambda: wants() == [0.0])
    pool.close()
    asking.join(1.0)
    registration.stop()


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
    assert [event["name"] for event in events] == ["process_name", "thread_name", "wait"]


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
