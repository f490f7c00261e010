"""Readers that share the teachers of a service."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edl.discovery import Registration, StudentRecord
from edl.discovery.keys import LEADER, STUDENTS, service_prefix
from edl.discovery.watch import list_prefix
from edl.distill import DistillReader, Limits
from tests.support.processes import eventually, python_teacher, python_teachers


def batches(count):
    return [(np.full((4, 2), number, "f4"),) for number in range(count)]


def check(items):
    """All of them, in order, with their own labels; how many there were."""
    number = -1
    for number, (img, prob) in enumerate(items):
        assert (img == number).all()
        assert (prob[:, 0] == 2 * number).all()
    return number + 1


SERVICE = "balanced"


@pytest.fixture(scope="module")
def four(etcd_server):
    """Four registered teachers; the address of their service."""
    where = ("--etcd", etcd_server.endpoint, "--service", SERVICE)
    teachers = python_teachers(4, "Sums", *where, verbose=False)
    yield f"etcd://{etcd_server.endpoint}/{SERVICE}"
    for teacher in teachers:
        teacher.close()


@pytest.mark.parametrize(("limit", "expected"), [(None, 4), (2, 2)])
def test_a_reader_alone_uses_all_teachers_within_its_limit(four, limit, expected):
    def source():
        return iter(batches(400))

    with DistillReader(
        ["img"], ["prob"], source=source, teachers=four, max_teachers=limit
    ) as reader:
        assert check(reader) == 400
        eventually(lambda: len(reader.stats()["teachers"]) == expected)


def test_two_readers_share_and_give_back(four):
    first = DistillReader(["img"], ["prob"], source=lambda: iter(batches(100)), teachers=four)
    second = DistillReader(["img"], ["prob"], source=lambda: iter(batches(100)), teachers=four)
    with first:
        assert check(first) == 100
        eventually(lambda: len(first.stats()["teachers"]) == 4)
        with second:
            assert check(second) == 100
            for reader in (first, second):
                eventually(lambda one=reader: len(one.stats()["teachers"]) == 2)
            ours, theirs = (set(reader.stats()["teachers"]) for reader in (first, second))
            assert not ours & theirs
        eventually(lambda: len(first.stats()["teachers"]) == 4)
        assert check(first) == 100


def test_without_an_assignment_for_long_readers_choose_for_themselves(four, etcd):
    squatter = Registration(etcd, SERVICE, "", "nobody", ttl=5, kind=LEADER)
    squatter.start()
    with DistillReader(
        ["img"], ["prob"], source=batches(50), teachers=four, max_teachers=2
    ) as reader:
        started = time.monotonic()
        assert check(reader) == 50
        assert time.monotonic() - started > 2, "it has waited for somebody to assign"
        assert len(reader.stats()["teachers"]) == 2
    assert etcd.call(lambda c: c.get(service_prefix(SERVICE) + LEADER)[0]) == b"nobody"
    squatter.stop()


def test_a_student_says_how_much_it_waits_for_teachers_and_not_for_its_source(
    etcd_server, etcd, service
):
    def waits(name, delay, source_delay, least, most):
        """Whether a student says so, once the moving averages are near to what they will be."""

        def source():
            for batch in batches(10_000):
                time.sleep(source_delay)
                yield batch

        def says():
            found = list_prefix(etcd, service_prefix(name) + STUDENTS)[0].values()
            records = map(StudentRecord.from_json, found)
            return any(one.rows_per_second > 25 and least <= one.waits <= most for one in records)

        where = ("--etcd", etcd_server.endpoint, "--service", name)
        address = f"etcd://{etcd_server.endpoint}/{name}"
        with python_teacher("Sums", *where, verbose=False, delay=delay):
            with DistillReader(["img"], ["prob"], source=source, teachers=address) as reader:
                until = time.monotonic() + 40
                items = iter(reader)
                while not says() and time.monotonic() < until:
                    next(items)
                return says()

    with ThreadPoolExecutor() as threads:  # both at once: they wait for long
        for_its_teacher = threads.submit(waits, f"{service}_a", 0.05, 0.0, 0.7, 1.0)
        for_its_source = threads.submit(waits, f"{service}_b", 0.0, 0.1, 0.0, 0.3)
    assert for_its_teacher.result()
    assert for_its_source.result()


@pytest.mark.slow
def test_a_student_that_is_slower_than_its_teachers_releases_some(four):
    def endless():
        number = 0
        while not finished.is_set():
            yield (np.full((4, 2), number, "f4"),)
            number += 1

    def student():
        for number, (img, prob) in enumerate(reader):
            assert (img == number).all()
            assert (prob[:, 0] == 2 * number).all()
            time.sleep(0.02)

    finished = threading.Event()
    limits = Limits(low_batches=2, high_batches=6)
    with DistillReader(["img"], ["prob"], source=endless, teachers=four, limits=limits) as reader:
        thread = threading.Thread(target=student)
        thread.start()
        eventually(lambda: len(reader.stats().get("teachers", ())) == 4, 20)
        eventually(lambda: reader.stats()["want"] is not None, 40)
        eventually(lambda: len(reader.stats()["teachers"]) < 4, 20)
        assert 150 < reader.stats()["want"] < 250, "rows per second: 4 in 20 ms, and a fifth more"
        finished.set()
        thread.join(20)
        assert not thread.is_alive()
