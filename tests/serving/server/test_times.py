"""What a server says of where a request's time went."""

import threading
import time

import numpy as np
import pytest

from edl.errors import WireError
from edl.serving import TeacherClient, serve
from edl.serving.client.timing import Timing
from edl.serving.wire import protobuf as pb
from edl.serving.wire.messages import encode_request
from edl.serving.wire.times import TIMES, ServerTimes, decode_times, encode_times, encode_wish
from tests.support.wire import connect, post, receive, rpc

SLOWLY = 0.1
FEEDS, FETCHES = {"ids": ((-1,), "int64")}, {"sum": ((1,), "int64")}


def slow_sums(ids):
    time.sleep(SLOWLY)
    return ids.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def teacher():
    with serve(slow_sums, FEEDS, FETCHES) as teacher:
        yield teacher


def ask(client, ids, count=1):
    """``count`` requests, all sent before the first is answered; their times."""
    answered, timings = threading.Semaphore(0), []
    for _ in range(count):
        timings.append(Timing(ask=True))
        timing = timings[-1]
        client.submit({"ids": ids}, ["sum"], lambda _: answered.release(), timing=timing)
    for _ in range(count):
        assert answered.acquire(timeout=10)
    return [timing.server for timing in timings]


def test_requests_of_one_batch_say_how_large_it_was_and_that_they_waited(teacher):
    with TeacherClient(teacher.endpoint) as client:
        first, *others = ask(client, np.ones((2, 3), "i8"), count=4)
    assert (first.rows, first.requests, first.worker) == (2, 1, 0)
    assert {(times.rows, times.requests) for times in others} == {(6, 3)}
    assert all(times.queue > first.queue for times in others)
    assert all(times.compute >= SLOWLY for times in (first, *others))


def test_a_request_that_takes_long_to_decode_says_so(teacher):
    """Its integers are decoded in a process of their own, which is started for it."""
    with TeacherClient(teacher.endpoint) as client:
        (small,) = ask(client, np.ones((2, 3), "i8"))
        (large,) = ask(client, np.full((2, 400_000), 300))
    assert large.decode > small.decode
    assert large.compute >= SLOWLY


def test_an_answer_over_http_has_them_in_a_header(teacher):
    body = b"".join(bytes(part) for part in encode_request({"ids": np.ones((2, 3), "i8")}, []))
    with connect(teacher) as sock:
        sock.sendall(post(body))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += receive(sock, 1)
    (line,) = (line for line in head.decode().split("\r\n") if line.startswith("server-timing"))
    said = dict(part.split(";") for part in line.partition(": ")[2].split(", "))
    assert list(said) == ["decode", "queue", "compute", "encode", "batch", "worker"]
    assert float(said["compute"].removeprefix("dur=")) >= 1e3 * SLOWLY
    assert said["batch"] == 'desc="2 rows of 1 requests"'


def test_who_does_not_ask_gets_the_same_bytes_as_ever(teacher):
    message = b"".join(bytes(part) for part in encode_request({"ids": np.ones((2, 3), "i8")}, []))
    answers = []
    with connect(teacher) as sock:
        for request in (message, message, message + encode_wish()):
            sock.sendall(rpc(request))
            header = receive(sock, 12)
            answers.append(header + receive(sock, int.from_bytes(header[4:8], "big")))
    plain, again, told = answers
    assert plain == again
    assert told[12:].startswith(plain[12:])
    assert len(told) > len(plain)


def test_numbers_are_never_beyond_what_they_can_be():
    said = b"".join(pb.integer(field, (1 << 64) - 1) for field in (2, 5, 9, 99))
    times = decode_times(memoryview(said))
    assert times == ServerTimes(queue=((1 << 64) - 1) / 1e6, rows=(1 << 31) - 1)


@pytest.mark.parametrize("said", [b"\x0a\x01\x00", b"\x08", pb.integer(5, 1) * 65])
def test_times_that_are_malformed_are_an_error(said):
    with pytest.raises(WireError):
        decode_times(memoryview(said))


def test_times_travel_rounded_down_and_never_negative():
    times = ServerTimes(1.5e-6, -1.0, 2.0, 0.0, 32, 4, 1)
    ((number, _, content),) = pb.fields(memoryview(encode_times(times)))
    assert number == TIMES
    assert decode_times(content) == ServerTimes(1e-6, 0.0, 2.0, 0.0, 32, 4, 1)
