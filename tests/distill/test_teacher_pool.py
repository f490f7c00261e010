"""Teachers that are asked without a reader: real ones, in processes that are killed and frozen."""

import asyncio
import contextlib
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest

from edl.discovery import Registration
from edl.discovery.embedded import free_port
from edl.discovery.keys import STUDENTS, service_prefix
from edl.discovery.watch import list_prefix
from edl.distill import Limits, TeacherPool
from edl.errors import (
    BatchRefused,
    ConfigError,
    NoTeacherError,
    PoolFull,
    ReaderError,
    SourceError,
)
from edl.serving import serve
from edl.serving.server.server import ServerOptions
from edl.serving.wire import frame
from tests.distill.test_bad_teachers import BadTeacher, respond
from tests.support.processes import ROOT, eventually, python_teacher

WIDTH = 3


def rows(number, count=4):
    """Rows that no other number has."""
    return np.full((count, WIDTH), number, "f4") + np.arange(count, dtype="f4")[:, None]


def check(answer, img):
    """Each row has its own sum."""
    assert answer["prob"].shape == (len(img), 2)
    assert (answer["prob"][:, 0] == img.sum(axis=1)).all()


def pool_of(*teachers, **options):
    endpoints = [getattr(teacher, "endpoint", teacher) for teacher in teachers]
    return TeacherPool(["prob"], endpoints, **options)


def nobody():
    """An address where no teacher is."""
    return f"127.0.0.1:{free_port()}"


def teacher_here(factor=1, fingerprint="", port=0, hook=lambda: None):
    """A server in this process: ``prob`` is ``factor`` times the sum of a row, twice."""

    def model(img):
        hook()
        total = factor * img.sum(axis=1)
        return np.stack([total, 2 * total], axis=1)

    return serve(
        model,
        {"img": ((-1,), "float32")},
        {"prob": ((2,), "float32")},
        fingerprint=fingerprint,
        options=ServerOptions(port=port, input_bytes=1 << 20),
    )


def threads():
    """Those of pools, not those of teachers that are served in this process."""
    ours = ("edl-s", "edl-r", "edl-w", "edl-b", "edl-etcd")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)]


# --- requests and answers -----------------------------------------------------------------------


@pytest.fixture
def pool(sums_teacher):
    with pool_of(sums_teacher, feeds=["img"]) as pool:
        yield pool


@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_a_request_has_any_number_of_rows(pool, count):
    check(pool.infer({"img": rows(7, count)}), rows(7, count))


@pytest.mark.parametrize("form", [dict, list, tuple, None])
def test_a_request_is_a_dict_or_a_sequence_or_the_only_slot(pool, form):
    img = rows(3)
    feeds = {dict: {"img": img, "other": np.zeros(4)}, list: [img], tuple: (img,), None: img}
    check(pool.infer(feeds[form]), img)


def test_requests_larger_than_the_teachers_batch_are_cut_and_joined(sums_teacher):
    with pool_of(sums_teacher, teacher_batch_size=8) as pool:
        for count in (1, 7, 8, 9, 64, 100):
            check(pool.infer({"img": rows(count, count)}), rows(count, count))
        assert pool.stats()["tasks_sent"] == 1 + 1 + 1 + 2 + 8 + 13
        assert pool.stats()["rows"] == 189


def test_answers_are_tensors_where_the_feeds_are_or_as_is_said(sums_teacher):
    paddle = pytest.importorskip("paddle")
    img = rows(5)
    for said, given, kind in [
        (None, img, np.ndarray),
        (None, paddle.to_tensor(img), paddle.Tensor),
        ("np", paddle.to_tensor(img), np.ndarray),
        ("pd", img, paddle.Tensor),
    ]:
        with pool_of(sums_teacher, return_tensors=said) as pool:
            answer = pool.infer({"img": given})
            assert isinstance(answer["prob"], kind)
            check({"prob": np.asarray(answer["prob"])}, img)


def test_values_are_converted_to_what_the_teacher_takes_or_refused_by_name(pool):
    check(pool.infer({"img": rows(3).astype("i8")}), rows(3))
    with pytest.raises(SourceError, match=r"'img'.*cannot become float32"):
        pool.infer({"img": np.array([["a"]])})
    with pytest.raises(SourceError, match="the request has no 'img'; it has 'image'"):
        pool.infer({"image": rows(3)})
    with pytest.raises(SourceError, match="differ in their number of rows"):
        pool.submit({"img": rows(3), "label": np.zeros(3)})
    check(pool.infer({"img": rows(4)}), rows(4))


def test_what_the_teachers_refuse_fails_alone_and_has_their_words():
    with python_teacher("Fragile") as teacher, pool_of(teacher) as pool:
        good = [pool.submit({"img": rows(number)}) for number in range(10)]
        bad = pool.submit({"img": -1 - rows(0)})
        more = [pool.submit({"img": rows(number)}) for number in range(10, 20)]
        with pytest.raises(BatchRefused, match=r"rows 0 to 4 of request 10 .*negative input"):
            bad.result()
        for number, future in enumerate(good + more):
            check(future.result(), rows(number))


# --- threads ------------------------------------------------------------------------------------


def test_32_threads_ask_at_once_while_a_teacher_is_killed_and_replaced():
    failures, asked, stop = [], itertools.count(), threading.Event()
    limits = Limits(min_timeout=0.5)
    with contextlib.ExitStack() as stack:
        victim = stack.enter_context(python_teacher(delay=0.003))
        other = stack.enter_context(python_teacher(delay=0.003))
        port = victim.port
        pool = stack.enter_context(pool_of(victim, other, teacher_batch_size=4, limits=limits))

        def ask():
            try:
                while not stop.is_set():
                    number = next(asked)
                    img = rows(number, number % 11)
                    check(pool.infer({"img": img}), img)
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=ask) for _ in range(32)]
        for worker in workers:
            worker.start()
        eventually(
            lambda: pool.stats().get("teachers", {}).get(victim.endpoint, {}).get("in_flight")
        )
        victim.kill(signal.SIGKILL)
        victim.wait()
        eventually(lambda: pool.stats()["lost_teachers"] == 1)
        again = stack.enter_context(python_teacher("Sums", "--port", port, delay=0.003))
        eventually(lambda: pool.stats()["teachers"].get(again.endpoint, {}).get("answered"), 20)
        stop.set()
        for worker in workers:
            worker.join(30)
        assert not failures
        stats = pool.stats()
        assert stats["requests"] == next(asked)
        assert stats["outstanding"] == 0


def test_a_frozen_teacher_keeps_nobody_waiting_for_long():
    limits = Limits(min_timeout=2.0, max_timeout=30.0)
    with (
        python_teacher(delay=0.005) as frozen,
        python_teacher(delay=0.005) as other,
        pool_of(frozen, other, limits=limits) as pool,
    ):
        list(pool.map({"img": rows(number)} for number in range(100)))
        assert len(pool.stats()["teachers"]) == 2
        futures = [pool.submit({"img": rows(number)}) for number in range(40)]
        frozen.kill(signal.SIGSTOP)
        more = [pool.submit({"img": rows(number)}) for number in range(40, 80)]
        for number, future in enumerate(futures + more):
            check(future.result(20), rows(number))
        eventually(lambda: list(pool.stats()["teachers"]) == [other.endpoint])
        assert pool.stats()["outstanding"] == 0


def test_a_slow_teachers_request_is_hedged_and_the_second_answer_is_a_duplicate():
    slow = threading.Event()

    def hook():
        if slow.is_set():
            time.sleep(1.0)

    with (
        teacher_here(hook=hook) as one,
        teacher_here() as two,
        pool_of(one, two, limits=Limits(hedge_min=0.02)) as pool,
    ):
        list(pool.map({"img": rows(number)} for number in range(60)))
        slow.set()
        futures = [pool.submit({"img": rows(number)}) for number in range(20)]
        for number, future in enumerate(futures):
            check(future.result(10), rows(number))
        assert pool.stats()["hedged"] >= 1
        eventually(lambda: pool.stats()["duplicates"] >= 1)


# --- map ----------------------------------------------------------------------------------------


def test_map_keeps_the_order_while_teachers_die_freeze_and_come_back():
    count, limits = 600, Limits(min_timeout=0.5)
    with contextlib.ExitStack() as stack:
        teachers = [stack.enter_context(python_teacher(delay=0.004)) for _ in range(3)]
        pool = stack.enter_context(pool_of(*teachers, teacher_batch_size=3, limits=limits))
        sizes = [number % 8 for number in range(count)]
        requests = ({"img": rows(number, size)} for number, size in enumerate(sizes))
        number = -1
        for number, answer in enumerate(pool.map(requests)):
            check(answer, rows(number, sizes[number]))
            if number == 150:
                teachers[0].kill(signal.SIGKILL)
            if number == 300:
                teachers[1].kill(signal.SIGSTOP)
                port = teachers[0].port
                teachers[0].wait()
                stack.enter_context(python_teacher("Sums", "--port", port, delay=0.004))
            if number == 450:
                teachers[1].kill(signal.SIGCONT)
        assert number + 1 == count


def test_map_reads_no_further_than_teachers_have_room(sums_teacher):
    read = []

    def requests():
        for number in range(10_000):
            read.append(number)
            yield {"img": rows(number)}

    with pool_of(sums_teacher) as pool:
        answers = pool.map(requests())
        assert not read
        ahead = []
        for number in range(300):
            check(next(answers), rows(number))
            ahead.append(len(read) - number - 1)
        limits = Limits()
        assert max(ahead) <= 1.5 * limits.max_window + limits.high_batches + 2
        answers.close()
        eventually(lambda: pool.stats()["outstanding"] == 0)
        check(pool.infer({"img": rows(1)}), rows(1))


def test_map_without_reading_ahead_asks_one_after_the_other(pool):
    read = []

    def requests():
        for number in range(20):
            read.append(number)
            yield {"img": rows(number)}

    for number, answer in enumerate(pool.map(requests(), ahead=0)):
        check(answer, rows(number))
        assert len(read) == number + 1
    with pytest.raises(ConfigError, match="ahead"):
        pool.map([], ahead=-1)


def test_errors_of_map_come_in_their_turn(pool):
    def requests():
        yield {"img": rows(0)}
        yield {"image": rows(1)}
        yield {"img": rows(2)}

    answers = pool.map(requests())
    check(next(answers), rows(0))
    with pytest.raises(SourceError, match="no 'img'"):
        next(answers)
    with pytest.raises(StopIteration):
        next(answers)


# --- room ---------------------------------------------------------------------------------------


def test_submit_waits_for_room_says_so_and_gives_up_when_it_is_told_to(caplog):
    with pool_of(nobody(), max_outstanding=2) as pool:
        for number in range(2):
            pool.submit({"img": rows(number)}, timeout=0)
        words = r"no room for a request within 0\.. s, 2 are outstanding: no teacher is connected"
        with pytest.raises(PoolFull, match=words):
            pool.submit({"img": rows(2)}, timeout=0)
        with pytest.raises(PoolFull, match=r"within 5\.. s"):
            pool.submit({"img": rows(2)}, timeout=5.5)
        assert "a request has waited 5 s to be sent, 2 are outstanding" in caplog.text
        assert "the oldest of the requests to teachers has waited 5 s: no teacher" in caplog.text
        assert pool.stats()["outstanding"] == 2


def test_submit_goes_on_when_there_is_room():
    port = free_port()
    with pool_of(f"127.0.0.1:{port}", max_outstanding=3) as pool, contextlib.ExitStack() as stack:
        threading.Timer(0.5, lambda: stack.enter_context(teacher_here(port=port))).start()
        futures = [pool.submit({"img": rows(number)}) for number in range(50)]
        for number, future in enumerate(futures):
            check(future.result(10), rows(number))


def test_bytes_that_are_held_count_too():
    big = np.zeros((100, 1000), "f4")
    with pool_of(nobody(), limits=Limits(max_bytes=700_000)) as pool:
        for _ in range(2):
            pool.submit({"img": big}, timeout=0)
        with pytest.raises(PoolFull):
            pool.submit({"img": big}, timeout=0)


def test_a_callback_may_ask_again_but_not_wait(sums_teacher):
    with pool_of(sums_teacher) as pool:
        found = {}

        def ask_again(future):
            check(future.result(), rows(0))
            found["future"] = pool.submit({"img": rows(1)})
            try:
                pool.infer({"img": rows(2)})
            except ReaderError as error:
                found["error"] = str(error)

        pool.submit({"img": rows(0)}).add_done_callback(ask_again)
        eventually(lambda: "error" in found)
        check(found["future"].result(10), rows(1))
        assert "would wait for itself" in found["error"]


def test_a_callback_that_fails_keeps_nobody_from_an_answer(pool):
    def leave(_):
        raise SystemExit

    first = pool.submit({"img": rows(0)})
    first.add_done_callback(leave)
    check(pool.submit({"img": rows(1)}).result(10), rows(1))


# --- without teachers ---------------------------------------------------------------------------


def test_without_a_teacher_each_request_fails_after_its_own_waiting():
    port = free_port()
    with pool_of(f"127.0.0.1:{port}", no_teacher_timeout=1.5) as pool:
        started = time.monotonic()
        first = pool.submit({"img": rows(0)})
        time.sleep(1.0)
        second = pool.submit({"img": rows(1)})
        with pytest.raises(NoTeacherError, match=r"no teacher for 2 s.*127\.0\.0\.1"):
            first.result(10)
        assert not second.done()
        with pytest.raises(NoTeacherError):
            second.result(10)
        assert time.monotonic() - started >= 2.5
        third = pool.submit({"img": rows(2)})
        with teacher_here(port=port):
            check(third.result(10), rows(2))


def test_a_request_that_no_teacher_takes_fails_although_others_are_answered_all_the_time(caplog):
    """One teacher refuses it, and the other, which does not, is busy for ever."""
    busy = BadTeacher(lambda conn, meta, feeds: respond(conn, meta, [], frame.ELIMIT, "full"))
    done = threading.Event()

    def ask():
        while not done.is_set():
            pool.infer({"img": rows(1)})

    with python_teacher("Fragile") as teacher, pool_of(teacher, busy, no_teacher_timeout=6) as pool:
        pool.infer({"img": rows(0)})
        eventually(lambda: len(pool.stats()["teachers"]) == 2)
        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        negative = pool.submit({"img": -1 - rows(0)})
        with pytest.raises(ReaderError, match="full"):
            negative.result(30)
        done.set()
        for asker in askers:
            asker.join(30)
    busy.close()
    assert "the oldest of the requests to teachers has waited 5 s" in caplog.text


def test_time_in_which_nobody_asks_does_not_count():
    port = free_port()
    with pool_of(f"127.0.0.1:{port}", no_teacher_timeout=1.0) as pool:
        with teacher_here(port=port):
            check(pool.infer({"img": rows(0)}), rows(0))
        time.sleep(1.5)
        future = pool.submit({"img": rows(1)})
        with teacher_here(port=port):
            check(future.result(10), rows(1))


def test_if_no_teacher_fits_all_that_wait_are_told_why(sums_teacher):
    with TeacherPool(["logits"], sums_teacher.endpoint) as pool:
        futures = [pool.submit({"img": rows(0)}) for _ in range(3)]
        for future in futures:
            with pytest.raises(ReaderError, match="it serves 'prob', but predicts names 'logits'"):
                future.result(10)
    with pool_of(sums_teacher, feeds=["image"]) as pool:
        with pytest.raises(ReaderError, match="'img' is missing"):
            pool.infer([rows(0)])


# --- cancelling ---------------------------------------------------------------------------------


def test_a_future_that_is_cancelled_is_withdrawn_and_those_who_wait_are_told():
    with pool_of(nobody()) as pool:
        futures = [pool.submit({"img": rows(number)}) for number in range(3)]
        assert futures[1].cancel()
        assert wait([futures[1]], timeout=5).done
        eventually(lambda: pool.stats()["outstanding"] == 2)
        with pytest.raises(CancelledError):
            futures[1].result()


def test_the_answer_to_what_was_withdrawn_is_no_duplicate():
    released = threading.Event()
    computed = []

    def hook():
        computed.append(None)
        released.wait(20)

    with teacher_here(hook=hook) as teacher, pool_of(teacher) as pool:
        futures = [pool.submit({"img": rows(number)}) for number in range(3)]
        eventually(lambda: computed)
        for future in futures:
            assert future.cancel()
        eventually(lambda: pool.stats()["outstanding"] == 0)
        released.set()
        check(pool.infer({"img": rows(9)}), rows(9))
        stats = pool.stats()
        assert (stats["requests"], stats["duplicates"]) == (1, 0)
        assert stats["teachers"][teacher.endpoint]["in_flight"] == 0


def test_a_wait_that_is_interrupted_withdraws_its_request():
    with pool_of(nobody()) as pool:

        def interrupt():
            eventually(lambda: pool.stats().get("outstanding"))
            time.sleep(0.2)  # until it waits
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            pool.infer({"img": rows(0)})
        eventually(lambda: pool.stats()["outstanding"] == 0)


def test_asyncio_waits_for_futures_and_cancels_them(sums_teacher):
    async def ask(pool):
        asked = [asyncio.wrap_future(pool.submit({"img": rows(n)})) for n in range(50)]
        return await asyncio.gather(*asked)

    async def ask_for_a_while(pool):
        future = asyncio.wrap_future(pool.submit({"img": rows(0)}))
        await asyncio.wait_for(future, 0.3)

    with pool_of(sums_teacher) as pool:
        for number, answer in enumerate(asyncio.run(ask(pool))):
            check(answer, rows(number))
    with pool_of(nobody()) as pool:
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(ask_for_a_while(pool))
        eventually(lambda: pool.stats()["outstanding"] == 0)


# --- the end ------------------------------------------------------------------------------------


def test_what_is_outstanding_when_a_pool_is_closed_fails_and_so_does_what_comes_later(caplog):
    pool = pool_of(nobody(), max_outstanding=2)
    futures = [pool.submit({"img": rows(number)}) for number in range(2)]
    waiting = []

    def submit():
        try:
            pool.submit({"img": rows(2)})
        except ReaderError as error:
            waiting.append(str(error))

    blocked = threading.Thread(target=submit)
    blocked.start()
    time.sleep(0.2)
    pool.close()
    for future in futures:
        assert future.done()
        with pytest.raises(ReaderError, match="closed before this request was answered"):
            future.result()
    assert futures[0].exception() is not futures[1].exception()
    blocked.join(10)
    assert waiting == ["this TeacherPool was closed"]
    for ask in (pool.submit, pool.infer, pool.map):
        with pytest.raises(ReaderError, match="this TeacherPool was closed"):
            ask({"img": rows(0)})
    pool.close()
    assert pool.stats()["outstanding"] == 0
    eventually(lambda: threads() == [])


def test_nothing_is_started_before_the_first_request(sums_teacher):
    before = threads()
    pool = pool_of(sums_teacher)
    assert threads() == before
    assert pool.stats() == {}
    pool.close()
    with pytest.raises(ReaderError, match="closed"):
        pool.infer({"img": rows(0)})


class Owner:
    """Refers to its pool, which is asked by something that refers to it: a cycle."""

    def __init__(self, teacher):
        self.pool = pool_of(teacher)
        self.answers = self.pool.map(self.requests())
        check(next(self.answers), rows(0))
        self.future = self.pool.submit({"img": rows(0)})
        self.future.add_done_callback(lambda _: self)

    def requests(self):
        for number in itertools.count():
            assert self.pool is not None
            yield {"img": rows(number)}


@pytest.fixture
def collecting():
    """The collector runs at almost every allocation, in every thread, whatever locks it holds."""
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*threshold)


def test_pools_that_are_dropped_end_whoever_collects_them(sums_teacher, collecting):
    with pool_of(sums_teacher) as other:
        for _ in range(5):
            Owner(sums_teacher)
            for number, answer in enumerate(other.map({"img": rows(n)} for n in range(20))):
                check(answer, rows(number))
        gc.set_threshold(700, 10, 10)
        eventually(lambda: gc.collect() is not None and threads().count("edl-supervise") == 1, 15)
    eventually(lambda: threads() == [])


def test_a_pool_that_is_dropped_with_requests_outstanding_answers_them_with_an_error():
    future = pool_of(nobody()).submit({"img": rows(0)})
    gc.collect()
    with pytest.raises(ReaderError, match="closed before this request was answered"):
        future.result(10)
    eventually(lambda: threads() == [])


EXIT = """
import sys, numpy as np
from edl.distill import TeacherPool
pool = TeacherPool(["prob"], sys.argv[1])
pool.infer({"img": np.zeros((4, 3), "f4")})
other = TeacherPool(["prob"], "127.0.0.1:1")
futures = [p.submit({"img": np.zeros((4, 3), "f4")}) for p in (pool, other) for _ in range(5)]
answers = pool.map({"img": np.zeros((4, 3), "f4")} for _ in range(1000))
next(answers)
print("done")
"""


def test_a_program_that_ends_with_requests_outstanding_ends_at_once(sums_teacher):
    process = subprocess.run(
        [sys.executable, "-c", EXIT, sums_teacher.endpoint],
        capture_output=True,
        cwd=ROOT,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0
    assert process.stdout == "done\n"
    assert "Traceback" not in process.stderr


def test_a_process_that_was_forked_is_refused_and_leaves_the_pool_alone(sums_teacher):
    with pool_of(sums_teacher) as pool:
        check(pool.infer({"img": rows(0)}), rows(0))
        read, write = os.pipe()
        child = os.fork()
        if not child:
            said = []
            for ask in (pool.submit, pool.infer, pool.map):
                try:
                    ask({"img": rows(0)})
                except ReaderError as error:
                    said.append(str(error))
            pool.close()
            os.write(write, json.dumps(said).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = json.loads(pipe.read())
        assert os.waitpid(child, 0)[1] == 0
        words = f"was made by process {os.getpid()}, and connections do not survive a fork"
        assert len(said) == 3
        assert all(words in text for text in said)
        check(pool.infer({"img": rows(1)}), rows(1))


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"EDL_ETCD_USER": "root"}, "EDL_ETCD_USER and EDL_ETCD_PASSWORD go together"),
        ({"EDL_DISTILL_TRACE": "/no/such/trace.json"}, "/no/such/trace.json"),
    ],
)
def test_a_start_that_fails_leaves_nothing_and_can_be_tried_again(
    variables, complaint, monkeypatch, etcd_server, etcd, service, sums_teacher
):
    pool = TeacherPool(["prob"], f"etcd://{etcd_server.endpoint}/{service}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        with pytest.raises(ConfigError, match=complaint):
            pool.infer({"img": rows(0)})
        eventually(lambda: threads() == [])
    for name in variables:
        monkeypatch.delenv(name)
    registration = Registration(etcd, service, sums_teacher.endpoint, "{}")
    registration.start()
    with pool:
        check(pool.infer({"img": rows(0)}), rows(0))
    registration.stop()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"teachers": None}, "a TeacherPool needs teachers"),
        ({"max_outstanding": 0}, "max_outstanding"),
        ({"teacher_batch_size": 0}, "teacher_batch_size"),
        ({"max_teachers": 0}, "max_teachers"),
        ({"no_teacher_timeout": -1}, "no_teacher_timeout"),
        ({"serving_conf_file": "/no/such"}, "/no/such"),
        ({"return_tensors": "torch"}, "return_tensors"),
        ({"feeds": "img"}, "feeds must be a list of names"),
        ({"teachers": {}}, "teachers is a mapping that names none"),
        (
            {"teachers": {0: "h:1"}, "predicts": {1: ["prob"]}},
            "teachers are named 0, predicts 1",
        ),
        ({"route": "domain"}, "route needs teachers by name"),
        ({"route": ""}, "route must be the name of a feed, not ''"),
        (
            {"teachers": {"a": "h:1"}, "route": "domain", "feeds": ["img"]},
            "route is 'domain', which is not among feeds",
        ),
        (
            {
                "teachers": {"a": "h:1", "b": "h:2"},
                "predicts": {"a": ["prob"], "b": ["logits"]},
                "route": "domain",
            },
            "a has prob, b logits",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_the_constructor(arguments, words):
    with pytest.raises(ConfigError, match=words):
        TeacherPool(**{"predicts": ["prob"], "teachers": "h:1", **arguments})


# --- the registry -------------------------------------------------------------------------------


def students(etcd, service):
    found = list_prefix(etcd, service_prefix(service) + STUDENTS)[0]
    return [json.loads(value) for value in found.values()]


def test_pools_share_the_teachers_of_a_service_and_leave_it(etcd_server, etcd, service):
    address = f"etcd://{etcd_server.endpoint}/{service}"
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 3)
    with (
        python_teacher("Sums", *where) as one,
        python_teacher("Sums", *where) as two,
        TeacherPool(["prob"], address) as first,
        TeacherPool(["prob"], address) as second,
    ):
        stop = threading.Event()

        def ask(pool):
            number = 0
            while not stop.is_set():
                for answer in pool.map({"img": rows(n)} for n in range(number, number + 50)):
                    check(answer, rows(number))
                    number += 1

        workers = [threading.Thread(target=ask, args=(pool,)) for pool in (first, second)]
        for worker in workers:
            worker.start()
        used = [lambda pool=pool: set(pool.stats().get("teachers", ())) for pool in (first, second)]
        everybody = {one.endpoint, two.endpoint}
        eventually(
            lambda: len(used[0]()) == len(used[1]()) == 1 and used[0]() | used[1]() == everybody, 30
        )
        assert len(students(etcd, service)) == 2
        stop.set()
        for worker in workers:
            worker.join(30)
    eventually(lambda: students(etcd, service) == [])


def test_a_teacher_that_joins_is_used_and_one_that_is_killed_costs_nothing(etcd_server, service):
    address = f"etcd://{etcd_server.endpoint}/{service}"
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 2)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(python_teacher("Sums", *where, delay=0.005))
        pool = stack.enter_context(TeacherPool(["prob"], address))
        teachers = []
        answers = pool.map({"img": rows(number)} for number in itertools.count())
        for number, answer in enumerate(answers):
            check(answer, rows(number))
            if number == 100:
                teachers.append(stack.enter_context(python_teacher("Sums", *where, delay=0.005)))
            if number % 20 == 0 and teachers:
                used = pool.stats()["teachers"].get(teachers[0].endpoint, {"answered": 0})
                if used["answered"] > 10 and first.process.poll() is None:
                    first.kill()
                    first.wait()
                    until = number + 200
                if first.process.poll() is not None and number >= until:
                    break
        answers.close()


# --- one model ----------------------------------------------------------------------------------


def test_all_answers_are_of_one_model_until_another_is_allowed(caplog):
    port = free_port()
    limits = Limits(min_timeout=0.5)
    with pool_of(f"127.0.0.1:{port}", limits=limits, no_teacher_timeout=1.5) as pool:
        with teacher_here(1, "model:v1", port):
            check(pool.infer({"img": rows(1)}), rows(1))
        with teacher_here(2, "model:v2", port):
            words = "its model is model:v2, this epoch's is model:v1"
            with pytest.raises(NoTeacherError, match=words):
                pool.infer({"img": rows(1)})
            pool.allow_new_model()
            answer = pool.infer({"img": rows(1)})
            check({"prob": answer["prob"] / 2}, rows(1))
            assert pool.stats()["models"] == ["model:v1", "model:v2"]
    assert "the model is model:v2 from now on" in caplog.text


def test_the_model_stays_while_a_teacher_has_it():
    with teacher_here(1, "model:v1") as old, pool_of(old, nobody()) as pool:
        check(pool.infer({"img": rows(1)}), rows(1))
        pool.allow_new_model()
        check(pool.infer({"img": rows(2)}), rows(2))
        assert pool.stats()["models"] == ["model:v1"]


def test_an_answer_that_nobody_has_taken_decides_for_no_model():
    """The first half of a request is answered by one model, and then only another is there: the
    whole is answered by that one.
    """
    alone = ("Sums", "--max-batch-rows", 4)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(python_teacher(*alone, delay=1.0))
        pool = stack.enter_context(pool_of(first, teacher_batch_size=4))
        future = pool.submit({"img": rows(1, 8)})
        eventually(lambda: pool.stats()["teachers"].get(first.endpoint, {}).get("answered"))
        first.kill()
        first.wait()
        stack.enter_context(teacher_here(2, "model:v2", first.port))
        answer = future.result(10)
        check({"prob": answer["prob"] / 2}, rows(1, 8))
        assert len(pool.stats()["models"]) == 2


# --- several models -----------------------------------------------------------------------------


def test_rows_go_to_the_teachers_of_their_tag_and_come_back_in_their_order():
    limits = Limits(min_timeout=0.5)
    with contextlib.ExitStack() as stack:
        math = [stack.enter_context(python_teacher(delay=0.003)) for _ in range(2)]
        code = stack.enter_context(teacher_here(10, "model:code"))
        pool = stack.enter_context(
            TeacherPool(
                {"math": ["prob"], "code": ["prob"]},
                {"math": [teacher.endpoint for teacher in math], "code": code.endpoint},
                route="domain",
                teacher_batch_size=5,
                limits=limits,
            )
        )
        chance = np.random.default_rng(0)

        def requests():
            for number in range(300):
                img = rows(number, number % 13)
                yield {"img": img, "domain": chance.choice(["math", "code"], len(img))}

        kept, asked = itertools.tee(requests())
        for number, (feeds, answer) in enumerate(zip(kept, pool.map(asked))):
            factors = np.where(feeds["domain"] == "math", 1, 10)
            assert (answer["prob"][:, 0] == factors * feeds["img"].sum(axis=1)).all()
            if number == 100:
                math[0].kill(signal.SIGKILL)
        stats = pool.stats()
        assert stats["math"]["rows"] + stats["code"]["rows"] == sum(n % 13 for n in range(300))
        assert stats["math"]["lost_teachers"] == 1


def test_routed_requests_are_refused_with_words_and_cancelled_as_a_whole(sums_teacher):
    teachers = {"math": sums_teacher.endpoint, "code": nobody()}
    with TeacherPool(["prob"], teachers, feeds=["img", "domain"], route="domain") as pool:
        with pytest.raises(SourceError, match="'domain' of row 2 is 'law'"):
            pool.infer([rows(0), ["math", "code", "law", "math"]])
        with pytest.raises(SourceError, match="no 'domain'"):
            pool.submit({"img": rows(0)})
        check(pool.infer([rows(0), ["math"] * 4]), rows(0))
        both = pool.submit([rows(0), ["math", "code", "math", "code"]])
        eventually(lambda: pool.stats()["math"]["requests"] == 2)
        assert both.cancel()
        assert wait([both], timeout=5).done
        eventually(lambda: pool.stats()["code"]["outstanding"] == 0)


def test_answers_of_different_shapes_cannot_be_one(sums_teacher):
    def three(img):
        return np.zeros((len(img), 3), "f4")

    with serve(three, {"img": ((-1,), "float32")}, {"prob": ((3,), "float32")}) as other:
        teachers = {"math": sums_teacher.endpoint, "code": other.endpoint}
        with TeacherPool(["prob"], teachers, route="domain") as pool:
            with pytest.raises(ReaderError, match=r"'prob' has rows of float32 \(2,\) from math"):
                pool.infer({"img": rows(0), "domain": ["math", "code"] * 2})


def test_without_a_route_every_model_is_asked_about_every_row(sums_teacher):
    with teacher_here(10) as other:
        teachers = {"math": sums_teacher.endpoint, "code": other.endpoint}
        with TeacherPool(["prob"], teachers) as pool:
            answer = pool.infer({"img": rows(5)})
            assert list(answer) == ["math.prob", "code.prob"]
            check({"prob": answer["math.prob"]}, rows(5))
            check({"prob": answer["code.prob"] / 10}, rows(5))


# --- sight --------------------------------------------------------------------------------------


def test_the_trace_has_requests_teachers_and_waits(sums_teacher, tmp_path):
    path = tmp_path / "trace.json"
    with pool_of(sums_teacher, trace=path) as pool:
        pool.infer({"img": rows(0)})
        list(pool.map({"img": rows(number)} for number in range(3)))
    events = json.loads(path.read_text())
    names = {event["name"] for event in events}
    assert {"request 0", "request 3", "infer", "map", "requests outstanding"} <= names
    outstanding = [e["args"] for e in events if e["name"] == "requests outstanding"]
    assert outstanding[-1] == {"requests": 0}


def test_stats_count_what_was_asked(sums_teacher):
    with pool_of(sums_teacher) as pool:
        for number in range(5):
            pool.infer({"img": rows(number)})
        stats = pool.stats()
    assert (stats["requests"], stats["rows"], stats["outstanding"]) == (5, 20, 0)
    assert stats["bytes"] == 5 * (4 * 3 * 4 + 4 * 2 * 4)
    assert stats["teachers"][sums_teacher.endpoint]["answered"] == 5
    assert not {"batches", "buffer", "student_waited"} & stats.keys()
