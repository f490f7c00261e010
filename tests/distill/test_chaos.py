"""Nothing is lost, doubled, misordered or mislabelled, whatever happens to the teachers and to the
network before them, at random, for a while.

``EDL_CHAOS_SECONDS`` and ``EDL_CHAOS_SEED`` choose how long each test lasts and which sequence it
takes (see scripts/chaos).
"""

import contextlib
import json
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from edl.distill import DistillReader, Limits
from tests.support.processes import Registrar, python_teacher
from tests.support.proxy import Proxy

paddle = pytest.importorskip("paddle")

SECONDS = float(os.environ.get("EDL_CHAOS_SECONDS", "7"))
SEED = int(os.environ.get("EDL_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ROWS, BATCHES, WIDTH = 8, 40, 200
LIMITS = Limits(min_timeout=0.5, max_timeout=3.0, max_attempts=50)
SHORT_LIMITS = Limits(min_timeout=0.3, max_timeout=1.5, max_attempts=1000)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 180)]


# --- what happens -------------------------------------------------------------------------------


class Teachers:
    """Teachers that are stopped, continued and replaced by others at the same port."""

    def __init__(self, generator, count, *arguments):
        self._random = generator
        self._arguments = arguments
        self.teachers = []
        for _ in range(count):
            self.start(0.002)

    def start(self, delay, *more):
        self.teachers.append(python_teacher("Sums", *self._arguments, *more, delay=delay))

    @property
    def living(self):
        return [teacher for teacher in self.teachers if teacher.process.poll() is None]

    def happen(self):
        """One thing, at random; its name."""
        action = self._random.choice(self.actions())
        action(self._random.choice(self.living or [None]))
        return action.__name__

    def actions(self):
        return [self.stop, self.cont, self.replace] if len(self.living) > 1 else [self.cont]

    def stop(self, teacher):
        teacher.kill(signal.SIGSTOP)

    def cont(self, _):
        for teacher in self.living:
            teacher.kill(signal.SIGCONT)

    def replace(self, teacher):
        port = teacher.port
        teacher.close()
        self.teachers.remove(teacher)
        self.start(0.002, "--port", port)

    def calm(self):
        self.cont(None)

    def close(self):
        for teacher in self.teachers:
            teacher.close()


class Zoo(Teachers):
    """Teachers that also die, leave and come."""

    def actions(self):
        actions = [*super().actions(), self.add, self.add_slow]
        return [*actions, self.kill, self.drain] if len(self.living) > 1 else actions

    def kill(self, teacher):
        teacher.kill(signal.SIGKILL)

    def drain(self, teacher):
        teacher.kill(signal.SIGTERM)

    def add(self, _):
        if len(self.living) < 5:
            self.start(self._random.choice([0.0, 0.002, 0.01]))

    def add_slow(self, _):
        if len(self.living) < 5:
            self.start(0.2)


class Proxies:
    """A proxy before each teacher, whose behaviour changes, for all connections or for one."""

    def __init__(self, generator, teachers):
        self._random = generator
        self._proxies = [Proxy(teacher.endpoint) for teacher in teachers]

    @property
    def endpoints(self):
        return [proxy.endpoint for proxy in self._proxies]

    def happen(self):
        """One thing, at random; its name."""
        proxy = self._random.choice(self._proxies)
        kind, amount = self._random.choice(
            [
                *[("pass", 0)] * 4,
                ("stall", 0),
                ("stall-up", 0),
                ("stall-down", 0),
                ("throttle", self._random.choice([2000, 20000])),
                ("delay", self._random.uniform(0.0, 0.3)),
                ("cut", 0),
                ("cut", self._random.randrange(1, 40000)),
                ("refuse", 0),
            ]
        )
        if kind == "refuse" or self._random.random() < 0.5:
            proxy.every(kind, amount)
        else:
            proxy.one(self._random.randrange(100), kind, amount)
        return kind

    def calm(self):
        for proxy in self._proxies:
            proxy.every("pass")

    def close(self):
        for proxy in self._proxies:
            proxy.close()


class Chaos:
    """Lets something happen to its victims several times a second, for ``SECONDS``; then all is
    calm, and it is ``over``.
    """

    def __init__(self, generator, *victims):
        self._random = generator
        self._victims = victims
        self._between = threading.Lock()
        self._failed = None
        self._thread = threading.Thread(target=self._run)
        self.over = threading.Event()
        self.events = {}

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self._thread.join()
        assert self._failed is None, self._failed

    def workers(self, loader):
        """Begin an iteration of a DataLoader: while its workers are forked, which inherit every
        pipe there is, nobody else starts a process.
        """
        with self._between:
            return iter(loader)

    def _run(self):
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until and not self.over.is_set():
                time.sleep(self._random.uniform(0.02, 0.5) / len(self._victims))
                with self._between:
                    event = self._random.choice(self._victims).happen()
                self.events[event] = self.events.get(event, 0) + 1
            for victim in self._victims:
                victim.calm()
        except BaseException as error:
            self._failed = error
        finally:
            self.over.set()


# --- what is read -------------------------------------------------------------------------------


class Rows(paddle.io.Dataset):
    """img: its index everywhere; label: its index."""

    def __len__(self):
        return BATCHES * ROWS - 3

    def __getitem__(self, index):
        return np.full(WIDTH, index, "f4"), index


EVERYTHING = list(range(BATCHES * ROWS - 3))


def shuffled():
    """A source that is shuffled, anew in each epoch, by numpy's generator."""
    return paddle.io.DataLoader(Rows(), batch_size=ROWS, shuffle=True)


def shuffled_by_epoch(epoch=0):
    """The same, in an order that ``epoch`` determines."""
    sampler = paddle.io.DistributedBatchSampler(Rows(), ROWS, 1, 0, shuffle=True)
    sampler.set_epoch(epoch)
    return paddle.io.DataLoader(Rows(), batch_sampler=sampler)


def checked(batch):
    """The labels of a batch, when every row has its own prediction."""
    img, label, prob = (np.asarray(slot) for slot in batch)
    assert (img[:, 0] == label).all()
    assert prob.shape == (len(label), 2)
    assert (prob[:, 0] == WIDTH * label).all(), "mislabelled"
    return label.tolist()


def endless(finish, seed, lasts):
    """A source of batches of random size until ``finish`` is set; ``lasts`` gets their number."""
    generator, number = random.Random(seed), 0
    while not finish.is_set():
        rows = generator.randrange(0, 2 * ROWS)
        img = np.full((rows, WIDTH), number, "f4") + np.arange(rows, dtype="f4")[:, None]
        yield img, number
        number += 1
    lasts.append(number)


def make_reader(source, teachers, limits=SHORT_LIMITS):
    return DistillReader(["img", "label"], ["prob"], source, teachers, limits=limits)


def read_endless(teachers, chaos, limits):
    """Read until the chaos is over; how many batches, and what is to be said of it."""
    lasts, expected, longest = [], 0, 0.0
    source = endless(chaos.over, SEED, lasts)
    with make_reader(source, teachers, limits) as reader:
        reader.set_teacher_batch_size(ROWS)
        before = time.monotonic()
        for img, label, prob in reader:
            longest = max(longest, time.monotonic() - before)
            assert label == expected, "lost, doubled or out of order"
            assert prob.shape == (len(img), 2)
            assert (prob[:, 0] == img.sum(axis=1)).all(), "mislabelled"
            expected += 1
            before = time.monotonic()
        stats = reader.stats()
    assert [expected] == lasts
    return expected, (
        f"{expected} batches, lost {stats['lost_teachers']} teachers, {stats['resent']} tasks "
        f"resent, {stats['hedged']} hedged, longest wait {longest:.2f} s"
    )


@pytest.fixture
def say(capsys):
    """Print to the terminal: how to run this again, and what has happened."""

    def say(text):
        with capsys.disabled():
            print(f"\nchaos: seed {SEED}, {SECONDS:g} s each: {text}")

    return say


@pytest.fixture
def generator(request):
    """A generator of its own for each test, so that one alone runs as it does among the others."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def distant(generator):
    """Teachers, and the proxies before them."""
    with contextlib.closing(Teachers(generator, 3)) as teachers:
        with contextlib.closing(Proxies(generator, teachers.teachers)) as proxies:
            yield teachers, proxies


# --- the tests ----------------------------------------------------------------------------------


def test_nothing_is_lost_when_teachers_come_and_go(etcd_server, service, generator, say):
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 2)
    address = f"etcd://{etcd_server.endpoint}/{service}"
    with contextlib.closing(Zoo(generator, 2, *where)) as zoo, Chaos(generator, zoo) as chaos:
        count, summary = read_endless(address, chaos, LIMITS)
    say(f"{summary}; {chaos.events}")
    assert count > 50


def test_nor_when_the_network_stalls_cuts_throttles_and_refuses(distant, generator, say):
    _, proxies = distant
    with Chaos(generator, proxies) as chaos:
        count, summary = read_endless(proxies.endpoints, chaos, SHORT_LIMITS)
    say(f"{summary}; {chaos.events}")
    assert count > 50


def test_nor_when_workers_read_a_shuffled_source(etcd_server, service, distant, generator, say):
    servers = [word for endpoint in distant[1].endpoints for word in ("--server", endpoint)]
    register = ("--etcd", etcd_server.endpoint, "--service", service, *servers)
    address = f"etcd://{etcd_server.endpoint}/{service}"
    orders = []
    with (
        Registrar(*register, "--interval", 0.5, "--timeout", 1),
        Chaos(generator, *distant) as chaos,
    ):
        with make_reader(shuffled(), address) as reader:
            outer = paddle.io.DataLoader(reader, batch_size=None, num_workers=2)
            while not chaos.over.is_set() or len(orders) < 2:
                assert reader.epoch == len(orders)
                orders.append([label for batch in chaos.workers(outer) for label in checked(batch)])
                assert sorted(orders[-1]) == EVERYTHING, "lost or doubled"
    say(f"{len(orders)} epochs; {chaos.events}")
    assert orders[0] != orders[1], "each epoch is shuffled anew"


def test_nor_when_the_student_leaves_and_resumes(distant, generator, say):
    with Chaos(generator, *distant) as chaos:
        student = Student(generator, chaos, distant[1].endpoints)
        while not chaos.over.is_set() or student.taken or not student.counts["resumed"]:
            student.use_a_reader()
    say(f"{student.epoch} epochs, {student.counts}; {chaos.events}")


class Student:
    """Reads epochs in pieces, in this process or in workers, with one reader after the other, each
    of which goes on where the one before was left. ``taken``: the epoch's batches so far.
    """

    def __init__(self, generator, chaos, endpoints):
        self._random = generator
        self._chaos = chaos
        self._endpoints = endpoints
        self._state = None
        self._by_epoch = True
        self._workers = 0
        self.epoch = 0
        self.taken = []
        self.counts = dict.fromkeys(("in process", "in workers", "resumed", "left for good"), 0)

    def use_a_reader(self):
        """Some pieces, at least one, with a reader of their own."""
        if not self.taken:  # else the epoch's order stays of the kind that it was begun with
            self._by_epoch = self._random.random() < 0.5
        source = shuffled_by_epoch() if self._by_epoch else shuffled()
        with make_reader(source, self._endpoints) as reader:
            if self._state is not None:
                reader.load_state_dict(self._state)
                self.counts["resumed"] += len(self.taken) > 0
            assert reader.epoch == self.epoch
            while self._read_a_piece(reader, source) == "again":
                pass
            self._state = json.loads(json.dumps(reader.state_dict()))

    def _read_a_piece(self, reader, source):
        """Whether to go on with the same reader."""
        if self._by_epoch:
            source.batch_sampler.set_epoch(self.epoch)
        self._workers = self._random.choice([0, 0, 1, 2, 3])
        self.counts["in workers" if self._workers else "in process"] += 1
        whole = self._take(self._begin(reader))
        self._check(whole)
        if whole:
            self.epoch, self.taken = self.epoch + 1, []
            return self._random.choice(["again", "resume"])
        if self.taken and self._random.random() < 0.2:
            self.counts["left for good"] += 1
            self.epoch, self.taken = self.epoch + 1, []
            return "again"
        return "resume"

    def _begin(self, reader):
        if not self._workers:
            return iter(reader)
        loader = paddle.io.DataLoader(reader, batch_size=None, num_workers=self._workers)
        return self._chaos.workers(loader)

    def _take(self, batches):
        """Some of the batches, or all; whether the epoch is over."""
        for _ in range(self._random.choice([self._random.randrange(BATCHES), BATCHES + 1])):
            batch = next(batches, None)
            if batch is None:
                return True
            self.taken.append(checked(batch))
        return False

    def _check(self, whole):
        labels = [label for batch in self.taken for label in batch]
        assert len(set(labels)) == len(labels), "doubled"
        if self._by_epoch:
            order = shuffled_by_epoch(self.epoch).batch_sampler
            assert self.taken == list(order)[: len(self.taken)], "lost or out of order"
        if whole:
            assert sorted(labels) == EVERYTHING, "lost"
