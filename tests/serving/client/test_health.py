"""Whether a server works, asked of servers that do not say what they serve."""

import contextlib
import socket
import threading

import pytest

from edl.errors import ConfigError, TeacherFailed
from edl.serving import serve
from edl.serving.client.entry import Entry
from edl.serving.client.health import HealthWatch, check
from edl.serving.wire import frame
from tests.support.processes import eventually
from tests.support.wire import receive

FETCHES = {"y": ((1,), "float32")}


@contextlib.contextmanager
def paddle_serving():
    """The endpoint of a server that knows no way to be asked what it serves, for one request."""

    def refuse():
        conn, _ = listener.accept()
        with conn:
            body_size, meta_size = frame.parse_header(receive(conn, frame.HEADER_SIZE))
            meta, _ = frame.parse_body(memoryview(receive(conn, body_size)), meta_size)
            refusal = frame.ResponseMeta(meta.correlation_id, frame.ENOSERVICE, "no such service")
            conn.sendall(b"".join(frame.encode_frame(refusal, [])))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_a_server_that_does_not_say_what_it_serves_answers_and_that_is_healthy():
    with paddle_serving() as endpoint:
        check(endpoint, Entry(), False, "", 5)


def test_but_what_to_probe_it_with_must_be_said():
    with paddle_serving() as endpoint:
        with pytest.raises(ConfigError, match=r"name its serving_client_conf\.prototxt"):
            check(endpoint, Entry(), True, "", 5)


def test_what_has_no_fixed_size_cannot_be_probed():
    with serve(lambda x: x[:, :1], {"x": ((-1,), "float32")}, FETCHES) as teacher:
        with pytest.raises(ConfigError, match="feed 'x' has no fixed size"):
            check(teacher.endpoint, Entry(), True, "", 5)


def test_a_watch_turns_with_one_good_check_and_with_several_bad_ones():
    works = threading.Event()

    def compute(x):
        if not works.is_set():
            raise RuntimeError("out of luck")
        return x

    with serve(compute, {"x": ((1,), "float32")}, FETCHES) as teacher:
        with pytest.raises(TeacherFailed, match="out of luck"):
            check(teacher.endpoint, Entry(), True, "", 5)
        watch = HealthWatch(teacher.endpoint, Entry(), probe=True, interval=0.05)
        watch.start()
        try:
            eventually(lambda: "out of luck" in watch.problem)
            assert not watch.healthy
            works.set()
            eventually(lambda: watch.healthy)
            assert not watch.problem
            works.clear()
            eventually(lambda: not watch.healthy)
            assert "out of luck" in watch.problem
        finally:
            watch.stop()
