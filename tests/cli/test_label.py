"""``edl label``: each label once, by however many processes, whatever becomes of them."""

import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest

from edl.cli import main
from edl.discovery import Registration
from edl.distill import DistillReader
from edl.serving import serve
from tests.support.processes import ROOT, edl, edl_on_terminal, eventually

ROWS, COUNT = 4, 100


def numbers():
    """A list of batches."""
    flat = np.arange(COUNT * ROWS, dtype="float32").reshape(COUNT, ROWS, 1)
    return [(np.repeat(batch, 3, axis=1),) for batch in flat]


def through():
    """The same, which can only be read through."""
    return iter(numbers())


def creator():
    """The same, as what makes them."""
    return through


def loader():
    """The same, shuffled."""
    import paddle

    class Data(paddle.io.Dataset):
        def __len__(self):
            return COUNT * ROWS

        def __getitem__(self, index):
            return np.full(3, index, "float32")

    return paddle.io.DataLoader(Data(), batch_size=ROWS, shuffle=True)


def part():
    """Every tenth row of the loader's, in an order of its sampler's."""
    import paddle

    data = loader().dataset
    sampler = paddle.io.SubsetRandomSampler(list(range(0, COUNT * ROWS, 10)))
    batches = paddle.io.BatchSampler(sampler=sampler, batch_size=ROWS)
    return paddle.io.DataLoader(data, batch_sampler=batches)


def views():
    """A list whose rows are others in each epoch."""

    class Views(list):
        def set_epoch(self, epoch):
            self[:] = [(img + np.float32(1000 * epoch),) for (img,) in numbers()]

    return Views(numbers())


@pytest.fixture
def teacher():
    """``seen``: how often it has computed each row."""
    seen, lock = Counter(), threading.Lock()
    pause = threading.Event()

    def model(img):
        with lock:
            seen.update(img[:, 0].tolist())
        pause.wait(delay[0])
        return img.sum(axis=1, keepdims=True)

    delay = [0.0]
    with serve(
        model, {"img": ((3,), "float32")}, {"total": ((1,), "float32")}, fingerprint="m"
    ) as server:
        seen.clear()
        server.seen, server.delay = seen, delay
        yield server


def arguments(store, teachers, source="numbers", *more):
    return [
        *("label", "--source", f"tests.cli.test_label:{source}", "--slot", "img"),
        *("--teachers", teachers, "--predicts", "total", "--store", store, *more),
    ]


def started(*args):
    command = [sys.executable, "-m", "edl.cli.main", *map(str, arguments(*args))]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def labelled(process):
    """What it says at its end: rows labelled, and rows that were there."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return counts(out)


def counts(said):
    return tuple(map(int, re.match(r"(\d+) rows labelled, (\d+) were there", said).groups()))


@pytest.fixture
def label(capsys):
    """The same of one that is run to its end, in this process."""

    def run(*args):
        main.edl(list(map(str, arguments(*args))), standalone_mode=False)
        return counts(capsys.readouterr().out)

    return run


def assert_complete(store, source=numbers):
    with DistillReader(["img"], ["total"], source(), store=store) as reader:
        assert sum((np.abs(t[:, 0] - i.sum(axis=1)) < 1e-3).sum() for i, t in reader) == 400


@pytest.mark.parametrize("source", ["numbers", "through", "creator", "loader"])
def test_all_rows_are_labelled_and_a_second_run_asks_nothing(tmp_path, teacher, label, source):
    assert label(tmp_path, teacher.endpoint, source) == (COUNT * ROWS, 0)
    assert len(teacher.seen) == COUNT * ROWS
    assert label(tmp_path, teacher.endpoint, source) == (0, COUNT * ROWS)
    assert set(teacher.seen.values()) == {1}
    assert_complete(tmp_path)


def test_a_sampler_that_takes_a_part_is_asked_which(tmp_path, teacher, label):
    assert label(tmp_path, teacher.endpoint, "part") == (COUNT * ROWS // 10, 0)
    assert sorted(teacher.seen) == list(range(0, COUNT * ROWS, 10))


def test_each_epoch_has_its_views(tmp_path, teacher, label):
    assert label(tmp_path, teacher.endpoint, "views", "--epochs", "3") == (3 * COUNT * ROWS, 0)
    assert max(teacher.seen) == 2000 + COUNT * ROWS - 1


def test_shards_share_the_work(tmp_path, teacher, label):
    done = [
        label(tmp_path, teacher.endpoint, "loader", "--shard", f"{number}/3")[0]
        for number in range(3)
    ]
    assert sum(done) == COUNT * ROWS
    assert min(done) > 0
    assert set(teacher.seen.values()) == {1}
    assert_complete(tmp_path)


@pytest.fixture
def registered(teacher, etcd_server, etcd, service):
    registration = Registration(etcd, service, teacher.endpoint, "{}")
    registration.start()
    yield f"etcd://{etcd_server.endpoint}/{service}"
    registration.stop()


@pytest.mark.parametrize("source", ["loader", "through"])
def test_processes_share_the_work_in_etcd(tmp_path, teacher, registered, source):
    teacher.delay[0] = 0.01
    runs = [started(tmp_path, registered, source) for _ in range(2)]
    done = [labelled(run) for run in runs]
    assert sum(rows for rows, _ in done) == COUNT * ROWS
    assert set(teacher.seen.values()) == {1}
    assert_complete(tmp_path)


def test_the_part_of_one_that_is_killed_is_taken_over(tmp_path, teacher, registered):
    teacher.delay[0] = 0.05
    first, second = (started(tmp_path, registered, "loader") for _ in range(2))
    eventually(lambda: len(teacher.seen) > 60, timeout=30)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    teacher.delay[0] = 0.0
    labelled(second)
    assert len(teacher.seen) == COUNT * ROWS
    assert_complete(tmp_path)


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, teacher, label):
    teacher.delay[0] = 0.05
    first = started(tmp_path, teacher.endpoint)
    eventually(lambda: len(teacher.seen) > 100, timeout=30)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    teacher.delay[0] = 0.0
    asked, there = label(tmp_path, teacher.endpoint)
    assert asked + there == COUNT * ROWS
    assert there > 0
    assert_complete(tmp_path)


def test_a_terminal_shows_how_far_it_is(tmp_path, teacher):
    with edl_on_terminal(*arguments(tmp_path, teacher.endpoint)) as process:
        pass
    assert process.returncode == 0
    assert "rows/s" in process.shown
    assert "100/100 batches" in process.shown


def test_nothing_is_shown_where_there_is_no_terminal(tmp_path, teacher):
    run = edl(*arguments(tmp_path, teacher.endpoint))
    assert "rows/s" not in run.stderr
    assert run.stdout.count("\n") == 1


def test_a_full_store_ends_it(tmp_path, teacher):
    run = edl(*arguments(tmp_path, teacher.endpoint, "numbers", "--store-bytes", "1"))
    assert run.returncode == 1
    assert "limit of 1 bytes" in run.stderr


@pytest.mark.parametrize("shard", ["3/3", "a/b", "1"])
def test_a_shard_that_cannot_be(tmp_path, shard):
    run = edl(*arguments(tmp_path, "127.0.0.1:1", "numbers", "--shard", shard))
    assert run.returncode == 2
    assert "is not I/N" in run.stderr
