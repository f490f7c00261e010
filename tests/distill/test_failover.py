"""Teachers that are real processes, killed with real signals while a student reads."""

import contextlib
import signal
import threading
import time

import numpy as np

from edl.distill import DistillReader, Limits
from tests.support.processes import Teacher, eventually, python_teacher

ROWS = 8


def numbered(count):
    """Batches whose rows are all different: the right answer is known for each."""
    for number in range(count):
        yield np.full((ROWS, 3), number, "f4") + np.arange(ROWS, dtype="f4")[:, None], number


def read(reader, count, on_batch=None):
    """Read an epoch, check every label, and return the longest wait after each batch."""
    waits, last = [], time.monotonic()
    number = -1
    for number, (img, label, prob) in enumerate(reader()):
        now = time.monotonic()
        waits.append(now - last)
        assert label == number
        assert (prob[:, 0] == img.sum(axis=1)).all()
        if on_batch:
            on_batch(number)
        last = time.monotonic()
    assert number + 1 == count
    return waits


def make_reader(*teachers, **options):
    reader = DistillReader(["img", "label"], ["prob"], **options)
    return reader.set_fixed_teacher([teacher.endpoint for teacher in teachers])


def test_kill_9_of_one_of_two_teachers_loses_nothing_and_costs_less_than_a_second():
    count = 600
    with python_teacher(delay=0.005) as victim, python_teacher(delay=0.005) as other:
        reader = make_reader(victim, other).set_batch_generator(lambda: numbered(count))

        def kill_in_the_middle(number):
            if number == count // 2:
                assert reader.stats()["teachers"][victim.endpoint]["answered"] > 10
                victim.kill(signal.SIGKILL)

        with reader:
            waits = read(reader, count, kill_in_the_middle)
            assert reader.stats()["lost_teachers"] == 1
    assert max(waits[count // 2 :]) < 1.0


def test_a_real_paddle_teacher_is_killed_and_another_joins_through_etcd(
    paddle_model, etcd_server, service
):
    arguments = ("--model", paddle_model, "--etcd", etcd_server.endpoint, "--service", service)
    options = ("--ttl", 3, "--cpu-threads", 1)
    first, second = (Teacher(*arguments, *options, wait=False) for _ in range(2))
    first.wait_until_ready()
    second.wait_until_ready()
    newcomer = None
    joined = threading.Event()
    drawn = []

    def until_the_newcomer_has_joined():
        for batch in numbered(100_000):
            if joined.is_set():
                return
            drawn.append(batch[1])
            yield batch

    reader = DistillReader(["img", "label"], ["twice", "total"])
    reader.set_dynamic_teacher(etcd_server.endpoint, service, require_max_teacher=3)
    reader.set_batch_generator(until_the_newcomer_has_joined)
    taken = []
    with reader:
        for img, label, twice, total in reader():
            taken.append(label)
            assert (twice == 2 * img + 1).all()
            assert (total[:, 0] == img.sum(axis=1)).all()
            if len(taken) == 100:
                first.kill(signal.SIGKILL)
                newcomer = Teacher(*arguments, *options, wait=False)
            for endpoint, teacher in reader.stats()["teachers"].items():
                if endpoint not in (first.endpoint, second.endpoint) and teacher["answered"]:
                    joined.set()
            time.sleep(0.003)
    assert joined.is_set()
    assert taken == drawn
    for teacher in (first, second, newcomer):
        teacher.close()


def test_a_stopped_teacher_is_given_up_after_its_time_out():
    count = 400
    limits = Limits(min_timeout=0.5)
    with python_teacher(delay=0.005) as stopped, python_teacher(delay=0.005) as other:
        reader = make_reader(stopped, other, limits=limits)
        reader.set_batch_generator(lambda: numbered(count))

        def stop_in_the_middle(number):
            if number == count // 2:
                stopped.kill(signal.SIGSTOP)

        with reader:
            waits = read(reader, count, stop_in_the_middle)
            eventually(lambda: reader.stats()["lost_teachers"] == 1)
            assert list(reader.stats()["teachers"]) == [other.endpoint]
    assert max(waits) < 2.0


def test_a_teacher_that_drains_is_left_without_any_resending():
    count = 300
    with python_teacher(delay=0.01) as drained, python_teacher(delay=0.01) as other:
        reader = make_reader(drained, other).set_batch_generator(lambda: numbered(count))

        def drain_in_the_middle(number):
            if number == count // 2:
                drained.kill(signal.SIGTERM)

        with reader:
            read(reader, count, drain_in_the_middle)
        assert drained.wait() == 0


def test_faster_teachers_get_more():
    count = 400
    with python_teacher(delay=0.002) as fast, python_teacher(delay=0.04) as slow:
        reader = make_reader(fast, slow).set_batch_generator(lambda: numbered(count))
        with reader:
            read(reader, count)
            teachers = reader.stats()["teachers"]
    assert teachers[fast.endpoint]["answered"] > 4 * teachers[slow.endpoint]["answered"]


def test_a_teacher_that_comes_back_on_its_port_is_used_again():
    with python_teacher() as first:
        port = first.port
        reader = make_reader(first)
        stop = threading.Event()

        def until_stopped():
            number = 0
            while not stop.is_set():
                yield np.full((ROWS, 3), number, "f4"), number
                number += 1

        reader.set_batch_generator(until_stopped)
        with reader:
            batches = reader()
            for _ in range(50):
                next(batches)
            first.kill()
            first.wait()
            with python_teacher("Sums", "--port", port):
                for expected in range(50, 150):
                    img, label, prob = next(batches)
                    assert label == expected
                    assert (prob[:, 0] == img.sum(axis=1)).all()
            stop.set()


def test_an_endpoint_that_another_model_takes_over_is_not_believed():
    with contextlib.ExitStack() as stack:
        right = stack.enter_context(python_teacher())
        other = stack.enter_context(python_teacher())
        port = other.port
        reader = make_reader(right, other).set_batch_generator(lambda: numbered(300))

        def take_over(number):
            if number == 50:
                other.kill()
                other.wait()
                stack.enter_context(python_teacher("Images", "--port", port))
            time.sleep(0.005)

        with reader:
            read(reader, 300, take_over)
            stats = reader.stats()
            newcomer = stats["teachers"].get(other.endpoint, {"answered": 0})
            assert newcomer["answered"] == 0
            assert stats["resent"] < 30, "it is not asked again and again"
