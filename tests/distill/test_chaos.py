"""Teachers killed, stopped, continued, slowed, restarted and replaced at random, for a while.

``EDL_CHAOS_SECONDS`` and ``EDL_CHAOS_SEED`` choose how long and which sequence (see scripts/chaos).
"""

import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from edl.distill import DistillReader, Limits
from tests.support.processes import python_teacher

SECONDS = float(os.environ.get("EDL_CHAOS_SECONDS", "15"))
SEED = int(os.environ.get("EDL_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ROWS = 8


class Zoo:
    """A few teachers in etcd, to which something happens several times a second."""

    def __init__(self, where, generator):
        self._where = where
        self._random = generator
        self.teachers = []
        self.events = {}
        self.start(0.002)
        self.start(0.002)

    def start(self, delay, *more):
        self.teachers.append(python_teacher("Sums", *self._where, *more, delay=delay))

    def happen(self):
        living = [teacher for teacher in self.teachers if teacher.process.poll() is None]
        actions = [self.stop, self.cont, self.add, self.add_slow]
        if len(living) > 1:
            actions += [self.kill, self.drain, self.replace]
        action = self._random.choice(actions)
        self.events[action.__name__] = self.events.get(action.__name__, 0) + 1
        action(self._random.choice(living) if living else None)

    def stop(self, teacher):
        teacher.kill(signal.SIGSTOP)

    def cont(self, teacher):
        for item in self.teachers:
            if item.process.poll() is None:
                item.kill(signal.SIGCONT)

    def kill(self, teacher):
        teacher.kill(signal.SIGKILL)

    def drain(self, teacher):
        teacher.kill(signal.SIGTERM)

    def replace(self, teacher):
        port = teacher.port
        teacher.close()
        self.start(0.002, "--port", port)

    def add(self, teacher):
        if sum(item.process.poll() is None for item in self.teachers) < 5:
            self.start(self._random.choice([0.0, 0.002, 0.01]))

    def add_slow(self, teacher):
        if sum(item.process.poll() is None for item in self.teachers) < 5:
            self.start(0.2)

    def close(self):
        for teacher in self.teachers:
            teacher.close()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
def test_chaos_loses_doubles_disorders_and_mislabels_nothing(etcd_server, service, capsys):
    generator = random.Random(SEED)
    with capsys.disabled():
        print(f"\nchaos: seed {SEED}, {SECONDS:g} s")
    zoo = Zoo(("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 2), generator)
    finish = threading.Event()

    def source():
        number = 0
        while not finish.is_set():
            rows = generator_rows.randrange(0, 2 * ROWS)
            img = np.full((rows, 3), number, "f4") + np.arange(rows, dtype="f4")[:, None]
            yield img, number
            number += 1
        last.append(number)

    generator_rows, last, lost = random.Random(SEED), [], []
    longest, expected = 0.0, 0
    address = f"etcd://{etcd_server.endpoint}/{service}"
    limits = Limits(min_timeout=0.5, max_timeout=3.0, max_attempts=50)
    reader = DistillReader(["img", "label"], ["prob"], source, address, limits=limits)
    reader.set_teacher_batch_size(ROWS)

    def chaos():
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                time.sleep(generator.uniform(0.05, 0.5))
                zoo.happen()
            zoo.cont(None)
        except BaseException as error:
            lost.append(error)
        finally:
            finish.set()

    troublemaker = threading.Thread(target=chaos)
    troublemaker.start()
    with reader:
        before = time.monotonic()
        for img, label, prob in reader:
            longest = max(longest, time.monotonic() - before)
            assert label == expected, "lost, doubled or out of order"
            assert prob.shape == (len(img), 2)
            assert (prob[:, 0] == img.sum(axis=1)).all(), "mislabelled"
            expected += 1
            before = time.monotonic()
        stats = reader.stats()
    troublemaker.join()
    zoo.close()
    assert not lost, lost
    assert [expected] == last
    with capsys.disabled():
        print(
            f"chaos: {expected} batches, {zoo.events}, lost {stats['lost_teachers']} teachers, "
            f"{stats['resent']} tasks resent, {stats['hedged']} hedged, "
            f"longest wait {longest:.2f} s"
        )
    assert expected > 100
