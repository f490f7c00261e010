"""A DataLoader's workers are forked when no thread of an iteration before them is ending any more,
neither of Paddle's nor of ours.
"""

import os
import re
import signal
import threading
import time
import weakref

import numpy as np
import pytest

from edl._threads import Loop
from edl.distill import DistillReader
from edl.distill.exchange import Exchange
from edl.serving import TeacherClient
from tests.distill.test_in_dataloader import around, shuffled
from tests.distill.test_sources import ALL, batches, firsts, make
from tests.support.processes import children_of, eventually
from tests.support.threads import SlowEnds

paddle = pytest.importorskip("paddle")


@pytest.fixture
def slow(monkeypatch):
    """All threads that may have to do with tensors end slowly. ``at_forks``: which had ended, or
    were told to, when a process was forked.
    """
    slow, before = SlowEnds(0.3), set(threading.enumerate())
    slow.at_forks = []

    def end_slowly(kind, name):
        quickly = getattr(kind, name)

        def run(self, *arguments):
            slow.here()
            quickly(self, *arguments)

        monkeypatch.setattr(kind, name, run)

    iterators = paddle.io.dataloader.dataloader_iter
    end_slowly(iterators._DataLoaderIterSingleProcess, "_thread_loop")
    end_slowly(iterators._DataLoaderIterMultiProcess, "_thread_loop")
    end_slowly(Loop, "_run")
    end_slowly(TeacherClient, "_receive_all")

    def fork(fork=os.fork):
        reading = [each for each in threading.enumerate() if each.name == "edl-source"]
        slow.at_forks.append(slow.ending() + [each for each in reading if each not in before])
        return fork()

    monkeypatch.setattr(os, "fork", fork)
    return slow


def read_slowly_ended(slow, seconds):
    """Batches read on a thread that ends slowly, and takes ``seconds`` to let go of them."""
    slow.here()
    try:
        yield from batches()
    finally:
        time.sleep(seconds)


@pytest.mark.parametrize("left", [False, True], ids=["ended", "left"])
def test_paddles_thread_of_the_epoch_before_is_gone(sums_teacher, slow, left):
    with make(sums_teacher, list(batches())) as reader:
        outer = around(reader, 2)
        for _ in zip(range(3), outer) if left else outer:
            pass
        assert firsts(outer) == ALL
    assert slow.at_forks == [[]] * 4


@pytest.mark.parametrize("workers", [None, 0], ids=["by-itself", "in-a-dataloader"])
@pytest.mark.parametrize("left", [False, True], ids=["ended", "left"])
def test_so_are_those_of_an_epoch_that_was_read_in_this_process(sums_teacher, slow, workers, left):
    with make(sums_teacher, shuffled()) as reader:
        iteration = iter(reader if workers is None else around(reader, workers))
        for _ in zip(range(3), iteration) if left else iteration:
            pass
        del iteration
        assert len(firsts(around(reader, 2))) == len(ALL)
    assert slow.at_forks == [[]] * 2


@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_so_is_the_thread_that_read_the_source_of_another_reader(sums_teacher, slow, seconds):
    with make(sums_teacher, list(batches())) as reader:
        with make(sums_teacher, lambda: read_slowly_ended(slow, seconds)) as before:
            next(iter(before))
        assert firsts(around(reader, 2)) == ALL
    assert slow.at_forks == [[]] * 2


def test_so_is_that_of_a_dataloader_of_somebody_else(sums_teacher, slow):
    with make(sums_teacher, list(batches())) as reader:
        for _ in shuffled():
            pass
        assert firsts(around(reader, 2)) == ALL
    assert slow.at_forks == [[]] * 2


def test_the_source_s_own_workers_are_forked_alike(sums_teacher, slow):
    with make(sums_teacher, shuffled(num_workers=2)) as reader:
        assert len(firsts(reader)) == len(firsts(reader)) == len(ALL)
    assert slow.at_forks == [[]] * 4


def test_nothing_is_held_of_an_epoch_that_was_left_when_the_next_begins(sums_teacher, monkeypatch):
    """Or a thread of the pool would drop it, its tensors too, while workers are forked."""
    made = weakref.WeakSet()

    class Held:
        """What stands for a tensor of a batch."""

    def source():
        for item in batches():
            held = Held()
            made.add(held)
            yield [*item, held]
            del held

    endpoint = sums_teacher.endpoint
    with DistillReader(["img", "label", "held"], ["prob"], source, endpoint) as reader:
        iteration = iter(reader)
        next(iteration)
        eventually(lambda: reader.stats()["buffer"]["batches"] > 2)
        time.sleep(0.2)  # until nothing is on its way
        monkeypatch.setattr(Exchange, "tick", lambda *_: 1.0)  # the pool does not notice by itself
        iteration.close()
        assert len(made) > 2
        reader._running.settle()
        assert len(made) == 0


def test_a_student_that_waits_for_its_workers_says_so(sums_teacher, monkeypatch, caplog):
    monkeypatch.setattr("edl.distill.loaders.COMPLAIN_EVERY", 0.3)
    with make(sums_teacher, list(batches())) as reader:
        iteration = iter(around(reader, 2))
        first = next(iteration)
        workers = children_of(os.getpid())[-2:]
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            seen = []
            student = threading.Thread(target=lambda: seen.extend(firsts(iteration)))
            student.start()
            pids = ", ".join(map(str, workers))
            said = rf"has waited \d+ s for the DataLoader's workers \(processes {pids}\)"
            eventually(lambda: re.search(said, caplog.text))
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            student.join()
    assert [int(np.asarray(first[1])[0]), *seen] == ALL
