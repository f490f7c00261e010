"""It goes on, or it ends with a reason; and whatever is left behind ends by itself."""

import contextlib
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edl.discovery import Registration
from edl.discovery.embedded import EmbeddedEtcd, free_port
from edl.discovery.keys import STUDENTS, service_prefix
from edl.discovery.watch import list_prefix
from edl.distill import DistillReader, Limits
from edl.errors import BatchRefused, ConfigError, NoTeacherError, ReaderError
from edl.serving import serve
from edl.serving.server.server import ServerOptions
from edl.serving.wire import frame
from tests.distill.test_bad_teachers import BadTeacher, respond
from tests.support import reference
from tests.support.processes import ROOT, Teacher, children_of, eventually, python_teacher


def images(count, rows=4):
    for number in range(count):
        yield np.full((rows, 3), number, "f4"), number


def check(batches, first=0):
    """Each batch in its turn, with its own labels; how many there were."""
    count = 0
    for count, (img, number, prob) in enumerate(batches, 1):
        assert number == first + count - 1
        assert (prob[:, 0] == img.sum(axis=1)).all()
    return count


def reader_of(teachers, source=lambda: images(10**6), **options):
    return DistillReader(["img", "label"], ["prob"], source=source, teachers=teachers, **options)


def sums(port=0, delay=lambda: 0.0):
    def model(img):
        time.sleep(delay())
        total = img.sum(axis=1)
        return np.stack([total, 2 * total], axis=1)

    return serve(
        model,
        {"img": ((-1,), "float32")},
        {"prob": ((2,), "float32")},
        options=ServerOptions(port=port, input_bytes=1 << 20),
    )


def threads():
    """Those of readers, not those of teachers that are served in this process."""
    ours = ("edl-s", "edl-r", "edl-w", "edl-b", "edl-etcd")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)]


def sockets():
    folder = "/proc/self/fd"
    links = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"{folder}/{name}"))
    return sum(link.startswith("socket:") for link in links)


def students(etcd, service):
    return list(list_prefix(etcd, service_prefix(service) + STUDENTS)[0])


# --- teachers that freeze -----------------------------------------------------------------------

#: Longer than the lease, so that a frozen teacher has left the registry before it is overdue.
PATIENT = Limits(min_timeout=3.0, max_timeout=3.0, hedge_min=1e6)


def test_a_teacher_that_freezes_and_leaves_the_registry_holds_nothing_up(etcd_server, service):
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 1)
    address = f"etcd://{etcd_server.endpoint}/{service}"
    with (
        python_teacher("Sums", *where, delay=0.02) as frozen,
        python_teacher("Sums", *where, delay=0.02) as other,
        reader_of(address, lambda: images(300), limits=PATIENT) as reader,
    ):
        batches = iter(reader)
        first = [next(batches) for _ in range(10)]
        eventually(lambda: reader.stats()["teachers"].get(frozen.endpoint, {}).get("in_flight"))
        frozen.kill(signal.SIGSTOP)
        assert check(first) + check(batches, 10) == 300
        eventually(lambda: reader.stats()["teachers"].keys() == {other.endpoint})


def test_the_only_teacher_freezes_and_leaves_the_registry_and_the_reader_says_so(
    etcd_server, service
):
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 1)
    address = f"etcd://{etcd_server.endpoint}/{service}"
    with (
        python_teacher("Sums", *where, delay=0.02) as frozen,
        reader_of(address, limits=PATIENT, no_teacher_timeout=0.5) as reader,
    ):
        batches = iter(reader)
        check([next(batches) for _ in range(10)])
        frozen.kill(signal.SIGSTOP)
        with pytest.raises(
            NoTeacherError, match=f"no teacher is registered for service '{service}'"
        ):
            check(batches, 10)


def test_connections_that_end_while_answers_arrive_lock_nothing_up():
    """Time-outs end connections at the moment when their answers come."""
    chance = random.Random(7)
    limits = Limits(min_timeout=0.02, max_timeout=0.02, max_attempts=10**6, min_window=4)
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(sums(delay=lambda: chance.choice([0.0, 0.0, 0.018, 0.022])))
            for _ in range(3)
        ]
        teachers = [server.endpoint for server in slow]
        until, epochs = time.monotonic() + 2.5, 0
        while time.monotonic() < until:
            with reader_of(teachers, limits=limits) as reader:
                for _ in range(3):
                    batches = iter(reader)
                    check([next(batches) for _ in range(chance.randrange(12))])
                    batches.close()
                    epochs += 1
        assert epochs > 3
    eventually(lambda: threads() == [])


# --- finalizers ---------------------------------------------------------------------------------


class Trainer:
    """A student whose source asks its reader for the epoch: a cycle, and in ``batches`` another."""

    def __init__(self, teachers):
        self.reader = reader_of(teachers, self.source)
        self.batches = iter(self.reader)
        next(self.batches)

    def source(self):
        for number in range(10**6):
            assert self.reader.epoch == 0
            yield np.full((4, 3), number, "f4"), number


class ClosingTrainer(Trainer):
    """Closes its reader when it is deleted, in whatever thread that is."""

    def __del__(self):
        self.reader.close()


@pytest.fixture
def collecting():
    """The collector runs at almost every allocation, in every thread, whatever locks it holds."""
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*threshold)


@pytest.mark.parametrize("kind", [Trainer, ClosingTrainer])
def test_a_reader_that_is_dropped_in_mid_epoch_ends_whoever_collects_it(
    sums_teacher, etcd, etcd_server, service, kind, collecting
):
    gc.collect()
    before = sockets()
    registration = Registration(etcd, service, sums_teacher.endpoint, "{}")
    registration.start()
    with reader_of(sums_teacher.endpoint) as other:
        batches = iter(other)
        for number in range(4):
            teachers = sums_teacher.endpoint
            kind(teachers if number else f"etcd://{etcd_server.endpoint}/{service}")
            check([next(batches) for _ in range(20)], 20 * number)
        assert students(etcd, service) is not None
        gc.set_threshold(700, 10, 10)
        eventually(lambda: gc.collect() is not None and threads().count("edl-supervise") == 1, 15)
        batches.close()
    registration.stop()
    eventually(lambda: threads() == [])
    eventually(lambda: students(etcd, service) == [])
    eventually(lambda: sockets() <= before + 2)


EXIT = """
import sys, numpy as np
from edl.distill import DistillReader
def source():
    for i in range(10**6):
        assert reader.epoch == 0
        yield np.full((4, 3), i, "f4"), i
reader = DistillReader(["img", "label"], ["prob"], source=source, teachers=sys.argv[1])
batches = iter(reader)
for _ in range(20):
    next(batches)
print("reading", flush=True)
sys.stdin.readline()
"""


def test_a_program_that_ends_in_mid_epoch_ends_at_once_and_leaves_the_registry(
    sums_teacher, etcd, etcd_server, service
):
    registration = Registration(etcd, service, sums_teacher.endpoint, "{}")
    registration.start()
    process = subprocess.Popen(
        [sys.executable, "-c", EXIT, f"etcd://{etcd_server.endpoint}/{service}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdout.readline() == "reading\n"
    assert len(students(etcd, service)) == 1
    started = time.monotonic()
    _, errors = process.communicate("\n", timeout=20)
    assert time.monotonic() - started < 4
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert students(etcd, service) == []
    registration.stop()


# --- a student that keeps the interpreter to itself ---------------------------------------------


def test_a_call_that_keeps_the_interpreter_to_itself_costs_no_teacher(sums_teacher):
    usleep = ctypes.PyDLL(None).usleep  # PyDLL: with the GIL
    limits = Limits(min_timeout=1.0, max_timeout=1.0, high_batches=10**6, hedge_min=1e6)
    with (
        python_teacher(delay=0.005) as slow,
        reader_of([slow.endpoint, sums_teacher.endpoint], limits=limits) as reader,
    ):
        batches = iter(reader)
        check([next(batches) for _ in range(100)])
        usleep(3_000_000)
        check([next(batches) for _ in range(100)], 100)
        stats = reader.stats()
    assert (stats["lost_teachers"], stats["resent"]) == (0, 0)
    assert len(stats["teachers"]) == 2


# --- waiting for teachers -----------------------------------------------------------------------


def test_time_in_which_nobody_waits_for_a_teacher_does_not_count():
    port = free_port()
    with (
        contextlib.ExitStack() as stack,
        reader_of(f"127.0.0.1:{port}", lambda: images(20), no_teacher_timeout=1.5) as reader,
    ):
        with sums(port):
            assert check(reader) == 20
        time.sleep(2.0)  # an evaluation, without teachers
        threading.Timer(0.7, lambda: stack.enter_context(sums(port))).start()
        assert check(reader) == 20


def test_why_a_teacher_takes_no_work_is_in_the_log_and_in_the_error(tmp_path, monkeypatch, caplog):
    gone = tmp_path / "gone"
    monkeypatch.setenv("EDL_TEST_WITHDRAWN", str(gone))
    name = "tests.distill.loading:Withdrawn"
    with (
        Teacher("--python", name) as teacher,
        reader_of(teacher.endpoint, no_teacher_timeout=5.5) as reader,
    ):
        batches = iter(reader)
        check([next(batches) for _ in range(10)])
        gone.touch()
        for child in children_of(teacher.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with pytest.raises(NoTeacherError, match=r"no worker can be started.*the weights are gone"):
            check(batches, 10)
    assert "has waited 5 s" in caplog.text
    assert f"{teacher.endpoint} takes no work (busy: no worker can be started" in caplog.text


def refuse(code, text):
    return lambda conn, meta, feeds: respond(conn, meta, [], code, text)


def test_a_teacher_that_refuses_beside_one_that_is_busy_for_ever_ends_with_both_reasons():
    refusing, busy = (
        BadTeacher(refuse(frame.EREQUEST, "img: too dark")),
        BadTeacher(refuse(frame.ELIMIT, "full")),
    )
    with (
        reader_of([refusing.endpoint, busy.endpoint], no_teacher_timeout=2.0) as reader,
        pytest.raises(ReaderError, match=r"full"),
    ):
        next(iter(reader))
    refusing.close()
    busy.close()


# --- errors that a Paddle Serving answers -------------------------------------------------------

WORDS = "InvalidArgumentError: The axis is expected to be in range of [-2, 2)"


def err_no(conn, meta, feeds):
    message = reference.Response(err_no=5000, err_msg=WORDS)
    respond(conn, meta, [message.SerializeToString()])


ANSWERS = {"error -5": refuse(-5, WORDS), "err_no": err_no}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_servers_find_wrong_is_said_within_a_second_or_two(answer, count):
    servers = [BadTeacher(ANSWERS[answer]) for _ in range(count)]
    started = time.monotonic()
    with (
        reader_of([server.endpoint for server in servers]) as reader,
        pytest.raises(BatchRefused, match=r"InvalidArgumentError: The axis"),
    ):
        next(iter(reader))
    assert time.monotonic() - started < 3
    for server in servers:
        server.close()


@pytest.mark.parametrize("answer", ANSWERS)
def test_one_server_that_finds_everything_wrong_changes_nothing(answer, sums_teacher):
    bad = BadTeacher(ANSWERS[answer])
    with reader_of([bad.endpoint, sums_teacher.endpoint], lambda: images(200)) as reader:
        assert check(reader) == 200
    bad.close()


def test_a_server_that_is_restarted_again_and_again_is_used_at_once_each_time(
    etcd_server, etcd, service
):
    port = free_port()
    registration = Registration(etcd, service, f"127.0.0.1:{port}", "{}")
    registration.start()
    waits = []
    with (
        reader_of(f"127.0.0.1:{port}") as fixed,
        reader_of(f"etcd://{etcd_server.endpoint}/{service}") as found,
    ):
        iterations = [iter(fixed), iter(found)]
        for number in range(8):
            with sums(port):
                for batches in iterations:
                    started = time.monotonic()
                    check([next(batches)], number)
                    waits.append(time.monotonic() - started)
            time.sleep(0.8)
    registration.stop()
    assert max(waits[2:]) < 1.0, waits


# --- closing ------------------------------------------------------------------------------------


def blocking_source(block):
    yield from images(5)
    block.wait()


def test_close_takes_a_second_with_everything_frozen_and_the_rest_ends_by_itself(tmp_path, service):
    block = threading.Event()
    with (
        EmbeddedEtcd(tmp_path) as server,
        python_teacher("Sums", "--etcd", server.endpoint, "--service", service) as teacher,
    ):
        address = f"etcd://{server.endpoint}/{service}"
        readers = [
            reader_of(address),
            reader_of(address, lambda: blocking_source(block)),
            reader_of({"a": address, "b": address, "c": address}),
        ]
        iterations = [iter(reader) for reader in readers]
        for batches in iterations:
            next(batches)
        os.kill(server.pid, signal.SIGSTOP)
        teacher.kill(signal.SIGSTOP)
        time.sleep(0.3)
        took = []
        for reader in readers:
            started = time.monotonic()
            reader.close()
            took.append(time.monotonic() - started)
        block.set()
        os.kill(server.pid, signal.SIGCONT)
        teacher.kill(signal.SIGCONT)
        assert max(took) < 2.0, took
        eventually(lambda: threads() == [], 15)


# --- starts that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["etcd://10.0.0.1/svc", "etcd://10.0.0.1:2379/a/b"])
def test_an_address_that_cannot_work_is_refused_by_the_constructor(address):
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1|service name"):
        reader_of(address)


@pytest.mark.parametrize("once", [False, True], ids=["a function", "an iterator"])
@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"EDL_ETCD_USER": "root"}, "EDL_ETCD_USER and EDL_ETCD_PASSWORD go together"),
        ({"EDL_ETCD_CA_CERT": "/no/such.pem"}, "/no/such.pem"),
        ({"EDL_DISTILL_TRACE": "/no/such/trace.json"}, "/no/such/trace.json"),
    ],
)
def test_a_start_that_fails_leaves_nothing_and_fails_alike_the_next_time(
    variables, complaint, once, monkeypatch, etcd_server, service
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    source = images(3) if once else lambda: images(3)
    reader = reader_of(f"etcd://{etcd_server.endpoint}/{service}", source)
    for _ in range(3):
        with pytest.raises(ConfigError, match=complaint):
            next(iter(reader))
        eventually(lambda: threads() == [])
    for name in variables:
        monkeypatch.delenv(name)
    with sums() as teacher:
        reader.set_fixed_teacher(teacher.endpoint)
        assert check(reader) == 3
        reader.close()


def test_an_iteration_that_cannot_be_started_does_not_block_the_next(sums_teacher):
    with reader_of(sums_teacher.endpoint, lambda: images(5)) as reader:
        assert check(reader) == 5
        size = threading.stack_size(1 << 46)  # no thread can be started
        try:
            with pytest.raises(RuntimeError, match="thread"):
                next(iter(reader))
        finally:
            threading.stack_size(size)
        assert check(reader) == 5


# --- leaks --------------------------------------------------------------------------------------


def test_epochs_leave_nothing_behind(sums_teacher):
    def measure():
        gc.collect()
        return len(gc.get_objects()), len(os.listdir("/proc/self/fd")), threading.active_count()

    with reader_of(sums_teacher.endpoint, lambda: images(20)) as reader:

        def epochs(count):
            for number in range(count):
                batches = iter(reader)
                check(batches if number % 2 else [next(batches) for _ in range(3)])
                batches.close()
                if number % 10 == 9:
                    reader.close()

        epochs(20)
        before = measure()
        epochs(200)
        eventually(lambda: measure()[1:] <= before[1:])
        assert measure()[0] < before[0] + 2000
