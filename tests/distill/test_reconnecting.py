"""A server that is back, or is another one now, is used again within a second or so."""

import contextlib
import socket
import threading
import time

import numpy as np

from edl.discovery import Registration
from edl.discovery.embedded import free_port
from edl.distill import DistillReader
from edl.serving import serve
from edl.serving.server.server import ServerOptions
from edl.serving.wire.messages import encode_response
from tests.distill.test_bad_teachers import BadTeacher, respond, right
from tests.support.processes import eventually

ROWS = 4


def endless():
    for number in range(10**9):
        yield np.full((ROWS, 3), number, "f4"), number


def reader_of(teachers, **options):
    return DistillReader(["img", "label"], ["prob"], endless, teachers, **options)


def check(batches, count, start):
    """The next batches, with their own labels."""
    for expected in range(start, start + count):
        img, label, prob = next(batches)
        assert label == expected
        assert (prob[:, 0] == img.sum(axis=1)).all()
    return start + count


class BlackHole:
    """A host that drops packets: a listener whose queue is full. ``back`` makes it a teacher."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.endpoint = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.fill = []
        with contextlib.suppress(socket.timeout):
            while True:
                self.fill.append(socket.create_connection(self.listener.getsockname(), 0.3))

    def back(self):
        for conn in self.fill:
            conn.close()
        self.listener.listen(100)
        return BadTeacher(
            lambda conn, meta, feeds: respond(conn, meta, encode_response({"prob": right(feeds)})),
            self.listener,
        )


def test_a_host_that_has_dropped_packets_is_used_soon_after_it_is_back():
    """An attempt that hangs is given up for a new one, long before the system tries again."""
    for away in (0.3, 1.1, 1.9):
        hole = BlackHole()
        with reader_of(hole.endpoint) as reader:
            batches = iter(reader)
            threading.Timer(away, hole.back).start()
            started = time.monotonic()
            check(batches, 5, 0)
            assert time.monotonic() - started - away < 2.0
        hole.listener.close()


def test_some_attempts_are_patient_so_that_a_slow_host_gets_through(sums_teacher):
    hole = BlackHole()
    problems = set()
    with reader_of([hole.endpoint, sums_teacher.endpoint]) as reader:
        batches = iter(reader)
        next(batches)

        def seen():
            problems.add(reader.stats()["unusable"].get(hole.endpoint))
            return {"no connection within 0.8 s", "no connection within 3 s"} <= problems

        eventually(seen, timeout=20)
        batches.close()
    hole.listener.close()


def sums(feed="img", port=0):
    """A teacher in this process, of one model whatever its feed is called."""

    def model(**feeds):
        total = feeds[feed].sum(axis=1)
        return np.stack([total, 2 * total], axis=1)

    return serve(
        model,
        {feed: ((-1,), "float32")},
        {"prob": ((2,), "float32")},
        fingerprint="one",
        options=ServerOptions(port=port, input_bytes=1 << 20),
    )


def wait_until_used(reader, endpoint, batches, taken, within):
    """Read on until a teacher is connected; it has to be used after so many seconds."""
    started = time.monotonic()
    while endpoint not in reader.stats()["teachers"]:
        taken = check(batches, 1, taken)
        assert time.monotonic() - started < within
    assert endpoint not in reader.stats()["unusable"]


def test_a_server_that_does_not_fit_is_used_when_it_is_replaced_by_one_that_does():
    port = free_port()
    endpoint = f"127.0.0.1:{port}"
    with sums() as good, reader_of([endpoint, good.endpoint]) as reader:
        batches = iter(reader)
        with sums("other", port):
            taken = check(batches, 5, 0)
            eventually(lambda: "'other' is missing" in reader.stats()["unusable"].get(endpoint, ""))
        with sums("img", port):
            wait_until_used(reader, endpoint, batches, taken, within=3.0)
        batches.close()


def test_an_entry_that_was_wrong_is_looked_at_again_as_soon_as_it_is_another(
    etcd_server, etcd, service
):
    with sums() as good, sums() as late:
        registrations = [
            Registration(etcd, service, good.endpoint, "{}"),
            Registration(etcd, service, late.endpoint, '{"protocol": "pigeon"}'),
        ]
        for registration in registrations:
            registration.start()
        with reader_of(f"etcd://{etcd_server.endpoint}/{service}") as reader:
            batches = iter(reader)
            taken = check(batches, 5, 0)
            eventually(lambda: "'pigeon'" in reader.stats()["unusable"].get(late.endpoint, ""))
            registrations[1].update("{}")
            wait_until_used(reader, late.endpoint, batches, taken, within=3.5)
            batches.close()
        for registration in registrations:
            registration.stop()
