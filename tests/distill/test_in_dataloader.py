"""The reader inside a DataLoader with workers: exactly once, in the source's order, every epoch."""

import faulthandler
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from edl.discovery import Registration
from edl.discovery.keys import STUDENTS, service_prefix
from edl.discovery.watch import list_prefix
from edl.distill import DistillReader
from edl.errors import ReaderError, SourceError
from tests.distill.test_sources import (
    ALL,
    COUNT,
    ROWS,
    Numbers,
    Seekable,
    Stream,
    batch,
    batches,
    firsts,
    make,
    position,
)
from tests.support.processes import ROOT, alive, children_of, eventually

paddle = pytest.importorskip("paddle")


def shuffled(**options):
    return paddle.io.DataLoader(Numbers(), batch_size=ROWS, shuffle=True, **options)


def around(reader, workers, **options):
    options = {"batch_size": None, "num_workers": workers, "worker_init_fn": say_where, **options}
    return paddle.io.DataLoader(reader, **options)


def say_where(_):
    """A worker that crashes says in which lines; Paddle's handler says only that it did."""
    faulthandler.enable()


def labels(outer):
    """The rows' labels in the order in which they come out; every prediction is checked."""
    seen = []
    for slots in outer:
        _, label, prob = (np.asarray(slot) for slot in slots)
        assert (prob.reshape(-1, 2)[:, 0] == 3 * label.reshape(-1)).all()
        seen += label.reshape(-1).tolist()
    return seen


EVERYTHING = list(range(COUNT * ROWS))


@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_shuffled_source_comes_out_whole_in_every_epoch(sums_teacher, workers, persistent):
    with make(sums_teacher, shuffled()) as reader:
        outer = around(reader, workers, persistent_workers=persistent)
        orders = []
        for epoch in range(3):
            assert reader.epoch == epoch
            orders.append(labels(outer))
        assert reader.epoch == 3
        del outer
    assert [sorted(order) for order in orders] == [EVERYTHING] * 3
    assert orders[0] != orders[1] != orders[2], "each epoch is shuffled anew"


@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
def test_the_order_is_the_sources_own(sums_teacher, persistent):
    def source(dataset):
        sampler = paddle.io.DistributedBatchSampler(dataset, ROWS, 1, 0, shuffle=True)
        return paddle.io.DataLoader(dataset, batch_sampler=sampler)

    plain = source(Numbers())
    expected = [[label.tolist() for _, label in plain] for _ in range(3)]
    with make(sums_teacher, source(Numbers())) as reader:
        outer = around(reader, 3, persistent_workers=persistent)
        for epoch in range(3):
            reader._source.value.batch_sampler.set_epoch(epoch)
            assert labels(outer) == list(itertools.chain(*expected[epoch]))
        del outer


@pytest.mark.parametrize(
    "source",
    [
        lambda: list(batches()),
        lambda: batches,
        Stream,
        lambda: paddle.io.DataLoader(Stream(), batch_size=None),
    ],
    ids=["list", "creator", "iterable-dataset", "loader-of-iterable"],
)
@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
def test_any_source_comes_out_in_order(sums_teacher, source, persistent):
    with make(sums_teacher, source()) as reader:
        outer = around(reader, 2, persistent_workers=persistent)
        for _ in range(3):
            assert firsts(outer) == ALL
        del outer


def test_a_dataset_that_shares_itself_between_workers_comes_out_whole(sums_teacher):
    class Shared(paddle.io.IterableDataset):
        def __iter__(self):
            info = paddle.io.get_worker_info()
            start, step = (info.id, info.num_workers) if info else (0, 1)
            return itertools.islice(batches(), start, None, step)

    with make(sums_teacher, Shared()) as reader:
        for _ in range(2):
            assert firsts(around(reader, 2)) == ALL


@pytest.mark.parametrize("size", [1, 3])
def test_batches_that_the_dataloader_collates_stay_in_order(sums_teacher, size):
    with make(sums_teacher, list(batches())) as reader:
        outer = paddle.io.DataLoader(reader, batch_size=size, num_workers=2)
        assert labels(outer) == EVERYTHING


@pytest.mark.parametrize("source", ["arrays", "tensors", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"use_shared_memory": False}])
def test_tensors_of_workers_are_those_of_their_batch(sums_teacher, source, options):
    """Paddle's workers hand over what is in a tensor some time after they have let go of it."""
    count = 300

    def read():
        for number in range(count):
            img, label = np.full((4, 3), number % 256, "f4"), np.full((4, 1), number)
            wide = paddle.full([4, 64], number % 256, "bfloat16")
            if source == "tensors":
                img, label = paddle.to_tensor(img), paddle.to_tensor(label)
            yield (img, label) if source != "bfloat16" else (img, label, wide)

    ins = ["img", "label", "wide"][: 3 if source == "bfloat16" else 2]
    teachers = sums_teacher.endpoint
    reader = DistillReader(ins, ["prob"], read, teachers, return_tensors="pd")
    with reader:
        seen = []
        for img, label, *wide, prob in around(reader, 2, **options):
            numbers = label.numpy().reshape(-1)
            assert (img.numpy().reshape(-1, 3) == numbers[:, None] % 256).all()
            assert (prob.numpy().reshape(-1, 2)[:, 0] == numbers % 256 * 3).all()
            for slot in wide:
                assert slot.dtype == paddle.bfloat16
                values = slot.astype("float32").numpy().reshape(-1, 64)
                assert (values == numbers[:, None] % 256).all()
            seen += numbers.tolist()
    assert seen == [number for number in range(count) for _ in range(4)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [None, 2])
def test_what_collating_raises_is_raised_in_its_turn(sums_teacher, workers, size):
    def collate(items):
        labels = [items[1]] if size is None else [slots[1] for slots in items]
        if any((label == batch(8)[1]).all() for label in labels):
            raise LookupError("no such class")
        return np.concatenate(labels)

    with make(sums_teacher, batches) as reader:
        outer = iter(around(reader, workers, batch_size=size, collate_fn=collate))
        seen = []
        with pytest.raises(LookupError, match="no such class"):
            seen.extend(int(label[0]) for label in outer)
        assert seen == [int(batch(number)[1][0]) for number in range(0, 8, size or 1)]
        assert reader.state_dict()["delivered"] == 8
        assert labels(around(reader, workers))[-ROWS:] == EVERYTHING[-ROWS:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("slot", "words"),
    [
        (np.array(["a", "b"]), r"slot \[1\] of a batch is an array of dtype <U1"),
        ({"names": [np.array([None, 3])]}, r"slot \[1\]\['names'\]\[0\] .* dtype object"),
        (np.ones(2, ">f4"), "dtype >f4"),
    ],
)
def test_what_no_tensor_can_be_made_of_is_named(sums_teacher, workers, slot, words):
    def source():
        yield np.ones((2, 3), "f4"), np.zeros(2)
        yield np.ones((2, 3), "f4"), slot

    with DistillReader(["img", None], ["prob"], source, sums_teacher.endpoint) as reader:
        outer = iter(around(reader, workers))
        next(outer)
        with pytest.raises(SourceError, match=words):
            next(outer)


@pytest.mark.parametrize("slot", [np.zeros((0, 3)), paddle.zeros([0, 3])])
def test_slots_without_elements_are_refused_where_paddle_cannot_share_them(sums_teacher, slot):
    source = [(np.ones((2, 3), "f4"), slot)] * 3
    with DistillReader(["img", None], ["prob"], source, sums_teacher.endpoint) as reader:
        with pytest.raises(SourceError, match=r"slot \[1\] of a batch has no elements"):
            next(iter(around(reader, 2)))
        outer = around(reader, 2, use_shared_memory=False)
        if isinstance(slot, np.ndarray):
            assert [empty.shape for _, empty, _ in outer] == [[0, 3]] * 3
        else:
            with pytest.raises(SourceError, match="let it be an array"):
                next(iter(outer))


def test_the_dataloaders_own_settings_stay(sums_teacher):
    with make(sums_teacher, list(batches())) as reader:
        outer = around(reader, 1, persistent_workers=True)
        assert firsts(outer) == ALL
        assert outer._persistent_workers


class Collecting(Numbers):
    """Collects garbage in the worker."""

    def __getitem__(self, index):
        gc.collect()
        return super().__getitem__(index)


def test_garbage_of_the_student_does_not_hold_up_the_next_workers(sums_teacher):
    source = paddle.io.DataLoader(Collecting(8), batch_size=ROWS)
    gc.disable()
    try:
        with make(sums_teacher, source) as reader:
            for _ in range(3):
                iteration = iter(around(reader, 2))
                next(iteration)
                garbage = [iteration]
                garbage.append(garbage)
                del iteration, garbage
            assert firsts(around(reader, 2)) == [0, 1]
    finally:
        gc.enable()


# --- errors in workers --------------------------------------------------------------------------


def read_until_it_fails(outer):
    """The batches before the error, and the error."""
    seen = []
    try:
        for slots in outer:
            seen.append(int(np.asarray(slots[1]).reshape(-1)[0]) // ROWS)
    except Exception as error:
        return seen, error
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_iterator_is_refused_with_the_remedy(sums_teacher, workers):
    with make(sums_teacher, batches()) as reader:
        seen, error = read_until_it_fails(around(reader, workers))
    assert isinstance(error, SourceError)
    assert "cannot share it; pass what makes it" in str(error)
    assert seen == []


class Corrupt(Numbers):
    """One sample cannot be read."""

    def __getitem__(self, index):
        if index == 11 * ROWS + 1:
            raise KeyError("corrupt record")
        return super().__getitem__(index)


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_a_source_raises_in_a_worker_is_raised_at_its_place_in_the_order(
    sums_teacher, workers, size
):
    source = paddle.io.DataLoader(Corrupt(), batch_size=ROWS)
    with make(sums_teacher, source) as reader:
        outer = paddle.io.DataLoader(reader, batch_size=size, num_workers=workers)
        seen, error = read_until_it_fails(outer)
        assert position(reader) == (0, len(seen) * (size or 1))
    assert seen == (list(range(11)) if size is None else list(range(0, 10, 2)))
    assert isinstance(error, KeyError)
    assert error.args == ("corrupt record",)
    assert "in __getitem__" in str(error.__cause__), "where it was raised, in the worker"


class Unspeakable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_the_same_of_a_source_that_one_worker_reads_and_an_error_that_cannot_travel(sums_teacher):
    def source():
        yield from itertools.islice(batches(), 5)
        raise Unspeakable("this", "that")

    with make(sums_teacher, source) as reader:
        seen, error = read_until_it_fails(around(reader, 2))
    assert seen == list(range(5))
    assert isinstance(error, ReaderError)
    assert str(error) == "Unspeakable: this and that"


def test_rows_that_teachers_refuse_are_named_by_the_student(sums_teacher):
    source = [*itertools.islice(batches(), 4), (np.ones((2, 2), "c8"), np.zeros(2)), batch(5)]
    with make(sums_teacher, source) as reader:
        seen, error = read_until_it_fails(around(reader, 2))
    assert seen == list(range(4))
    assert isinstance(error, SourceError)
    assert "complex64" in str(error)


def test_a_reader_that_no_teacher_fits_says_so_whatever_its_worker(sums_teacher):
    reader = DistillReader(["image"], ["prob"], list(batches()), sums_teacher.endpoint)
    with reader:
        seen, error = read_until_it_fails(around(reader, 2))
    assert isinstance(error, ReaderError)
    assert "'img' is missing from ins" in str(error)
    assert seen == []


def test_an_order_that_cannot_be_drawn_is_an_error_for_all_workers(sums_teacher):
    class Fails(paddle.io.BatchSampler):
        def __iter__(self):
            raise OSError("the index is gone")

    source = paddle.io.DataLoader(Numbers(), batch_sampler=Fails(Numbers(), batch_size=ROWS))
    with make(sums_teacher, source) as reader:
        seen, error = read_until_it_fails(around(reader, 3))
    assert isinstance(error, OSError)
    assert seen == []


# --- leaving and resuming -----------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
def test_an_epoch_that_is_left_early_is_followed_by_a_whole_one(sums_teacher, persistent):
    with make(sums_teacher, shuffled()) as reader:
        outer = around(reader, 2, persistent_workers=persistent)
        for number, _ in enumerate(outer):
            if number == 3:
                break
        assert sorted(labels(outer)) == EVERYTHING
        assert reader.epoch == 2
        del outer


def test_the_same_in_a_dataloader_without_workers(sums_teacher):
    with make(sums_teacher, shuffled()) as reader:
        outer = around(reader, 0)
        for _ in itertools.islice(outer, 3):
            pass
        assert reader.state_dict()["delivered"] == 3
        assert sorted(labels(outer)) == EVERYTHING
        assert reader.epoch == 2


@pytest.mark.parametrize("size", [None, 2])
def test_a_dataloader_without_workers_reads_ahead_and_loses_nothing(sums_teacher, size):
    def outer(reader):
        return paddle.io.DataLoader(reader, batch_size=size, num_workers=0)

    with make(sums_teacher, shuffled()) as reader:
        first = labels(itertools.islice(outer(reader), 3))
        state = reader.state_dict()
    with make(sums_teacher, shuffled()) as reader:
        reader.load_state_dict(state)
        assert sorted(first + labels(outer(reader))) == EVERYTHING
        assert (reader.epoch, sorted(labels(outer(reader)))) == (1, EVERYTHING)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
def test_a_resumed_shuffled_epoch_gives_exactly_the_rest_and_the_next_one_is_whole(
    sums_teacher, workers, persistent
):
    taken = 9
    with make(sums_teacher, shuffled()) as reader:
        first = []
        for slots in itertools.islice(around(reader, workers), taken):
            first += np.asarray(slots[1]).tolist()
        state = reader.state_dict()
    with make(sums_teacher, shuffled()) as reader:
        reader.load_state_dict(state)
        outer = around(reader, workers, persistent_workers=persistent)
        assert sorted(first + labels(outer)) == EVERYTHING
        assert reader.epoch == 1
        for _ in range(2):
            assert sorted(labels(outer)) == EVERYTHING
        del outer


def test_an_epoch_goes_on_with_workers_where_it_was_left_without_and_back(sums_teacher):
    with make(sums_teacher, shuffled()) as reader:
        first = []
        for slots in itertools.islice(reader, 5):
            first += slots[1].tolist()
        state = reader.state_dict()
    with make(sums_teacher, shuffled()) as reader:
        reader.load_state_dict(state)
        for slots in itertools.islice(around(reader, 2), 5):
            first += np.asarray(slots[1]).tolist()
        state = reader.state_dict()
    with make(sums_teacher, shuffled()) as reader:
        reader.load_state_dict(state)
        assert sorted(first + labels(reader)) == EVERYTHING


class Waits(paddle.io.BatchSampler):
    """Draws its order only when a file is there."""

    def __init__(self, path):
        super().__init__(Numbers(), shuffle=True, batch_size=ROWS)
        self.path = path

    def __iter__(self):
        eventually(self.path.exists, timeout=30)
        return super().__iter__()


def test_a_state_may_be_taken_before_the_workers_have_begun(sums_teacher, tmp_path):
    taken, path = 9, tmp_path / "go"
    path.touch()
    source = paddle.io.DataLoader(Numbers(), batch_sampler=Waits(path))
    with make(sums_teacher, source) as reader:
        first = []
        for slots in itertools.islice(around(reader, 2), taken):
            first += np.asarray(slots[1]).tolist()
        state = reader.state_dict()
    with make(sums_teacher, source) as reader:
        reader.load_state_dict(state)
        path.unlink()
        outer = iter(around(reader, 2))
        assert reader.state_dict() == state
        path.touch()
        assert sorted(first + labels(outer)) == EVERYTHING


def test_the_state_says_what_the_student_has_taken_however_far_workers_are_ahead(sums_teacher):
    with make(sums_teacher, list(batches())) as reader:
        outer = iter(around(reader, 2))
        for taken in range(COUNT):
            assert position(reader) == (0, taken)
            assert reader.epoch == 0
            next(outer)
        assert position(reader) == (0, COUNT), "it does not know yet that this was the last one"
        assert next(outer, None) is None
        assert position(reader) == (1, 0)


def test_a_second_iteration_ends_the_first_with_an_error(sums_teacher):
    with make(sums_teacher, list(batches())) as reader:
        first, second = iter(around(reader, 2)), iter(around(reader, 2))
        next(second)
        with pytest.raises(ReaderError, match="make a second DistillReader"):
            next(first)
        assert len(list(second)) == COUNT - 1


def test_a_seekable_sources_state_is_resumed_by_a_worker_and_given_back(sums_teacher):
    def resumed(state):
        reader = make(sums_teacher, Seekable())
        reader.load_state_dict(json.loads(json.dumps(state)))
        return reader

    with make(sums_teacher, Seekable()) as reader:
        first = firsts(itertools.islice(reader, 6))
        state = reader.state_dict()
    assert state["source"] == {"next": 6}
    with resumed(state) as reader:
        first += firsts(itertools.islice(around(reader, 2), 7))
        state = reader.state_dict()
    with resumed(state) as reader:
        first += firsts(itertools.islice(around(reader, 2), 3))
        state = reader.state_dict()
    with resumed(state) as reader:
        assert first + firsts(reader) == ALL
        assert firsts(around(reader, 2)) == ALL
        assert reader.epoch == 2


# --- neighbours ---------------------------------------------------------------------------------


@pytest.fixture
def where(etcd_server, etcd, service, sums_teacher):
    """A service with one teacher."""
    registration = Registration(etcd, service, sums_teacher.endpoint, "{}")
    registration.start()
    yield f"etcd://{etcd_server.endpoint}/{service}"
    registration.stop()


def students(etcd, service):
    return list_prefix(etcd, service_prefix(service) + STUDENTS)[0]


class Student:
    """A program of its own, which stops at each ``pause()`` until ``go_on``: the tests talk to
    etcd, and a process that does should not be forked.
    """

    HEAD = """
import sys
from edl.distill import DistillReader
from tests.distill.test_in_dataloader import ALL, COUNT, around, batches, firsts

def pause():
    print("paused", flush=True)
    sys.stdin.readline()

reader = DistillReader(["img", "label"], ["prob"], list(batches()), sys.argv[1])
"""

    def __init__(self, where, program):
        command = [sys.executable, "-c", self.HEAD + textwrap.dedent(program), where]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)

    def wait_for_pause(self):
        assert self.process.stdout.readline() == "paused\n"

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def test_workers_leave_the_registry_when_they_leave(where, etcd, service):
    program = """
        for _ in range(2):
            assert firsts(around(reader, 2)) == ALL
            pause()
    """
    with Student(where, program) as student:
        for _ in range(2):
            student.wait_for_pause()
            eventually(lambda: not students(etcd, service))
            student.go_on()
        assert student.process.wait(20) == 0


def test_workers_are_the_only_students_after_an_epoch_without_them(where, etcd, service):
    program = """
        assert firsts(reader) == ALL
        outer = iter(around(reader, 2))
        next(outer)
        pause()
        assert len(list(outer)) == COUNT - 1
        assert firsts(reader) == ALL
    """
    with Student(where, program) as student:
        student.wait_for_pause()
        eventually(lambda: len(students(etcd, service)) == 2)
        student.go_on()
        assert student.process.wait(20) == 0


def test_workers_divide_the_limit_of_teachers(where, etcd, service):
    program = """
        reader.set_require_max_teacher(5)
        outer = iter(around(reader, 2))
        next(outer)
        pause()
        assert len(list(outer)) == COUNT - 1
    """
    with Student(where, program) as student:
        student.wait_for_pause()

        def limits():
            found = students(etcd, service).values()
            return sorted(json.loads(text)["max_teachers"] for text in found)

        eventually(lambda: limits() == [2, 3])
        student.go_on()
        assert student.process.wait(20) == 0


@pytest.mark.parametrize("taken", [0, 3])
def test_workers_end_when_an_epoch_is_left(where, etcd, service, taken):
    program = f"""
        outer = iter(around(reader, 2))
        for _ in range({taken}):
            next(outer)
        del outer
        pause()
        assert firsts(around(reader, 2)) == ALL
    """
    with Student(where, program) as student:
        student.wait_for_pause()
        eventually(lambda: not children_of(student.process.pid))
        eventually(lambda: not students(etcd, service))
        student.go_on()
        assert student.process.wait(20) == 0


def test_workers_end_with_a_student_that_is_killed(where, etcd, service):
    program = """
        iteration = iter(around(reader, 2))
        next(iteration)
        pause()
    """
    with Student(where, program) as student:
        student.wait_for_pause()
        workers = children_of(student.process.pid)
        student.process.kill()
    try:
        assert len(workers) == 2
        eventually(lambda: not any(map(alive, workers)))
    finally:
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)
    eventually(lambda: not students(etcd, service))


_ENDS = """
from tests.distill.test_in_dataloader import around, batches
from edl.distill import DistillReader

reader = DistillReader(["img", "label"], ["prob"], list(batches()), "127.0.0.1:1")
iteration = iter(around(reader, 0))
"""


def test_a_program_may_end_while_a_dataloader_waits_for_teachers():
    command = [sys.executable, "-c", _ENDS]
    assert subprocess.run(command, cwd=ROOT, timeout=30, check=False).returncode == 0


def test_two_dataloaders_around_two_readers_do_not_mix(sums_teacher):
    with make(sums_teacher, list(batches())) as one, make(sums_teacher, shuffled()) as other:
        for left, right in itertools.zip_longest(around(one, 2), around(other, 2)):
            assert np.asarray(left[1]).shape == np.asarray(right[1]).shape
        assert (one.epoch, other.epoch) == (1, 1)
        assert int(batch(3)[1][0]) == 3 * ROWS
