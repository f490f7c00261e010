"""Nothing is lost, doubled, misordered or mislabelled, whatever happens to the teachers and to the
network before them, at random, for a while.

``EDL_CHAOS_SECONDS`` and ``EDL_CHAOS_SEED`` choose how long the six tests last together and which
sequence they take (see scripts/chaos).
"""

import contextlib
import itertools
import json
import os
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest

from edl.distill import DistillReader, Limits, TeacherPool
from edl.distill.labels import row_seeds
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire.labels import LabelForm
from tests.support.chaos import Chaos, Proxies, Teachers, Zoo
from tests.support.predictors import Texts
from tests.support.processes import Registrar, eventually

paddle = pytest.importorskip("paddle")

TESTS = 6
SECONDS = float(os.environ.get("EDL_CHAOS_SECONDS", "42")) / TESTS
SEED = int(os.environ.get("EDL_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ROWS, BATCHES, WIDTH = 8, 40, 200
LIMITS = Limits(min_timeout=0.5, max_timeout=3.0, max_attempts=50)
SHORT_LIMITS = Limits(min_timeout=0.3, max_timeout=1.5, max_attempts=1000)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 180)]


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
        first = number % (1 << 16)  # so that float32 holds the sums exactly
        img = np.full((rows, WIDTH), first, "f4") + np.arange(rows, dtype="f4")[:, None]
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


AGAIN = f"chaos: scripts/chaos {TESTS * SECONDS:g} {SEED}"


@pytest.fixture
def say(capsys):
    """Print to the terminal: how to run this again, and what has happened."""

    def say(text):
        with capsys.disabled():
            print(f"\n{AGAIN}: {text}")

    return say


@pytest.fixture
def generator(request):
    """A generator of its own for each test, so that one alone runs as it does among the others."""
    print(AGAIN)  # is shown with a failure
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
    with (
        contextlib.closing(Zoo(generator, 2, *where)) as zoo,
        Chaos(SECONDS, generator, zoo) as chaos,
    ):
        count, summary = read_endless(address, chaos, LIMITS)
    say(f"{summary}; {chaos.events}")
    assert count > 50


def test_nor_when_the_network_stalls_cuts_throttles_and_refuses(distant, generator, say):
    _, proxies = distant
    with Chaos(SECONDS, generator, proxies) as chaos:
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
        Chaos(SECONDS, generator, *distant) as chaos,
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
    with Chaos(SECONDS, generator, *distant) as chaos:
        student = Student(generator, chaos, distant[1].endpoints)
        while not chaos.over.is_set() or student.taken or not student.counts["resumed"]:
            student.use_a_reader()
    say(f"{student.epoch} epochs, {student.counts}; {chaos.events}")


def test_nor_when_threads_ask_a_pool(distant, generator, say):
    limits = Limits(min_timeout=0.3, max_timeout=1.5, max_attempts=1000, hedge_share=0.2)
    teachers = distant[1].endpoints
    with (
        TeacherPool(
            ["prob"], teachers, teacher_batch_size=ROWS, max_outstanding=40, limits=limits
        ) as pool,
        Chaos(SECONDS, generator, *distant) as chaos,
    ):
        askers = [Asker(random.Random(generator.random()), pool, chaos.over) for _ in range(8)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        failures = [asker.failure for asker in askers if asker.failure]
        assert not failures, failures
        counts = {
            name: sum(asker.counts[name] for asker in askers)
            for name in ("answered", "cancelled", "mapped")
        }
        eventually(lambda: pool.stats()["outstanding"] == 0)
        stats = pool.stats()
    say(
        f"{counts}, lost {stats['lost_teachers']} teachers, {stats['resent']} tasks resent, "
        f"{stats['hedged']} hedged; {chaos.events}"
    )
    assert counts["answered"] > 50


def test_nor_are_sparse_labels_of_sequences_another_token_s(etcd_server, service, generator, say):
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 2)
    address = f"etcd://{etcd_server.endpoint}/{service}"
    form, counts = LabelForm(8, temperature=2.0, samples=4), Counter()
    names = [f"logits.{part}" for part in form.parts]
    with (
        contextlib.closing(Zoo(generator, 2, *where, predictor="Texts")) as zoo,
        Chaos(SECONDS, generator, zoo) as chaos,
        DistillReader(
            ["ids", "length", "number"], ["logits"], texts(chaos.over, generator), address,
            top_k=8, temperature=2.0, samples=4, lengths="length",
            teacher_batch_size=ROWS, limits=LIMITS,
        ) as reader,
    ):  # fmt: skip
        for batch in reader:
            ids, length = batch["ids"], batch["length"]
            assert batch["number"] == counts["batches"], "lost, doubled or out of order"
            real = np.arange(ids.shape[1]) < length[:, None]
            seeds = row_seeds([ids], epoch=0)
            expected = sparse_labels(Texts.logits(ids), form, seeds)
            for name, part in zip(names, form.parts):
                np.testing.assert_array_equal(batch[name][real], expected[part][real], name)
            counts.update(batches=1, tokens=int(real.sum()))
        stats = reader.stats()
    say(
        f"{dict(counts)}, lost {stats['lost_teachers']} teachers, {stats['resent']} tasks resent, "
        f"{stats['hedged']} hedged; {chaos.events}"
    )
    assert counts["batches"] > 50


def texts(over, generator):
    """Batches of rows of any length, filled up to any width, until ``over`` is set."""
    for number in itertools.takewhile(lambda _: not over.is_set(), itertools.count()):
        rows, width = generator.randrange(1, 2 * ROWS), generator.randrange(1, 30)
        length = np.array([generator.randrange(1, width + 1) for _ in range(rows)])
        ids = np.array([[generator.randrange(100) for _ in range(width)] for _ in range(rows)])
        yield {"ids": ids, "length": length, "number": number}


class Asker(threading.Thread):
    """Asks in every way until ``over``, and checks each answer."""

    def __init__(self, generator, pool, over):
        super().__init__()
        self._random, self._pool, self._over = generator, pool, over
        self.counts = dict.fromkeys(("answered", "cancelled", "mapped"), 0)
        self.failure = None

    def run(self):
        try:
            while not self._over.is_set():
                self._random.choice([self.ask, self.ask_many, self.map, self.cancel])()
        except BaseException as error:
            self.failure = error

    def requests(self, count):
        for _ in range(count):
            first = self._random.randrange(1 << 16)
            rows = np.arange(self._random.randrange(3 * ROWS), dtype="f4")[:, None]
            yield {"img": np.full((len(rows), WIDTH), first, "f4") + rows}

    def check(self, feeds, answer):
        assert answer["prob"].shape == (len(feeds["img"]), 2)
        assert (answer["prob"][:, 0] == feeds["img"].sum(axis=1)).all(), "mislabelled"
        self.counts["answered"] += 1

    def ask(self):
        (feeds,) = self.requests(1)
        self.check(feeds, self._pool.infer(feeds))

    def ask_many(self):
        asked = [(feeds, self._pool.submit(feeds)) for feeds in self.requests(10)]
        self._random.shuffle(asked)
        for feeds, future in asked:
            self.check(feeds, future.result())

    def map(self):
        kept, asked = itertools.tee(self.requests(20))
        take = self._random.randrange(25)
        answers = self._pool.map(asked)
        for feeds, answer in itertools.islice(zip(kept, answers), take):
            self.check(feeds, answer)
            self.counts["mapped"] += 1
        answers.close()

    def cancel(self):
        asked = [(feeds, self._pool.submit(feeds)) for feeds in self.requests(10)]
        for feeds, future in asked:
            if future.cancel():
                self.counts["cancelled"] += 1
            else:
                self.check(feeds, future.result())


class Student:
    """Reads epochs in pieces, by itself or through a DataLoader, without workers or with some, with
    one reader after the other, each of which goes on where the one before was left. ``taken``: the
    epoch's batches so far. ``pieces``: how they were read, and how many there were after each.
    """

    def __init__(self, generator, chaos, endpoints):
        self._random = generator
        self._chaos = chaos
        self._endpoints = endpoints
        self._state = None
        self._by_epoch = True
        self._workers = None
        self.epoch = 0
        self.taken = []
        self.pieces = []
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
        self._workers = self._random.choice([None, None, 0, 1, 2, 3])
        self.counts["in workers" if self._workers else "in process"] += 1
        before = len(self.taken)
        whole = self._take(self._begin(reader))
        self.pieces.append((self._by_epoch, self._workers, len(self.taken)))
        self._check(whole)
        if whole:
            self._next_epoch()
            return self._random.choice(["again", "resume"])
        if len(self.taken) > before and self._random.random() < 0.2:  # else it was not begun
            self.counts["left for good"] += 1
            self._next_epoch()
            return "again"
        return "resume"

    def _next_epoch(self):
        self.epoch, self.taken, self.pieces = self.epoch + 1, [], []

    def _begin(self, reader):
        if self._workers is None:
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
        assert len(set(labels)) == len(labels), f"doubled: {self.pieces}"
        if self._by_epoch:
            order = shuffled_by_epoch(self.epoch).batch_sampler
            assert self.taken == list(order)[: len(self.taken)], f"lost: {self.pieces}"
        if whole:
            assert sorted(labels) == EVERYTHING, f"lost: {self.pieces}"
