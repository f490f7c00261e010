"""Every kind of source, several teacher models, and the reader inside a DataLoader."""

import itertools
import json
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest

from edl.discovery import Registration
from edl.distill import DistillReader
from edl.errors import ConfigError, ReaderError, SourceError
from tests.support.processes import eventually, python_teacher

paddle = pytest.importorskip("paddle")

COUNT, ROWS = 23, 4


class Numbers(paddle.io.Dataset):
    """img: (3,) of the index, label: the index. Remembers what was loaded (in this process)."""

    def __init__(self, size=COUNT * ROWS):
        self.size = size
        self.loaded = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.loaded.append(index)
        return np.full(3, index, "f4"), index


class Stream(paddle.io.IterableDataset):
    """Whole batches."""

    def __iter__(self):
        return batches()


class Seekable:
    """An iterable with a state of its own. Counts what it has produced."""

    def __init__(self):
        self.next = 0
        self.produced = []

    def __iter__(self):
        while self.next < COUNT:
            self.produced.append(self.next)
            self.next += 1
            yield batch(self.next - 1)
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def batch(number):
    labels = np.arange(ROWS) + number * ROWS
    return np.repeat(labels[:, None], 3, axis=1).astype("f4"), labels


def batches():
    return (batch(number) for number in range(COUNT))


def loader(**options):
    return paddle.io.DataLoader(Numbers(), batch_size=ROWS, **options)


def make(teacher, source=None, **options):
    return DistillReader(["img", "label"], ["prob"], source, teacher.endpoint, **options)


def firsts(reader, start=0):
    """Read the rest of an epoch; the batches' numbers. Every label is checked."""
    seen = []
    for slots in reader:
        img, label, prob = (np.asarray(slot) for slot in slots)
        assert (prob[:, 0] == 3 * label).all()
        assert (img[:, 0] == label).all()
        seen.append(int(label[0]) // ROWS)
    return seen


ALL = list(range(COUNT))


@pytest.mark.parametrize(
    "source",
    [
        lambda: list(batches()),
        lambda: batches,
        batches,
        Stream,
        lambda: map(tuple, batches()),
        Seekable,
        loader,
        lambda: loader(num_workers=2),
        lambda: loader(num_workers=2, persistent_workers=True),
    ],
    ids=[
        "list",
        "creator",
        "generator",
        "iterable-dataset",
        "iterator",
        "seekable",
        "loader",
        "workers",
        "persistent",
    ],
)
def test_any_source_is_read_in_order(sums_teacher, source):
    with make(sums_teacher, source()) as reader:
        assert firsts(reader) == ALL


def test_a_map_style_dataset_is_read_with_a_batch_sampler(sums_teacher):
    dataset = Numbers()
    sampler = paddle.io.BatchSampler(dataset, batch_size=ROWS)
    with make(sums_teacher, dataset, batch_sampler=sampler) as reader:
        assert firsts(reader) == ALL
        assert firsts(reader) == ALL


def test_a_map_style_dataset_without_one_is_refused_with_the_remedy(sums_teacher):
    with pytest.raises(ConfigError, match="pass batch_sampler"):
        make(sums_teacher, Numbers())


def test_an_iterator_serves_one_epoch_and_says_so(sums_teacher):
    with make(sums_teacher, batches()) as reader:
        assert firsts(reader) == ALL
        with pytest.raises(SourceError, match="can be read once"):
            firsts(reader)


def test_it_is_as_long_as_its_source(sums_teacher):
    assert len(make(sums_teacher, loader())) == COUNT
    with pytest.raises(TypeError, match="no length"):
        len(make(sums_teacher, batches))


def test_dicts_of_tensors_come_back_as_dicts_of_tensors(sums_teacher):
    source = [{"label": paddle.to_tensor([1]), "img": paddle.ones([1, 3])}]
    with make(sums_teacher, source) as reader:
        (out,) = list(reader)
    assert list(out) == ["label", "img", "prob"]
    assert out["label"] is source[0]["label"]
    assert isinstance(out["prob"], paddle.Tensor)
    assert out["prob"].tolist() == [[3, 6]]


# --- where teachers are -------------------------------------------------------------------------


def test_teachers_are_named_by_an_etcd_address(etcd_server, etcd, service, sums_teacher):
    registration = Registration(etcd, service, sums_teacher.endpoint, "{}")
    registration.start()
    where = f"etcd://{etcd_server.endpoint}/{service}"
    with DistillReader(["img", "label"], ["prob"], list(batches()), where) as reader:
        assert firsts(reader) == ALL
    registration.stop()


@pytest.mark.parametrize("teachers", ["etcd://host:1", "etcd://host:1/", "etcd:///s", {}])
def test_an_address_without_a_service_is_refused(teachers):
    with pytest.raises(ConfigError):
        DistillReader(["img"], ["prob"], [], teachers)


def test_predictions_of_several_models_are_appended_and_named(sums_teacher):
    source = [{"img": np.full((2, 3), number, "f4"), "label": number} for number in range(50)]
    with python_teacher("Sums") as second:
        teachers = {"one": sums_teacher.endpoint, "two": [second.endpoint]}
        with DistillReader(["img", "label"], ["prob"], source, teachers) as reader:
            out = list(reader)
            assert set(reader.stats()) == {"one", "two"}
            assert reader.stats()["two"]["batches"] == 50
        with DistillReader(["img", "label"], ["prob"], batches, teachers) as reader:
            tuples = list(reader)
            for number, _ in enumerate(reader):
                if number == 3:
                    break
    assert [item["label"] for item in out] == list(range(50))
    assert list(out[0]) == ["img", "label", "one.prob", "two.prob"]
    assert all((item["two.prob"][:, 0] == 3 * item["label"]).all() for item in out)
    assert [len(item) for item in tuples] == [4] * COUNT


@pytest.mark.parametrize(
    ("predicts", "teachers"),
    [({"a": ["p"]}, "h:1"), ({"a": ["p"]}, {"b": "h:1"}), ({"a": []}, {"a": "h:1"})],
)
def test_models_and_predictions_that_do_not_match_are_refused(predicts, teachers):
    with pytest.raises(ConfigError):
        DistillReader(["img"], predicts, [], teachers)


# --- inside a DataLoader ------------------------------------------------------------------------


def test_it_is_an_iterable_dataset(sums_teacher):
    assert isinstance(make(sums_teacher), paddle.io.IterableDataset)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("source", [lambda: list(batches()), loader], ids=["list", "loader"])
def test_a_dataloaders_workers_share_the_batches_and_keep_the_order(sums_teacher, workers, source):
    reader = make(sums_teacher, source())
    outer = paddle.io.DataLoader(reader, batch_size=None, num_workers=workers)
    for _ in range(2):
        assert firsts(outer) == ALL
    reader.close()


# --- resume -------------------------------------------------------------------------------------


def resumed(teacher, source, state, **options):
    reader = make(teacher, source, **options)
    reader.load_state_dict(json.loads(json.dumps(state)))
    return reader


@pytest.mark.parametrize(
    "source",
    [lambda: list(batches()), lambda: batches, loader, Seekable, Stream],
    ids=["list", "creator", "loader", "seekable", "stream"],
)
@pytest.mark.parametrize("taken", [0, 1, 10, COUNT - 1, COUNT])
def test_a_restarted_student_gets_exactly_the_rest(sums_teacher, source, taken):
    with make(sums_teacher, source()) as reader:
        iterator = iter(reader)
        for _ in range(taken):
            next(iterator)
        state = reader.state_dict()
        iterator.close()
    with resumed(sums_teacher, source(), state) as reader:
        assert firsts(reader) == ALL[taken:]
        assert reader.epoch == 1
        sent = reader.stats()["tasks_sent"] if taken < COUNT else 0
        assert sent == COUNT - taken, "what is skipped is not sent to a teacher"
        assert firsts(reader) == ALL, "the next epoch is whole"


def test_samples_are_counted_one_by_one(sums_teacher):
    def reader_of_samples():
        reader = DistillReader(["img"], ["prob"], teachers=sums_teacher.endpoint)
        reader.set_sample_generator(lambda: ((np.full(3, n, "f4"),) for n in range(30)))
        return reader.set_teacher_batch_size(8)

    with reader_of_samples() as reader:
        iterator = iter(reader)
        for _ in range(11):
            next(iterator)
        state = reader.state_dict()
        iterator.close()
    with reader_of_samples() as reader:
        reader.load_state_dict(state)
        assert [int(img[0]) for img, _ in reader] == list(range(11, 30))


def test_a_seekable_source_produces_nothing_that_is_skipped(sums_teacher):
    with make(sums_teacher, Seekable()) as reader:
        iterator = iter(reader)
        for _ in range(10):
            next(iterator)
        state = reader.state_dict()
        iterator.close()
    assert state["source"] == {"next": 10}
    source = Seekable()
    with resumed(sums_teacher, source, state) as reader:
        assert firsts(reader) == ALL[10:]
    assert source.produced == ALL[10:]


def test_a_batch_sampler_loads_no_sample_that_is_skipped(sums_teacher):
    dataset = Numbers()
    source = paddle.io.DataLoader(dataset, batch_size=ROWS)
    state = {"version": 1, "epoch": 3, "delivered": 20}
    with resumed(sums_teacher, source, state) as reader:
        assert reader.epoch == 3
        assert firsts(reader) == ALL[20:]
        assert reader.epoch == 4
    assert min(dataset.loaded) == 20 * ROWS


def test_the_position_stands_after_an_early_break_until_the_next_iteration(sums_teacher):
    with make(sums_teacher, list(batches())) as reader:
        for number, _ in enumerate(reader):
            if number == 4:
                break
        assert position(reader) == (0, 5)
        assert firsts(reader) == ALL
        assert position(reader) == (2, 0)


def position(reader):
    state = reader.state_dict()
    return state["epoch"], state["delivered"]


HERE = {"version": 1, "epoch": 0, "delivered": 0}


@pytest.mark.parametrize(
    "state",
    [
        {},
        {**HERE, "version": 2},
        {"epoch": "x"},
        {**HERE, "models": 5},
        {**HERE, "models": [1]},
        {**HERE, "fingerprint": 3},
        {**HERE, "order": "abc"},
        None,
    ],
)
def test_something_that_is_not_a_state_is_refused(sums_teacher, state):
    with pytest.raises(ConfigError, match="not a state"):
        make(sums_teacher).load_state_dict(state)


# --- sight --------------------------------------------------------------------------------------


def test_statistics_say_what_happened(sums_teacher):
    source = list(batches())
    with make(sums_teacher, source) as reader:
        assert reader.stats() == {}
        firsts(reader)
        stats = reader.stats()
    assert json.loads(json.dumps(stats)) == stats
    assert (stats["batches"], stats["rows"]) == (COUNT, COUNT * ROWS)
    labels = COUNT * ROWS * 2 * 4
    assert stats["bytes"] == sum(img.nbytes + label.nbytes for img, label in source) + labels
    teacher = stats["teachers"][sums_teacher.endpoint]
    assert teacher["rows"] == COUNT * ROWS
    assert teacher["rows_per_second"] > 0
    assert 0 < teacher["latency"]["median"] <= teacher["latency"]["p99"] < 5
    assert stats["student_waited"] > 0
    assert stats["buffer"] == {
        **{"batches": 0, "bytes": 0, "level": "low"},
        **{"low_batches": 4, "high_batches": 16},
    }


def test_a_trace_opens_as_json_and_shows_teachers_source_and_student(
    sums_teacher, tmp_path, monkeypatch
):
    monkeypatch.setenv("EDL_DISTILL_TRACE", str(tmp_path / "trace-{pid}.json"))
    with make(sums_teacher, list(batches())) as reader:
        firsts(reader)
    (path,) = tmp_path.iterdir()
    events = json.loads(path.read_text())
    rows = {event["args"]["name"].partition(" (")[0] for event in events if event["ph"] == "M"}
    teacher = {f"teacher {sums_teacher.endpoint}", "in flight"}
    assert rows == teacher | {"source", "queue", "student", "batches ready"}
    spans = [event for event in events if event["ph"] == "X" and "rows" in event["args"]]
    assert len(spans) == COUNT
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)


# --- positions that mean nothing here -----------------------------------------------------------


def state_after(teacher, source, taken=6):
    with make(teacher, source) as reader:
        iterator = iter(reader)
        for _ in range(taken):
            next(iterator)
        state = json.loads(json.dumps(reader.state_dict()))
        iterator.close()
    return state


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (lambda: paddle.io.DataLoader(Numbers(), batch_size=2), "length is 23, this reader's 46"),
        (lambda: paddle.io.DataLoader(Numbers(size=96), batch_size=ROWS), "length is 23.*24"),
        (
            lambda: paddle.io.DataLoader(Numbers(size=46), batch_size=2),
            "batch size is 4, this reader's 2",
        ),
    ],
)
def test_a_state_of_another_source_is_refused(sums_teacher, other, names):
    state = state_after(sums_teacher, loader())
    with pytest.raises(ConfigError, match=names):
        make(sums_teacher, other()).load_state_dict(state)


def test_a_state_of_other_slots_is_refused(sums_teacher):
    state = state_after(sums_teacher, loader())
    reader = DistillReader(["img", "target"], ["prob"], loader(), sums_teacher.endpoint)
    with pytest.raises(ConfigError, match="its ins is"):
        reader.load_state_dict(state)


def test_a_source_that_gives_another_order_is_refused(sums_teacher):
    class Seeded(paddle.io.BatchSampler):
        def __init__(self, seed):
            super().__init__(Numbers(), batch_size=ROWS)
            self.seed = seed

        def __iter__(self):
            order = np.random.RandomState(self.seed).permutation(COUNT * ROWS)
            return iter(order.reshape(COUNT, ROWS).tolist())

    def source(seed):
        return paddle.io.DataLoader(Numbers(), batch_sampler=Seeded(seed))

    state = state_after(sums_teacher, source(1))
    with resumed(sums_teacher, source(1), state) as reader:
        assert len(list(reader)) == COUNT - 6
    with resumed(sums_teacher, source(2), state) as reader:
        with pytest.raises(SourceError, match=r"another order.*seed its shuffling"):
            next(iter(reader))


def test_a_loader_that_shuffles_by_numpy_goes_on_in_the_same_order(sums_teacher):
    def source():
        return paddle.io.DataLoader(Numbers(), batch_size=ROWS, shuffle=True)

    with make(sums_teacher, source()) as reader:
        iterator = iter(reader)
        first = [label for _ in range(6) for label in np.asarray(next(iterator)[1]).tolist()]
        state = json.loads(json.dumps(reader.state_dict()))
        iterator.close()
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    with resumed(sums_teacher, source(), state) as reader:
        rest = [label for slots in reader for label in np.asarray(slots[1]).tolist()]
        assert sorted(first + rest) == list(range(COUNT * ROWS))
        assert np.random.get_state()[1].tolist() == before, "the program's own numbers are its own"


class Late(paddle.io.Sampler):
    """Draws its order, by numpy, a while after it was asked for the first index."""

    def __iter__(self):
        time.sleep(0.2)
        return iter(np.random.permutation(COUNT * ROWS).tolist())

    def __len__(self):
        return COUNT * ROWS


def test_an_order_is_drawn_when_the_iteration_begins_by_who_begins_it(sums_teacher):
    sampler = paddle.io.BatchSampler(sampler=Late(), batch_size=ROWS)
    with make(sums_teacher, paddle.io.DataLoader(Numbers(), batch_sampler=sampler)) as reader:
        np.random.seed(3)
        iterator = iter(reader)
        np.random.seed(4)  # from here on numpy's generator is the program's own again
        labels = [label for slots in iterator for label in np.asarray(slots[1]).tolist()]
    np.random.seed(3)
    assert labels == np.random.permutation(COUNT * ROWS).tolist()


def test_what_a_sampler_raises_before_its_first_list_is_raised_in_its_turn(sums_teacher):
    class Broken(paddle.io.BatchSampler):
        def __iter__(self):
            raise KeyError("no order")

    sampler = Broken(Numbers(), batch_size=ROWS)
    with make(sums_teacher, paddle.io.DataLoader(Numbers(), batch_sampler=sampler)) as reader:
        iterator = iter(reader)
        with pytest.raises(KeyError, match="no order"):
            next(iterator)


def test_a_loaders_persistent_workers_are_kept_from_one_epoch_to_the_next(sums_teacher):
    class Where(paddle.io.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return np.full(3, index, "f4"), os.getpid()

    source = paddle.io.DataLoader(Where(), batch_size=4, num_workers=1, persistent_workers=True)
    with make(sums_teacher, source) as reader:
        pids = [{int(pid) for slots in reader for pid in slots[1]} for _ in range(2)]
        assert pids[0] == pids[1]
        assert os.getpid() not in pids[0]
        assert _children() & pids[0]
    assert not _children() & pids[0]


def _children():
    return {child.pid for child in multiprocessing.active_children()}


class Numbered(paddle.io.IterableDataset):
    """Fails where it is told to."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        for number in range(COUNT * ROWS):
            if number == 5 * ROWS + 1:
                raise self.error
            yield np.full(3, number, "f4"), np.int64(number)


class Indexed(paddle.io.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return COUNT * ROWS

    def __getitem__(self, index):
        if index == 5 * ROWS + 1:
            raise self.error
        return np.full(3, index, "f4"), np.int64(index)


class Drawn(paddle.io.BatchSampler):
    def __init__(self, error):
        super().__init__(dataset=Numbers(), batch_size=ROWS)
        self.error = error

    def __iter__(self):
        yield from itertools.islice(super().__iter__(), 5)
        raise self.error


def of_dataset(kind):
    return lambda error, **more: paddle.io.DataLoader(
        kind(error), batch_size=ROWS, drop_last=True, **more
    )


def of_sampler(error, **more):
    return paddle.io.DataLoader(Numbers(), batch_sampler=Drawn(error), **more)


def of_collate(error, **more):
    def collate(samples):
        if samples[0][1] == 5 * ROWS:
            raise error
        return paddle.io.dataloader.collate.default_collate_fn(samples)

    return paddle.io.DataLoader(Numbers(), batch_size=ROWS, collate_fn=collate, **more)


class Odd(Exception):
    """Cannot travel."""

    def __init__(self, words):
        super().__init__(words)
        self.lock = threading.Lock()


ERRORS = [LookupError("no such file"), SystemExit("no such file"), Odd("no such file")]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=["an error", "exit", "cannot travel"])
@pytest.mark.parametrize(
    "broken",
    [of_dataset(Indexed), of_dataset(Numbered), of_sampler, of_collate],
    ids=["dataset", "iterable dataset", "sampler", "collate"],
)
def test_what_a_loader_raises_is_raised_in_its_turn(sums_teacher, broken, error, workers):
    """Paddle itself waits for ever, or has words of its own."""
    kind = ReaderError if workers and isinstance(error, Odd) else type(error)
    seen, before = [], running()
    # With that time-out Paddle looks after a second whether it is to end, not after five.
    source = broken(error, num_workers=workers, timeout=workers)
    with make(sums_teacher, source) as reader:
        with pytest.raises(kind, match="no such file"):
            seen.extend(int(label[0]) // ROWS for _, label, _ in reader)
        assert seen == [0, 1, 2, 3, 4]
        assert reader.state_dict()["delivered"] == 5
    eventually(lambda: running() <= before)


def running():
    """Threads and processes of this one."""
    return {*threading.enumerate(), *multiprocessing.active_children()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_s_stop_iteration_is_not_the_end_of_the_epoch(sums_teacher, workers):
    source = of_dataset(Indexed)(StopIteration("early"), num_workers=workers)
    with make(sums_teacher, source) as reader, pytest.raises(RuntimeError, match="StopIteration"):
        list(reader)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_takes_what_paddle_has_started_with_it(sums_teacher, workers):
    before = running()
    source = loader(num_workers=workers, timeout=min(workers, 1))  # as above
    with make(sums_teacher, source) as reader:
        for _ in range(3):
            next(iter(reader))
    eventually(lambda: running() <= before)


def test_a_worker_s_dataset_is_what_it_was(sums_teacher):
    class Sized(paddle.io.Dataset):
        first = 0

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return np.full(3, self.first, "f4"), np.int64(self.first)

    def begin(_):
        paddle.io.get_worker_info().dataset.first = 7

    source = paddle.io.DataLoader(Sized(), batch_size=2, num_workers=1, worker_init_fn=begin)
    with make(sums_teacher, source) as reader:
        assert [int(label[0]) for _, label, _ in reader] == [7, 7]


def test_a_loader_that_makes_something_else_of_its_batches_may(sums_teacher):
    class Doubled(paddle.io.DataLoader):
        def __iter__(self):
            return ((img * 2, label * 2) for img, label in super().__iter__())

    with make(sums_teacher, Doubled(Numbers(), batch_size=ROWS)) as reader:
        assert [int(label[0]) for _, label, _ in reader] == [n * ROWS * 2 for n in range(COUNT)]
