"""A request's way in the trace: the student's times, and the teacher's laid between them."""

import json
import socket
import threading
import time
from collections import Counter, defaultdict

import numpy as np
import pytest

from edl.distill import DistillReader, TeacherPool
from edl.distill.timeline import parts_of
from edl.serving import TeacherClient, serve
from edl.serving.client.timing import Timing
from edl.serving.wire import frame
from edl.serving.wire import protobuf as pb
from edl.serving.wire.description import DESCRIBE_METHOD, Description, TensorSpec
from edl.serving.wire.messages import decode_request, encode_response
from edl.serving.wire.times import WANTED, ServerTimes, encode_times
from tests.serving.client.test_teacher import answer, receive

FEEDS, FETCHES = {"img": ((3,), "float32")}, {"prob": ((1,), "float32")}
SLOWLY = 0.05
COUNT, ROWS = 6, 4


def sums(img):
    return img.sum(axis=1, keepdims=True)


def slow_sums(img):
    time.sleep(SLOWLY)
    return sums(img)


def source():
    for number in range(COUNT):
        yield np.full((ROWS, 3), number, "f4"), np.full(ROWS, number)


@pytest.fixture(scope="module")
def slow_teacher():
    with serve(slow_sums, FEEDS, FETCHES) as teacher:
        yield teacher


class OldServer:
    """It speaks the protocol, and knows nothing of times unless it ``says`` so, when it answers
    with ``times``. ``asked``: the requests' messages.
    """

    def __init__(self, says=None, times=None):
        self.asked = []
        extra = {} if says is None else {"times": says}
        row = TensorSpec((3,), "float32"), TensorSpec((1,), "float32")
        self._description = Description({"img": row[0]}, {"prob": row[1]}, extra)
        self._times = times
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()

    def _accept(self):
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn):
        with conn:
            while header := conn.recv(frame.HEADER_SIZE, socket.MSG_WAITALL):
                body_size, meta_size = frame.parse_header(header)
                body = memoryview(receive(conn, body_size))
                meta, message = frame.parse_body(body, meta_size)
                if meta.method == DESCRIBE_METHOD:
                    payload = [self._description.to_json().encode()]
                else:
                    self.asked.append(bytes(message))
                    payload = encode_response({"prob": sums(decode_request(message).feeds["img"])})
                    payload += [] if self._times is None else [encode_times(self._times)]
                answer(conn, meta.correlation_id, payload)


def trace_of(teacher, path=None):
    """The events of a reader with this teacher, which reads everything."""
    with DistillReader(["img", "label"], ["prob"], source, teacher.endpoint, trace=path) as reader:
        for img, _, prob in reader:
            np.testing.assert_allclose(prob, sums(img))
    return json.loads(path.read_text()) if path is not None else []


def spans_of(events, teacher):
    """Of each of a teacher's rows: its spans as (name, start, end, args), in their order; ns."""
    said = {"name": f"teacher {teacher.endpoint}"}
    groups = {event["pid"] for event in events if event.get("args") == said}
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["pid"] in groups:
            start = round(event["ts"] * 1000)
            end = start + round(event["dur"] * 1000)
            rows[event["tid"]].append((event["name"], start, end, event["args"]))
    return [sorted(row, key=lambda span: (span[1], -span[2])) for row in rows.values()]


def check_nesting(row):
    open_spans = []
    for span in row:
        while open_spans and open_spans[-1][2] <= span[1]:
            open_spans.pop()
        assert not open_spans or span[2] <= open_spans[-1][2], (open_spans[-1], span)
        open_spans.append(span)


def requests_of(row):
    """Each request of a row with what lies in it, by name; several parts may have the same."""
    for whole in (span for span in row if "task" in span[3]):
        inner = defaultdict(list)
        for span in row:
            if span is not whole and whole[1] <= span[1] and span[2] <= whole[2]:
                inner[span[0]].append(span)
        yield whole, inner


def seconds(spans):
    return sum(end - start for _, start, end, _ in spans) / 1e9


def test_a_requests_parts_nest_and_add_up_to_its_time(slow_teacher, tmp_path):
    events = trace_of(slow_teacher, tmp_path / "trace.json")
    rows = spans_of(events, slow_teacher)
    number = 0
    for row in rows:
        check_nesting(row)
        for whole, inner in requests_of(row):
            number += 1
            student = [inner[name] for name in ("prepare", "send", "wire", "receive", "read")]
            outer = [span for spans in student for span in spans] + inner["teacher"]
            assert len(outer) == 7
            assert seconds(outer) == pytest.approx(seconds([whole]), abs=1e-7)
            at_teacher = [inner[name] for name in ("decode", "queue", "compute", "encode")]
            of_teacher = seconds([span for spans in at_teacher for span in spans])
            assert of_teacher == pytest.approx(seconds(inner["teacher"]), abs=1e-7)
            assert seconds(inner["compute"]) >= SLOWLY
            (teacher,) = inner["teacher"]
            assert (teacher[3]["requests"], teacher[3]["worker"]) == (1, 0)
            assert teacher[3]["batch rows"] == whole[3]["rows"] == ROWS
    assert number == COUNT


def test_arrows_lead_from_the_source_by_queue_and_teacher_to_the_student(slow_teacher, tmp_path):
    events = trace_of(slow_teacher, tmp_path / "trace.json")
    spans = [event for event in events if event["ph"] == "X"]

    def at(arrow):
        """The outermost span that an arrow starts from, passes or reaches."""
        same = [e for e in spans if (e["pid"], e["tid"]) == (arrow["pid"], arrow["tid"])]
        around = [e for e in same if e["ts"] <= arrow["ts"] < e["ts"] + e["dur"]]
        return max(around, key=lambda event: event["dur"])["name"]

    ways = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            ways[event["id"]].append(event)
    assert len(ways) == COUNT
    for number, way in ways.items():
        way.sort(key=lambda event: event["ts"])
        assert "".join(event["ph"] for event in way) == "sttf"
        assert [at(e) for e in way] == ["read", f"batch {number}", f"batch {number}", "wait"]


def test_a_request_that_waits_for_another_shows_it_in_the_teachers_queue(slow_teacher, tmp_path):
    rows = spans_of(trace_of(slow_teacher, tmp_path / "trace.json"), slow_teacher)
    queued = [seconds(inner["queue"]) for row in rows for _, inner in requests_of(row)]
    assert len(rows) > 1  # as many as were in flight together
    assert max(queued) > SLOWLY / 2  # two or more are in flight, and one is computed


def test_requests_of_a_teacher_pool_are_followed_too(slow_teacher, tmp_path):
    path = tmp_path / "trace.json"
    with TeacherPool(["prob"], slow_teacher.endpoint, trace=path) as pool:
        pool.infer({"img": np.ones((2, 3), "f4")})
    (row,) = spans_of(json.loads(path.read_text()), slow_teacher)
    ((whole, inner),) = requests_of(row)
    assert whole[0] == "request 0"
    assert seconds(inner["compute"]) >= SLOWLY


def test_a_request_that_fails_and_is_sent_again_waits_once_and_shows_twice(tmp_path):
    failing = [True]

    def at_first(img):
        if failing[0]:
            failing[0] = False
            raise ValueError("not yet")
        return sums(img)

    path = tmp_path / "trace.json"
    with serve(at_first, FEEDS, FETCHES) as teacher:
        events = trace_of(teacher, path)
        spans = [span for row in spans_of(events, teacher) for span in row if "task" in span[3]]
    assert Counter(span[0] for span in spans)["TeacherFailed"] == 1
    names = Counter(event["name"] for event in events if event["ph"] == "X")
    assert all(names[f"batch {number}"] == 2 for number in range(COUNT))  # in line, and answered


def test_an_old_server_is_asked_nothing_and_has_no_teachers_part(tmp_path):
    with OldServer() as server:
        rows = spans_of(trace_of(server, tmp_path / "trace.json"), server)
        names = {span[0] for row in rows for span in row if "task" not in span[3]}
        traced, server.asked = server.asked, []
        trace_of(server)
    assert names == {"prepare", "send", "wire and teacher", "receive", "read"}
    assert sorted(traced) == sorted(server.asked)  # byte by byte


def test_who_tells_times_is_asked_only_while_there_is_a_trace(tmp_path):
    def fields(messages):
        return {number for message in messages for number, *_ in pb.fields(memoryview(message))}

    with OldServer(says=1, times=ServerTimes(compute=1e-6)) as server:
        rows = spans_of(trace_of(server, tmp_path / "trace.json"), server)
        traced, server.asked = server.asked, []
        trace_of(server)
    assert fields(traced) == {1, 2, WANTED}
    assert fields(server.asked) == {1, 2}
    assert any(span[0] == "teacher" for row in rows for span in row)


def test_times_that_cannot_be_true_are_left_out(tmp_path):
    with OldServer(says=1, times=ServerTimes(queue=1e9)) as server:
        rows = spans_of(trace_of(server, tmp_path / "trace.json"), server)
    names = {span[0] for row in rows for span in row if "task" not in span[3]}
    assert names == {"prepare", "send", "wire and teacher", "receive", "read"}


def test_a_client_that_follows_a_request_hears_the_teachers_times(slow_teacher):
    done, timing = threading.Event(), Timing(ask=True)
    with TeacherClient(slow_teacher.endpoint) as client:
        feeds = {"img": np.ones((2, 3), "f4")}
        client.submit(feeds, ["prob"], lambda _: done.set(), timing=timing)
        assert done.wait(10)
    assert timing.server.compute >= SLOWLY
    assert timing.server.seconds <= timing.came - timing.sending
    assert timing.started <= timing.sending <= timing.came <= timing.received


# --- laid out, without a teacher ----------------------------------------------------------------


def laid(**times):
    timing = Timing(started=10.0, sending=11.0, sent=12.0, came=20.0, received=21.0)
    for name, value in times.items():
        setattr(timing, name, value)
    return {(span.name, span.start, span.end) for span in parts_of(timing, 22.0)}


def test_what_the_teacher_leaves_over_is_the_wires_as_much_there_as_back():
    parts = laid(server=ServerTimes(1.0, 2.0, 2.5, 0.5))
    assert {("wire", 12.0, 13.0), ("teacher", 13.0, 19.0), ("wire", 19.0, 20.0)} <= parts
    inner = {("decode", 13.0, 14.0), ("queue", 14.0, 16.0), ("compute", 16.0, 18.5)}
    assert inner | {("encode", 18.5, 19.0)} <= parts


def test_a_sender_that_noted_late_that_all_was_sent_does_not_hide_the_teachers_time():
    parts = laid(sent=19.5, server=ServerTimes(compute=6.0))
    assert {("send", 11.0, 14.0), ("wire", 14.0, 14.0), ("compute", 14.0, 20.0)} <= parts


@pytest.mark.parametrize("sent", [0.0, 99.0])
def test_an_answer_that_comes_before_the_sender_has_noted_anything(sent):
    assert ("wire and teacher", 11.0 if not sent else 20.0, 20.0) in laid(sent=sent)
