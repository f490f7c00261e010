"""A store gives back what was added, to the bit, or nothing."""

import contextlib
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edl._machine import boot_id
from edl.errors import StoreError
from edl.store import LabelStore, places
from edl.store.environment import open_environment, release
from edl.store.maintenance import compact, verify
from edl.store.records import Column, Gathered, Kind, Labels, is_sound
from tests.support.processes import ROOT

KIND = Kind("model:a", "logits", ("img",), (Column("logits", (10,), "float32"),))
TOKENS = Kind(
    "model:a",
    "logits?top_k=3",
    ("ids",),
    (
        Column("logits.values", (-1, 3), "float16", 0),
        Column("logits.indices", (-1, 3), "int32", 0),
        Column("logits.logsumexp", (-1,), "float32", 0),
    ),
    sequences=("ids",),
)


def rows(numbers):
    """Keys and labels of rows that are known by a number."""
    keys = KIND.keys([int(number).to_bytes(16, "big") for number in numbers], 0)
    base = np.arange(10, dtype="float32")
    return keys, np.stack([base * number for number in numbers])


def added(store, numbers):
    keys, labels = rows(numbers)
    store.add(Labels(KIND, keys, {"logits": labels}))
    return keys


def assert_has(store, numbers):
    keys, labels = rows(numbers)
    found = store.recall(KIND, keys)
    assert not found.missing
    np.testing.assert_array_equal(found.labels.columns["logits"], labels)


# --- what is added is there ---------------------------------------------------------------------


def test_labels_are_there_at_once_and_after_opening_again(tmp_path):
    with LabelStore(tmp_path / "labels") as store:
        assert list(store.recall(KIND, rows(range(5))[0]).missing) == list(range(5))
        added(store, range(5))
        assert_has(store, range(5))
        assert store.flush()
        assert_has(store, range(5))
        assert store.counters.added == 5
    with LabelStore(tmp_path / "labels") as store:
        assert_has(store, [4, 1, 1, 0])
        assert store.kinds() == [KIND]


def test_a_batch_may_be_half_there(tmp_path):
    with LabelStore(tmp_path) as store:
        added(store, [1, 3])
        keys, labels = rows(range(5))
        found = store.recall(KIND, keys)
        assert found.missing == [0, 2, 4]
        np.testing.assert_array_equal(found.labels.columns["logits"][[1, 3]], labels[[1, 3]])


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 3), st.integers(0, 1 << 30)
)
def test_sequences_come_back_in_any_width(lengths, more, seed):
    generator = np.random.default_rng(seed)
    lengths = np.array(lengths)
    width = lengths.max()
    columns = {
        "logits.values": generator.random((len(lengths), width, 3)).astype("float16"),
        "logits.indices": generator.integers(0, 99, (len(lengths), width, 3), np.int32),
        "logits.logsumexp": generator.random((len(lengths), width), np.float32),
    }
    keys = TOKENS.keys([bytes([row] * 16) for row in range(len(lengths))], 0)
    gathered = Gathered(TOKENS, len(lengths), width + more)
    records = list(map(memoryview, Labels(TOKENS, keys, columns, lengths).records()))
    assert all(map(partial(is_sound, TOKENS), keys, records))
    assert not gathered.fill(range(len(keys)), keys, records, print)
    outside = np.arange(width + more) >= lengths[:, np.newaxis]
    for name, array in columns.items():
        got = gathered.columns[name]
        assert got.shape == (len(lengths), width + more, *array.shape[2:])
        assert not got[outside].any()
        inside = ~outside[:, :width]
        np.testing.assert_array_equal(got[:, :width][inside], array[inside])


def test_labels_that_somebody_holds_stay_as_they_are(tmp_path):
    kind = Kind("model:a", "logits", ("img",), (Column("logits", (1000,), "float32"),))
    keys = kind.keys([number.to_bytes(16, "big") for number in range(640)], 0)
    labels = np.random.default_rng(0).random((640, 1000), np.float32)
    with LabelStore(tmp_path) as store:
        store.add(Labels(kind, keys, {"logits": labels}))
        store.flush()
        held = {}
        for number in range(40):
            rows = slice(number % 10 * 64, number % 10 * 64 + 64)
            found = store.recall(kind, keys[rows]).labels.columns["logits"]
            np.testing.assert_array_equal(found, labels[rows])
            found += 1  # it is ours
            if number % 3 == 0:
                held[number] = found[1:]
    for number, view in held.items():
        start = number % 10 * 64
        np.testing.assert_array_equal(view, labels[start + 1 : start + 64] + 1)


dtypes = st.sampled_from(["float32", "float16", "int32", "uint8", "int64"])


@given(st.data(), dtypes, st.lists(st.sampled_from([-1, 0, 1, 3]), max_size=3))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_rows_come_back_to_the_bit(data, dtype, shape):
    sizes = [data.draw(st.integers(0, 3)) if size < 0 else size for size in shape]
    array = data.draw(arrays.arrays(dtype, (4, *sizes)))
    kind = Kind("m", "out", ("x",), (Column("out", tuple(shape), dtype),))
    keys = kind.keys([bytes([row] * 16) for row in range(4)], 0)
    gathered = Gathered(kind, 4)
    records = map(memoryview, Labels(kind, keys, {"out": array}).records())
    assert not gathered.fill(range(4), keys, records, print)
    got = gathered.columns["out"]
    assert got.dtype == array.dtype
    assert got.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "other",
    [
        {"model": "model:b"},
        {"prediction": "logits?top_k=10"},
        {"feeds": ("img", "mask")},
        {"keyed_by": ("sample_id",)},
        {"columns": (Column("logits", (10,), "float16"),)},
    ],
)
def test_labels_of_another_kind_are_no_labels(tmp_path, other):
    said = {**{name: getattr(KIND, name) for name in KIND.__dataclass_fields__}, **other}
    with LabelStore(tmp_path) as store:
        added(store, [1])
        kind = Kind(**said)
        assert list(store.recall(kind, kind.keys([(1).to_bytes(16, "big")], 0)).missing) == [0]


def test_what_is_drawn_belongs_to_its_epoch():
    drawn = Kind("m", "logits?top_k=1&samples=2", ("img",), KIND.columns, drawn=True)
    assert drawn.keys([bytes(16)], 0) != drawn.keys([bytes(16)], 1)
    assert KIND.keys([bytes(16)], 0) == KIND.keys([bytes(16)], 1)


def test_a_kind_is_the_same_when_it_is_read_again():
    assert Kind.parse(TOKENS.text) == TOKENS
    assert Kind.parse(TOKENS.text).id == TOKENS.id
    assert KIND.id.hex() == "c261c3535541d9e1"  # of stores that there are
    with pytest.raises(StoreError, match="no kind of labels"):
        Kind.parse('{"model": 1}')


# --- what is damaged ----------------------------------------------------------------------------


def test_a_record_that_is_not_what_was_written_is_none_and_is_said(tmp_path, caplog):
    with LabelStore(tmp_path) as store:
        keys = added(store, range(20))
    path = tmp_path / "shared" / "data.mdb"
    label = rows([7])[1].tobytes()
    path.write_bytes(path.read_bytes().replace(label, label[:-1] + bytes([label[-1] ^ 1])))
    with LabelStore(tmp_path) as store:
        found = store.recall(KIND, keys)
        assert found.missing == [7]
        assert store.counters.damaged == 1
        added(store, [7])
        store.flush()
        assert_has(store, range(20))
    assert "not what was written" in caplog.text


def test_a_record_under_another_key_is_damaged():
    keys, labels = rows([1, 2])
    first, second = Labels(KIND, keys, {"logits": labels}).records()
    assert is_sound(KIND, keys[0], first)
    assert not is_sound(KIND, keys[0], second)
    assert not is_sound(KIND, keys[0], b"")
    rejected = []
    records = [memoryview(b""), memoryview(second), None, memoryview(second)]
    gathered = Gathered(KIND, 4)
    left = gathered.fill(
        range(4), [keys[0], keys[0], *keys], records, lambda *r: rejected.append(r)
    )
    assert left == [0, 1, 2]
    assert rejected == [(keys[0], records[0]), (keys[0], records[1])]
    assert gathered.columns["logits"][3].tobytes() == labels[1].tobytes()


def test_what_a_damaged_record_says_of_its_size_is_not_believed():
    columns = {
        "logits.values": np.zeros((1, 2, 3), "f2"),
        "logits.indices": np.zeros((1, 2, 3), "i4"),
        "logits.logsumexp": np.zeros((1, 2), "f4"),
    }
    keys = TOKENS.keys([bytes(16)], 0)
    (record,) = Labels(TOKENS, keys, columns, np.array([2])).records()
    huge = record[:8] + b"\xff" * 12 + record[20:]
    gathered = Gathered(TOKENS, 2, 2)
    records = [memoryview(huge), memoryview(record)]
    assert gathered.fill(range(2), 2 * keys, records, lambda *_: None) == [0]


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    with LabelStore(tmp_path) as store:
        added(store, range(2000))
    path = tmp_path / "shared" / "data.mdb"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StoreError, match="was cut off"):
        LabelStore(tmp_path)


def test_a_store_of_a_later_format_is_left_alone(tmp_path):
    with LabelStore(tmp_path) as store:
        added(store, [1])
    environment = open_environment(tmp_path / "shared")
    with environment._env.begin(write=True, db=environment._env.open_db(b"about")) as transaction:
        transaction.put(b"version", b"2")
    release(environment)
    with pytest.raises(StoreError, match="use a newer EDL"):
        LabelStore(tmp_path)


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "data.mdb").write_bytes(os.urandom(20000))
    with pytest.raises(StoreError, match="is no label store"):
        LabelStore(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="no label store can be at"):
        LabelStore(tmp_path / "file")


# --- where it ends ------------------------------------------------------------------------------


def test_at_its_limit_it_stops_to_add_and_says_so_once(tmp_path, caplog):
    with LabelStore(tmp_path, limit=2_000_000) as store:
        for start in range(0, 40_000, 1000):
            added(store, range(start, start + 1000))
            store.flush()
        assert "would be larger than its limit of 2000000 bytes" in store.full
        assert 1_500_000 < store.nbytes <= 2_000_000
        assert store.counters.added + store.counters.dropped == 40_000
        assert_has(store, range(store.counters.added))
    assert caplog.text.count("no more labels are stored") == 1


def test_the_limit_is_that_of_all_processes_together(tmp_path):
    with (
        LabelStore(tmp_path, limit=1_000_000, local=False) as one,
        LabelStore(tmp_path, limit=1_000_000, local=False) as two,
    ):
        for start in range(0, 20_000, 1000):
            for store in (one, two):
                added(store, range(start, start + 1000))
                assert store.flush()
        assert one.full
        assert two.full
        assert sum(file.stat().st_size for file in tmp_path.glob("*/data.mdb")) <= 1_000_000


def test_what_comes_at_once_is_stored_as_far_as_the_limit_has_room(tmp_path):
    with LabelStore(tmp_path, limit=1_000_000) as store:
        for start in range(0, 40_000, 100):
            added(store, range(start, start + 100))
        assert store.flush()
        assert store.full
        assert store.nbytes > 500_000
        assert_has(store, range(store.counters.added))


_FULL_DISK = """
import resource, sys
from edl.store import LabelStore, places
from tests.store.test_store import added, assert_has
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
with LabelStore(sys.argv[1]) as store:
    for start in range(0, 20_000, 1000):
        added(store, range(start, start + 1000))
        store.flush()
    assert store.full, "it was never full"
    assert store.counters.added and store.counters.dropped
    assert_has(store, range(store.counters.added))
    print(store.counters.added)
"""


def test_on_a_full_disk_it_goes_on_without_adding(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "no more labels are stored" in run.stderr
    with LabelStore(tmp_path) as store:
        assert_has(store, range(int(run.stdout)))
        added(store, [30_000])  # where there is room again
        assert store.flush()
        assert not store.full
        assert_has(store, [30_000])


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_FSIZE)[0] != -1, reason="files are limited")
def test_it_grows_beyond_its_first_map(tmp_path):
    large = Kind("m", "all", ("img",), (Column("all", (1 << 20,), "uint8"),))
    keys = large.keys([bytes([row]) * 16 for row in range(100)], 0)
    labels = np.repeat(np.arange(100, dtype="uint8")[:, np.newaxis], 1 << 20, axis=1)
    with LabelStore(tmp_path) as store, LabelStore(tmp_path) as other:
        for row in range(100):
            store.add(Labels(large, keys[row : row + 1], {"all": labels[row : row + 1]}))
        assert store.flush(60)
        found = other.recall(large, keys)
        assert not found.missing
        np.testing.assert_array_equal(found.labels.columns["all"], labels)


_READ_ONLY = """
import os, pathlib, sys
from edl.store import LabelStore, places
from tests.store.test_store import added, assert_has
directory = pathlib.Path(sys.argv[1])
with LabelStore(sys.argv[2]) as store:  # what is imported late may lie where only root may read
    added(store, [0])
    assert_has(store, [0])
for path in [directory, *directory.rglob("*")]:
    path.chmod(0o555 if path.is_dir() else 0o444)
user = os.geteuid()
if not user:
    os.seteuid(65534)  # who is root may write anywhere
with LabelStore(directory) as store:
    assert_has(store, range(10))
    added(store, [11])
    assert store.flush()
    assert "cannot be written" in store.full
os.seteuid(user)  # what is measured of this process is written where only its user may
"""


def test_one_that_may_only_be_read_is_read(tmp_path):
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        directory = Path(name, "labels")
        with LabelStore(directory) as store:
            added(store, range(10))
        compact(directory)
        command = [sys.executable, "-c", _READ_ONLY, str(directory), str(tmp_path)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        for path in [directory, *directory.rglob("*")]:
            path.chmod(0o755)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("size", "ahead"), [(100, False), (200_000, True)])
def test_the_system_reads_ahead_where_records_are_large(tmp_path, size, ahead):
    kind = Kind("m", "all", ("img",), (Column("all", (size,), "uint8"),))
    keys = kind.keys([bytes([row]) * 16 for row in range(20)], 0)
    labels = np.ones((20, size), "uint8")
    with LabelStore(tmp_path) as store:
        store.add(Labels(kind, keys, {"all": labels}))
    with LabelStore(tmp_path) as store:
        assert not store.recall(kind, keys).missing
        (map_,) = re.findall(
            rf"{tmp_path}/shared/data.mdb\n(?:.*\n)*?VmFlags:(.*)",
            Path("/proc/self/smaps").read_text(),
        )
    assert ("rr" not in map_.split()) == ahead  # proc(5): "random read advise provided"


# --- several writers ----------------------------------------------------------------------------


_WRITER = """
import sys
from edl.store import LabelStore, places
from tests.store.test_store import added, assert_has
local = {"local": True, "remote": False}[sys.argv[2]]
first = int(sys.argv[3])
with LabelStore(sys.argv[1], local=local) as store:
    for start in range(first, first + 100_000, 50):
        added(store, range(start, start + 50))
        store.flush()
        print(start + 50, flush=True)
"""


def writer(directory, where, first):
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(directory), where, str(first)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("where", ["local", "remote"])
def test_writers_that_are_killed_lose_nothing_that_was_acknowledged(tmp_path, where):
    generator = np.random.default_rng(1)
    _kill_writers(tmp_path, where, generator, rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "remote"])
def test_writers_are_killed_many_times(tmp_path, where):
    rounds = int(os.environ.get("EDL_TEST_KILLS", "6"))
    _kill_writers(tmp_path, where, np.random.default_rng(), rounds)


def _kill_writers(directory, where, generator, rounds):
    done = {}
    for number in range(rounds):
        writers = {
            first: writer(directory, where, first)
            for first in (2 * number * 1_000_000, (2 * number + 1) * 1_000_000)
        }
        for process in writers.values():
            process.stdout.readline()
        killers = [
            threading.Timer(generator.uniform(0, 0.3), process.send_signal, [signal.SIGKILL])
            for process in writers.values()
        ]
        for killer in killers:
            killer.start()
        for first, process in writers.items():
            done[first] = max(first + 50, *map(int, process.stdout.readlines() or [0]))
            process.wait()
            process.stdout.close()
        with LabelStore(directory, local=where == "local") as store:
            for first, end in done.items():
                assert_has(store, range(first, end))
        assert not verify(directory).bad


def test_the_map_grows_under_several_writers_of_one_process(tmp_path):
    large = Kind("m", "all", ("img",), (Column("all", (1 << 20,), "uint8"),))
    label = np.ones((1, 1 << 20), "uint8")

    def fill(store, number):
        for row in range(60):
            key = large.keys([bytes([number, row]) * 8], 0)
            store.add(Labels(large, key, {"all": label}))
            store.flush(60)
            assert not store.recall(large, key).missing

    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        stores = [stack.enter_context(LabelStore(tmp_path)) for _ in range(3)]
        list(pool.map(fill, stores, range(3)))
        assert [store.full for store in stores] == ["", "", ""]
        assert sum(store.counters.added for store in stores) == 180


_DIES_READING = """
import os, sys
from edl.store.environment import open_environment
environment = open_environment(__import__("pathlib").Path(sys.argv[1]) / "shared")
with environment._reading(environment._labels):
    os.kill(os.getpid(), 9)
"""


def test_one_that_was_killed_while_it_read_does_not_let_the_store_grow(tmp_path):
    keys = rows(range(1000))[0]
    records = [(key, bytes(4000)) for key in keys]
    with LabelStore(tmp_path) as store:
        store.write(records, {KIND.id: KIND.text.encode()})
        subprocess.run([sys.executable, "-c", _DIES_READING, str(tmp_path)], cwd=ROOT, check=False)
        for _ in range(30):  # 4 MB of pages each time, which are free when the next one is written
            store.write(records, {})
        assert store.nbytes <= 64 << 20


def test_two_stores_of_one_process_share_what_they_add(tmp_path):
    with LabelStore(tmp_path) as one, LabelStore(tmp_path) as two:
        added(one, [1])
        added(two, [2])
        assert one.flush()
        assert two.flush()
        assert_has(one, [1, 2])
        assert_has(two, [1, 2])


def test_a_forked_process_opens_its_own(tmp_path):
    with LabelStore(tmp_path) as store:
        added(store, [1])
        store.flush()
        child = os.fork()
        if not child:
            try:
                with LabelStore(tmp_path) as mine:
                    assert_has(mine, [1])
                    added(mine, [2])
                store.close()  # not the child's: nothing happens
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert_has(store, [1, 2])
        added(store, [3])
        assert store.flush()
        assert_has(store, [1, 2, 3])


def test_machines_that_share_a_file_system_read_what_others_have_sealed(tmp_path):
    with LabelStore(tmp_path, local=False) as one, LabelStore(tmp_path, local=False) as two:
        added(one, [1])
        one.flush()
        assert list(two.recall(KIND, rows([1])[0]).missing) == [0]
        one.seal()
        two.refresh()
        assert_has(two, [1])
        assert_has(one, [1])
        added(one, [2])
    with LabelStore(tmp_path, local=False) as three:
        assert_has(three, [1, 2])


def test_hundreds_of_epochs_are_a_few_files_and_nothing_is_kept_from_others(tmp_path):
    with LabelStore(tmp_path, local=False) as one:
        for epoch in range(100):
            added(one, range(epoch * 200, epoch * 200 + 200))
            one.flush()
            one.share()
        assert len(list(tmp_path.glob("*.sealed"))) < 30
        one.share()  # an epoch that adds nothing
        with LabelStore(tmp_path, local=False) as two:
            assert_has(two, range(100 * 200))


def test_what_one_machine_has_filled_is_read_by_others_once_it_is_compacted(tmp_path, caplog):
    with LabelStore(tmp_path) as store:
        added(store, [1])
    with LabelStore(tmp_path, local=False) as store:
        assert list(store.recall(KIND, rows([1])[0]).missing) == [0]
    assert "is of one machine, and left out" in caplog.text
    compact(tmp_path)
    with LabelStore(tmp_path, local=False) as store:
        assert_has(store, [1])


def test_who_has_the_disk_is_told_that_others_use_it(tmp_path):
    with LabelStore(tmp_path, local=False) as elsewhere, LabelStore(tmp_path) as here:
        added(elsewhere, [1])
        added(here, [2])
        elsewhere.seal()
        here.seal()
        here.refresh()
        elsewhere.refresh()
        assert_has(here, [1, 2])
        assert_has(elsewhere, [1, 2])


def test_one_that_cannot_be_read_is_left_out_and_named(tmp_path, caplog):
    with LabelStore(tmp_path, local=False) as store:
        added(store, [1])
    (tmp_path / "broken.sealed").mkdir()
    with caplog.at_level(logging.WARNING), LabelStore(tmp_path, local=False) as store:
        assert_has(store, [1])
    assert "broken.sealed" in caplog.text


def test_what_a_machine_of_the_same_name_fills_is_its_own(tmp_path):
    """Its lock on it may not be seen here: some network file systems keep locks to each machine."""
    for boot in ("", "another"):
        live, owner = places.new_live(tmp_path)
        owner.close()
        if boot:
            this = boot_id()[:8]
            live = live.rename(live.with_name(live.name.replace(this, boot)))
        places.seal_orphans(tmp_path)
        assert live.exists() == bool(boot)
