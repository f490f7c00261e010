"""Teachers that misbehave, beside a good one: nothing wrong ever reaches the student.

The bad ones are scripted peers that speak the protocol up to the point where they do not.
"""

import contextlib
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from edl.discovery import Etcd
from edl.discovery.embedded import EmbeddedEtcd
from edl.distill import DistillReader, Limits
from edl.errors import BatchRefused, ReaderError
from edl.serving.wire import frame
from edl.serving.wire.description import BATCH_ROWS, DESCRIBE_SERVICE
from edl.serving.wire.messages import decode_request, encode_response
from tests.serving.client.test_teacher import receive
from tests.support.predictors import Sums
from tests.support.processes import python_teacher

COUNT = 120


def respond(conn, meta, payload, code=0, text=""):
    answer = frame.ResponseMeta(meta.correlation_id, code, text)
    conn.sendall(b"".join(frame.encode_frame(answer, payload)))


class BadTeacher:
    """Describes itself like Sums, and says that it computes ``batch_rows`` together; a request is
    left to ``misbehave(conn, meta, feeds)``.
    """

    def __init__(self, misbehave, listener=None, batch_rows=64):
        self._misbehave = misbehave
        self._says = replace(Sums.description, extra={BATCH_ROWS: batch_rows}).to_json()
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn):
        with conn, contextlib.suppress(OSError, AssertionError):
            while True:
                body_size, meta_size = frame.parse_header(receive(conn, frame.HEADER_SIZE))
                body = memoryview(receive(conn, body_size))
                meta, payload = frame.parse_body(body, meta_size)
                if meta.service == DESCRIBE_SERVICE:
                    respond(conn, meta, [self._says.encode()])
                    continue
                self.requests += 1
                self._misbehave(conn, meta, decode_request(payload).feeds)

    def close(self):
        self._listener.close()


def right(feeds):
    return Sums().run(feeds, ["prob"])["prob"]


BEHAVIOURS = {
    "too few rows": lambda conn, meta, feeds: respond(
        conn, meta, encode_response({"prob": right(feeds)[:-1]})
    ),
    "another name": lambda conn, meta, feeds: respond(
        conn, meta, encode_response({"bert": right(feeds)})
    ),
    "another dtype": lambda conn, meta, feeds: respond(
        conn, meta, encode_response({"prob": right(feeds).astype("f8")})
    ),
    "another shape": lambda conn, meta, feeds: respond(
        conn, meta, encode_response({"prob": right(feeds)[:, :1]})
    ),
    "a message that does not parse": lambda conn, meta, feeds: respond(conn, meta, [b"\xff" * 20]),
    "garbage": lambda conn, meta, feeds: conn.sendall(b"\x00garbage" * 10),
    "half a frame": lambda conn, meta, feeds: (conn.sendall(b"PRPC\0\0"), conn.close()),
    "an answer to another request": lambda conn, meta, feeds: respond(
        conn, frame.RequestMeta("", "", 10**9), encode_response({"prob": right(feeds)})
    ),
    "silence": lambda conn, meta, feeds: None,
    "hanging up": lambda conn, meta, feeds: conn.close(),
    "its own error": lambda conn, meta, feeds: respond(
        conn, meta, [], frame.EINTERNAL, "no memory"
    ),
    "being busy": lambda conn, meta, feeds: respond(conn, meta, [], frame.ELIMIT, "full"),
    "refusing what is right": lambda conn, meta, feeds: respond(
        conn, meta, [], frame.EREQUEST, "never"
    ),
}


def source():
    for number in range(COUNT):
        yield np.full((4, 3), number, "f4") + np.arange(4, dtype="f4")[:, None], number


def check(batches):
    numbers = []
    for img, label, prob in batches:
        assert (prob[:, 0] == img.sum(axis=1)).all()
        numbers.append(label)
    assert numbers == list(range(COUNT))


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_bad_teacher_beside_a_good_one_changes_nothing(sums_teacher, behaviour):
    bad = BadTeacher(BEHAVIOURS[behaviour])
    limits = Limits(min_timeout=0.2, max_timeout=1.0)
    teachers = [bad.endpoint, sums_teacher.endpoint]
    with DistillReader(["img", "label"], ["prob"], source, teachers, limits=limits) as reader:

        def slowly():  # so that the bad one is asked
            for batch in reader:
                time.sleep(0.002)
                yield batch

        check(slowly())
    assert bad.requests > 0
    bad.close()


def test_a_connection_whose_tls_is_refused_late_is_made_anew():
    """A teacher that does not like a certificate says so when it gets to it."""
    first = []

    def refuse(conn, meta, feeds):
        first.append(conn)
        if conn is first[0]:
            respond(conn, meta, [], frame.ESSL, "no")
        else:
            respond(conn, meta, encode_response({"prob": right(feeds)}))

    teacher = BadTeacher(refuse)
    with DistillReader(["img", "label"], ["prob"], source, teacher.endpoint) as reader:
        check(reader)
        assert reader.stats()["lost_teachers"] == 1
    teacher.close()


def test_two_teachers_that_refuse_are_quoted_in_the_error():
    says = [
        BadTeacher(
            lambda conn, meta, feeds, text=text: respond(conn, meta, [], frame.EREQUEST, text)
        )
        for text in ("img: too dark", "img: too bright")
    ]
    teachers = [teacher.endpoint for teacher in says]
    with (
        DistillReader(["img", "label"], ["prob"], source, teachers) as reader,
        pytest.raises(BatchRefused, match=r"too (dark|bright).*too (dark|bright)"),
    ):
        next(iter(reader))
    for teacher in says:
        teacher.close()


def test_a_request_that_kills_every_teacher_is_given_up_with_the_reasons():
    killer = BadTeacher(BEHAVIOURS["hanging up"])
    limits = Limits(max_attempts=3)
    with (
        DistillReader(["img", "label"], ["prob"], source, killer.endpoint, limits=limits) as reader,
        pytest.raises(
            ReaderError, match=r"3 attempts at rows 0 to 4 of batch 0 failed.*(closed|reset)"
        ),
    ):
        next(iter(reader))
    killer.close()


def test_a_slow_teacher_that_holds_up_the_order_is_overtaken(sums_teacher):
    def dawdle(conn, meta, feeds):
        time.sleep(0.5)
        respond(conn, meta, encode_response({"prob": right(feeds)}))

    slow = BadTeacher(dawdle)
    teachers = [slow.endpoint, sums_teacher.endpoint]
    with DistillReader(["img", "label"], ["prob"], source, teachers) as reader:
        check(reader)
        stats = reader.stats()
    assert stats["hedged"] >= 1
    assert stats["hedged"] <= 2 + 0.05 * stats["tasks_sent"]
    slow.close()


def test_memory_stays_bounded_with_a_slow_student_and_fast_teachers(sums_teacher):
    limits = Limits(low_batches=2, high_batches=6, min_window=2, max_window=3)
    read, levels = [], set()

    def counting():
        for number, batch in enumerate(source()):
            read.append(number)
            yield batch

    teacher = sums_teacher.endpoint
    with DistillReader(["img", "label"], ["prob"], counting, teacher, limits=limits) as reader:
        for number, _ in enumerate(reader):
            time.sleep(0.01)
            assert read[-1] - number <= 6 + 2 * 3 + 2
            buffer = reader.stats()["buffer"]
            assert buffer["batches"] <= 6 + 3
            levels.add(buffer["level"])
            if number == 60:
                break
    assert "high" in levels


def test_teachers_that_join_and_leave_all_the_time_lose_nothing(etcd_server, service):
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 1)
    endless = (
        (np.full((4, 3), number, "f4") + np.arange(4, dtype="f4")[:, None], number)
        for number in range(10**9)
    )
    address = f"etcd://{etcd_server.endpoint}/{service}"
    with DistillReader(["img", "label"], ["prob"], endless, address) as reader:
        batches, expected = iter(reader), 0
        for _ in range(4):
            with python_teacher("Sums", *where, delay=0.002):
                until = time.monotonic() + 1
                while time.monotonic() < until:
                    img, label, prob = next(batches)
                    assert label == expected
                    assert (prob[:, 0] == img.sum(axis=1)).all()
                    expected += 1
        assert reader.stats()["lost_teachers"] >= 3


def test_etcd_may_be_away_for_a_while(tmp_path):
    server = EmbeddedEtcd(tmp_path)
    with server, Etcd(server.endpoint):
        where = ("--etcd", server.endpoint, "--service", "s", "--ttl", 5)
        address = f"etcd://{server.endpoint}/s"
        with (
            python_teacher("Sums", *where, delay=0.01),
            DistillReader(["img", "label"], ["prob"], source, address) as reader,
        ):
            for number, (img, label, prob) in enumerate(reader):
                assert label == number
                assert (prob[:, 0] == img.sum(axis=1)).all()
                if number == 20:
                    server.kill()
                if number == 80:
                    server.start()
            assert number == COUNT - 1
            assert reader.stats()["lost_teachers"] == 0
