"""A reader with a store: a label is asked for once. Teachers are real, and count the rows."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import ConfigError, NoTeacherError, SourceError, StoreError
from edl.serving import ServerOptions, serve
from edl.serving.server.hosting import ServedTeacher
from edl.serving.worker.handles import WorkerThread
from tests.support.predictors import Texts
from tests.support.processes import ROOT, python_teacher

ROWS, WIDTH, BATCHES = 8, 6, 10


class Counting:
    """A teacher in this process: ``prob`` is ``factor`` times the sum of a row. It knows how often
    it has seen each row.
    """

    def __init__(self, fingerprint="model:a", factor=1.0, width=WIDTH, fetch="prob"):
        self.seen = Counter()
        self._lock = threading.Lock()

        def model(img):
            with self._lock:
                self.seen.update(row.tobytes() for row in img)
            return factor * img.sum(axis=1, keepdims=True) * np.arange(1, 4, dtype="f4")

        self.server = serve(
            model,
            {"img": ((width,), "float32")},
            {fetch: ((3,), "float32")},
            fingerprint=fingerprint,
        )
        self.endpoint = self.server.endpoint

    @property
    def rows(self):
        return sum(self.seen.values())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.__exit__(None, None, None)


@contextlib.contextmanager
def counting(*args, **options):
    with Counting(*args, **options) as teacher:
        teacher.seen.clear()  # what it computes to warm up
        yield teacher


def images(count=BATCHES, first=0):
    for number in range(first, first + count):
        generator = np.random.default_rng(number)
        yield generator.random((ROWS, WIDTH), np.float32), np.arange(ROWS)


def reader_of(directory, *teachers, source=images, **options):
    return DistillReader(
        ["img", "label"],
        ["prob"],
        source=source,
        teachers=[teacher.endpoint for teacher in teachers] or None,
        store=directory / "labels",
        **options,
    )


def read(reader):
    return [tuple(np.array(slot) for slot in batch) for batch in reader]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second):
        for a, b in zip(one, two):
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()


# --- asked once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 3])
def test_later_epochs_ask_nothing_and_get_the_same_to_the_bit(tmp_path, batch_size):
    with counting() as teacher:
        with reader_of(tmp_path, teacher, teacher_batch_size=batch_size) as reader:
            epochs = [read(reader) for _ in range(3)]
            store = reader.stats()["store"]
        assert set(teacher.seen.values()) == {1}
        assert teacher.rows == ROWS * BATCHES
    assert_same(epochs[0], epochs[1])
    assert_same(epochs[0], epochs[2])
    expected = [img.sum(axis=1) for img, _ in images()]
    np.testing.assert_allclose([batch[2][:, 0] for batch in epochs[1]], expected, rtol=1e-6)
    assert (store["hits"], store["misses"]) == (2 * ROWS * BATCHES, ROWS * BATCHES)
    assert store["bytes"] == 2 * ROWS * BATCHES * 12
    assert store["added"] == ROWS * BATCHES


def test_teachers_that_end_after_the_first_epoch_are_not_missed(tmp_path):
    with counting() as teacher:
        reader = reader_of(tmp_path, teacher, no_teacher_timeout=5)
        first = read(reader)
    with reader:
        assert_same(first, read(reader))
        assert_same(first, read(reader))
        assert reader.stats()["models"] == ["model:a"]
        assert reader.stats()["rows"] == 3 * ROWS * BATCHES


def test_losses_are_the_same_to_the_bit_without_teachers(tmp_path):
    import paddle

    def losses(reader, after_first=lambda: None):
        paddle.seed(0)
        student = paddle.nn.Linear(WIDTH, 3)
        optimizer = paddle.optimizer.SGD(0.01, parameters=student.parameters())
        found = []
        with reader:
            for epoch in range(3):
                for img, _, prob in reader:
                    out = student(paddle.to_tensor(img))
                    loss = paddle.nn.functional.mse_loss(out, paddle.to_tensor(prob))
                    loss.backward()
                    optimizer.step()
                    optimizer.clear_grad()
                    found.append(float(loss))
                if not epoch:
                    after_first()
        return found

    with python_teacher("Triple") as one, python_teacher("Triple") as two:
        teachers = [one.endpoint, two.endpoint]
        expected = losses(DistillReader(["img", "label"], ["prob"], images, teachers))

        def kill():
            one.kill()
            two.kill()

        reader = reader_of(tmp_path, one, two, no_teacher_timeout=1)
        assert losses(reader, after_first=kill) == expected


def test_teachers_may_be_killed_while_half_of_each_batch_is_known(tmp_path):
    def every_third_row():
        for img, label in images(60):
            yield img[::3].copy(), label[::3]

    with python_teacher("Triple") as one, python_teacher("Triple") as two:
        with reader_of(tmp_path, one, source=every_third_row) as reader:
            read(reader)
        with reader_of(
            tmp_path, one, two, source=lambda: images(60), teacher_batch_size=2
        ) as reader:
            for number, ((img, _), (got, _, prob)) in enumerate(zip(images(60), reader)):
                np.testing.assert_array_equal(got, img)
                np.testing.assert_allclose(prob[:, 2], 3 * img.sum(axis=1), rtol=1e-6)
                if number == 5:
                    one.kill()
            assert reader.stats()["store"]["hits"] == 60 * 3
    with reader_of(tmp_path, source=lambda: images(60)) as reader:
        assert len(read(reader)) == 60


def test_a_reader_without_teachers_reads_what_there_is(tmp_path):
    with counting() as teacher, reader_of(tmp_path, teacher) as reader:
        first = read(reader)
    with reader_of(tmp_path) as reader:
        assert_same(first, read(reader))


def test_only_what_is_missing_is_asked_for_and_the_order_holds(tmp_path):
    def every_other_row():
        for img, label in images():
            yield img[::2].copy(), label[::2]

    with counting() as teacher:
        with reader_of(tmp_path, teacher, source=every_other_row) as reader:
            read(reader)
        with reader_of(tmp_path, teacher, teacher_batch_size=3) as reader:
            mixed = read(reader)
            assert reader.stats()["store"]["hits"] == ROWS * BATCHES // 2
        assert set(teacher.seen.values()) == {1}
        with DistillReader(["img", "label"], ["prob"], images, [teacher.endpoint]) as reader:
            assert_same(mixed, read(reader))


@pytest.mark.parametrize("form", ["samples", "sample lists", "dicts", "tensors"])
def test_every_form_of_source_is_stored(tmp_path, form):
    import paddle

    def source():
        for img, label in images(4):
            if form == "samples":
                yield from zip(img, label)
            elif form == "sample lists":
                yield list(zip(img, label))
            elif form == "dicts":
                yield {"img": img, "label": label}
            else:
                yield [paddle.to_tensor(img), paddle.to_tensor(label)]

    def epoch(reader):
        flat = []
        for item in reader:
            for sample in item if form == "sample lists" else [item]:
                values = sample.values() if isinstance(sample, dict) else sample
                flat += [np.array(value) for value in values]
        return [tuple(flat)]

    with counting() as teacher:
        reader = DistillReader(
            ["img", "label"], ["prob"], teachers=[teacher.endpoint], store=tmp_path
        )
        with reader:
            if form == "samples":
                reader.set_sample_generator(source)
            elif form == "sample lists":
                reader.set_sample_list_generator(source)
            else:
                reader.set_batch_generator(source)
            first, second = epoch(reader), epoch(reader)
        assert set(teacher.seen.values()) == {1}
    assert_same(first, second)


def test_a_student_may_change_what_it_gets(tmp_path):
    with counting() as teacher, reader_of(tmp_path, teacher) as reader:
        first = []
        for _, _, prob in reader:
            first.append(prob.copy())
            prob[:] = 0
        for (_, _, prob), before in zip(reader, first):
            np.testing.assert_array_equal(prob, before)
            prob[:] = 0
        for (_, _, prob), before in zip(reader, first):
            np.testing.assert_array_equal(prob, before)


def test_data_that_changes_is_asked_for_anew(tmp_path):
    with counting() as teacher:
        with reader_of(tmp_path, teacher) as reader:
            read(reader)
        changed = [(img + np.float32(1), label) for img, label in images()]
        with reader_of(tmp_path, teacher, source=changed) as reader:
            batches = read(reader)
        assert teacher.rows == 2 * ROWS * BATCHES
    for (img, _), (_, _, prob) in zip(changed, batches):
        np.testing.assert_allclose(prob[:, 0], img.sum(axis=1), rtol=1e-6)


def test_a_batch_without_rows_is_asked_for_as_ever(tmp_path):
    source = [(np.zeros((0, WIDTH), "f4"), np.zeros(0)), *images(1)]
    with counting() as teacher, reader_of(tmp_path, teacher, source=source) as reader:
        for _ in range(2):
            assert [batch[2].shape for batch in reader] == [(0, 3), (ROWS, 3)]


def test_the_order_of_what_is_known_and_what_is_not_holds_with_slow_teachers(tmp_path):
    with counting() as teacher:
        with reader_of(tmp_path, teacher, source=lambda: images(5, 5)) as reader:
            read(reader)
        with reader_of(tmp_path, teacher, source=lambda: images(15)) as reader:
            for (img, _), (got, _, prob) in zip(images(15), reader):
                np.testing.assert_array_equal(got, img)
                np.testing.assert_allclose(prob[:, 0], img.sum(axis=1), rtol=1e-6)
        assert set(teacher.seen.values()) == {1}


def test_an_epoch_that_is_resumed_keeps_to_its_model_and_its_place(tmp_path):
    with counting() as teacher:
        with reader_of(tmp_path, teacher) as reader:
            whole = read(reader)
            iterator = iter(reader)
            begun = [next(iterator) for _ in range(4)]
            state = json.loads(json.dumps(reader.state_dict()))
    assert state["models"] == ["model:a"]
    with reader_of(tmp_path) as reader:
        reader.load_state_dict(state)
        assert_same(whole[4:], read(reader))
    assert len(begun) == 4


# --- without teachers ---------------------------------------------------------------------------


def test_what_is_missing_without_a_teacher_is_an_error_that_says_how_much_was_there(tmp_path):
    with counting() as teacher, reader_of(tmp_path, teacher) as reader:
        first = read(reader)
    with reader_of(tmp_path, source=lambda: images(BATCHES + 1)) as reader:
        iterator = iter(reader)
        assert_same(first, [next(iterator) for _ in range(BATCHES)])
        words = f"had {ROWS * BATCHES} of the {ROWS * (BATCHES + 1)} rows of this epoch"
        with pytest.raises(NoTeacherError, match=words):
            next(iterator)


def test_a_teacher_that_comes_back_gives_what_is_missing(tmp_path):
    with counting() as teacher, reader_of(tmp_path, teacher, source=lambda: images(3)) as reader:
        read(reader)
    with counting() as teacher:
        with reader_of(tmp_path, teacher) as reader:
            assert len(read(reader)) == BATCHES
        assert teacher.rows == ROWS * (BATCHES - 3)


def test_a_slow_source_is_no_missing_teacher(tmp_path):
    with counting() as teacher, reader_of(tmp_path, teacher, source=lambda: images(3)) as reader:
        first = read(reader)
    wait = threading.Event()

    def slow():
        for batch in images(3):
            wait.wait(1.2)
            yield batch

    with reader_of(tmp_path, source=slow) as reader:
        assert_same(first, read(reader))


def test_an_empty_store_without_teachers_says_that_there_is_nothing(tmp_path):
    with (
        reader_of(tmp_path) as reader,
        pytest.raises(NoTeacherError, match="has no labels of these predictions"),
    ):
        next(iter(reader))


def test_what_is_said_of_rows_says_which_ones_of_a_batch_that_is_half_known(tmp_path):
    good = [(np.zeros((ROWS, WIDTH), "f4") + np.arange(ROWS, dtype="f4")[:, np.newaxis],)]
    bad = good[0][0].copy()
    bad[[1, 5]] = 1e9  # which is no float16
    options = {"teachers": None, "wire": {"img": "float16"}, "store": tmp_path}
    with counting() as teacher:
        options["teachers"] = teacher.endpoint
        with DistillReader(["img"], ["prob"], good, **options) as reader:
            assert len(read(reader)) == 1
        with (
            DistillReader(["img"], ["prob"], [(bad,)], **options) as reader,
            pytest.raises(SourceError, match=r"row 0: .* which are 1, 5$"),
        ):
            read(reader)


# --- models -------------------------------------------------------------------------------------


def test_labels_of_another_model_are_no_labels(tmp_path):
    with counting("model:a") as teacher, reader_of(tmp_path, teacher) as reader:
        read(reader)
    with counting("model:b", factor=2.0) as teacher, reader_of(tmp_path, teacher) as reader:
        for (img, _), (_, _, prob) in zip(images(), reader):
            np.testing.assert_allclose(prob[:, 0], 2 * img.sum(axis=1), rtol=1e-6)
        assert teacher.rows == ROWS * BATCHES


def test_labels_of_a_model_that_nobody_can_tell_from_others_are_not_stored_unasked(tmp_path):
    with counting("") as teacher, reader_of(tmp_path, teacher) as reader:
        with pytest.raises(StoreError, match="do not say which model they serve") as error:
            read(reader)
        assert not teacher.rows
    (model,) = re.findall(r"specs:\w+", str(error.value))
    with counting("", factor=2.0) as teacher:
        for _ in range(2):
            with reader_of(tmp_path, teacher, store_model=model) as reader:
                for (img, _), (_, _, prob) in zip(images(), reader):
                    np.testing.assert_allclose(prob[:, 0], 2 * img.sum(axis=1), rtol=1e-6)
        assert set(teacher.seen.values()) == {1}


@pytest.mark.parametrize("wire", [{"img": "float16"}, {"prob": "float16"}])
def test_what_was_rounded_on_its_way_is_no_label_of_what_was_not(tmp_path, wire):
    with counting() as teacher:
        with reader_of(tmp_path, teacher, wire=wire) as reader:
            rounded = read(reader)
        with reader_of(tmp_path, teacher) as reader:
            whole = read(reader)
        assert teacher.rows == 2 * ROWS * BATCHES
    assert any((one[2] != two[2]).any() for one, two in zip(rounded, whole))
    for options, expected in (({"wire": wire}, rounded), ({}, whole)):
        with reader_of(tmp_path, **options) as reader:
            assert_same(read(reader), expected)


def test_of_several_models_without_a_teacher_one_has_to_be_named(tmp_path):
    for name, factor in (("model:a", 1.0), ("model:b", 2.0)):
        with counting(name, factor) as teacher, reader_of(tmp_path, teacher) as reader:
            read(reader)
    with (
        reader_of(tmp_path) as reader,
        pytest.raises(NoTeacherError, match="store_model=, one of model:a, model:b"),
    ):
        next(iter(reader))
    with reader_of(tmp_path, store_model="model:b") as reader:
        for (img, _), (_, _, prob) in zip(images(), reader):
            np.testing.assert_allclose(prob[:, 0], 2 * img.sum(axis=1), rtol=1e-6)


def test_several_teachers_by_name_share_a_store(tmp_path):
    def of(teachers):
        return DistillReader(
            ["img", "label"], ["prob"], images, teachers, store=tmp_path / "labels"
        )

    with counting("model:a") as one, counting("model:b", 2.0) as two:
        with of({"a": one.endpoint, "b": two.endpoint}) as reader:
            first = read(reader)
            assert_same(first, read(reader))
            assert reader.stats()["b"]["store"]["hits"] == ROWS * BATCHES
        assert (one.rows, two.rows) == (ROWS * BATCHES, ROWS * BATCHES)
    for _, _, a, b in first:
        np.testing.assert_allclose(2 * a, b, rtol=1e-6)


# --- sequences, and what is drawn ---------------------------------------------------------------


def token_rows():
    generator = np.random.default_rng(3)
    return [generator.integers(1, 100, length) for length in (5, 2, 7, 1, 3, 4, 6, 2, 7, 5, 1, 3)]


def token_batches(order):
    """Batches of rows in an order, filled up to the longest of each batch."""
    rows = token_rows()
    for start in range(0, len(order), 4):
        some = [rows[index] for index in order[start : start + 4]]
        width = max(map(len, some))
        ids = np.array([np.pad(row, (0, width - len(row))) for row in some])
        mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in some])
        yield ids, mask, ids


def token_reader(directory, teacher, order, **options):
    return DistillReader(
        ["ids", "mask", "labels"],
        ["logits"],
        source=lambda: token_batches(order),
        teachers=None if teacher is None else [teacher.endpoint],
        top_k=8,
        lengths="mask",
        store=directory,
        **options,
    )


def by_row(batches, order):
    """What each row got, to its own length."""
    found = {}
    number = 0
    for _, mask, _, *columns in batches:
        for row, length in enumerate(mask.sum(axis=1)):
            found[order[number]] = [column[row, :length].tobytes() for column in columns]
            number += 1
    return found


@pytest.fixture(scope="module")
def sequence_teacher():
    with ServedTeacher(lambda inputs: [WorkerThread(Texts(), inputs)], ServerOptions()) as teacher:
        yield teacher


def test_how_wide_a_batch_is_does_not_matter_to_its_rows(tmp_path, sequence_teacher):
    order = list(range(12))
    other = order[::-1]
    with token_reader(tmp_path, sequence_teacher, order, targets="labels") as reader:
        first = by_row(read(reader), order)
    with token_reader(tmp_path, None, other, targets="labels") as reader:
        batches = read(reader)
        assert reader.stats()["store"]["misses"] == 0
    assert by_row(batches, other) == first


def test_behind_a_rows_end_hits_and_misses_are_the_same(tmp_path, sequence_teacher):
    order = list(range(12))
    with token_reader(tmp_path, sequence_teacher, order) as reader:
        assert_same(read(reader), read(reader))


def test_what_is_drawn_is_drawn_anew_in_the_next_epoch_and_not_in_the_same(
    tmp_path, sequence_teacher
):
    order = list(range(12))
    with token_reader(tmp_path, sequence_teacher, order, samples=4) as reader:
        zero, one = read(reader), read(reader)
        assert reader.stats()["store"]["hits"] == 0
    assert any((a[-1] != b[-1]).any() for a, b in zip(zero, one))
    with token_reader(tmp_path, None, order, samples=4) as reader:
        assert_same(zero, read(reader))
        assert_same(one, read(reader))
    with token_reader(tmp_path, sequence_teacher, order, samples=4) as reader:
        assert_same(zero, read(reader))


def test_a_mask_that_is_none_is_the_sources_error(tmp_path, sequence_teacher):
    source = [(np.ones((2, 3), "i8"), np.array([[0, 1, 1], [1, 1, 1]]), np.ones((2, 3), "i8"))]
    reader = DistillReader(
        ["ids", "mask", None], ["logits"], source, [sequence_teacher.endpoint],
        top_k=2, lengths="mask", store=tmp_path,
    )  # fmt: skip
    with reader, pytest.raises(SourceError, match="padding in front"):
        read(reader)


# --- other keys ---------------------------------------------------------------------------------


def numbered(change=0.0, count=BATCHES):
    for number, (img, _) in enumerate(images(count)):
        yield img + np.float32(change), np.arange(ROWS) + number * ROWS


def test_rows_may_be_known_by_a_slot(tmp_path):
    with counting() as teacher:
        with reader_of(tmp_path, teacher, source=numbered, store_key="label") as reader:
            first = read(reader)
            assert_same(first, read(reader))
        assert set(teacher.seen.values()) == {1}
    with reader_of(tmp_path, source=numbered, store_key=["label"]) as reader:
        assert_same(first, read(reader))


def test_a_slot_that_does_not_stand_for_the_row_is_found_out(tmp_path):
    with counting() as teacher:
        with reader_of(tmp_path, teacher, source=numbered, store_key="label") as reader:
            read(reader)
        changed = lambda: numbered(1.0)  # noqa: E731
        with (
            reader_of(tmp_path, teacher, source=changed, store_key="label") as reader,
            pytest.raises(StoreError, match=r"under \{'label': 0\} are of a row that held"),
        ):
            read(reader)


# --- several processes --------------------------------------------------------------------------


_RANK = """
import sys
from tests.distill.test_store import DistillReader, ROWS, images, read
endpoint, directory, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
def share(epoch):  # each rank's half of the batches, the other one in the next epoch
    return [batch for number, batch in enumerate(images(20)) if (number + epoch) % 2 == rank]
reader = DistillReader(["img", "label"], ["prob"], lambda: share(reader.epoch),
                       [endpoint] if endpoint else None, store=directory)
with reader:
    for _ in range(2):
        for img, _, prob in reader:
            assert abs(prob[:, 0] - img.sum(axis=1)).max() < 1e-5
        print(reader.stats()["store"]["misses"], flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("machines", ["one", "two"])
def test_two_ranks_fill_one_store_and_ask_each_label_once(tmp_path, machines):
    if machines == "two":
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "machines").touch()

    def ranks(endpoint):
        return [
            subprocess.Popen(
                [sys.executable, "-c", _RANK, endpoint, str(tmp_path / "labels"), str(rank)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    with counting() as teacher:
        for endpoint in (teacher.endpoint, ""):
            processes = ranks(endpoint)
            for _ in range(2):
                said = [process.stdout.readline() for process in processes]
                assert all(said), said
                for process in processes:  # as where ranks wait for each other
                    process.stdin.write("\n")
                    process.stdin.flush()
            assert [process.wait(30) for process in processes] == [0, 0]
            for process in processes:
                process.stdin.close()
                process.stdout.close()
        assert len(teacher.seen) == 20 * ROWS
        assert set(teacher.seen.values()) == {1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloaders_workers_have_a_store(tmp_path, workers):
    import paddle

    class Images(paddle.io.Dataset):
        def __len__(self):
            return ROWS * BATCHES

        def __getitem__(self, index):
            return np.full(WIDTH, index, "float32")

    def epoch(teacher):
        reader = DistillReader(
            ["img"],
            ["prob"],
            source=paddle.io.DataLoader(Images(), batch_size=ROWS, places=paddle.CPUPlace()),
            teachers=None if teacher is None else [teacher.endpoint],
            store=tmp_path / "labels",
        )
        with reader:
            loader = paddle.io.DataLoader(reader, batch_size=None, num_workers=workers)
            for _ in range(2):
                yield [tuple(np.array(slot) for slot in batch) for batch in loader]

    with counting() as teacher:
        first, second = epoch(teacher)
        assert set(teacher.seen.values()) == {1}
        assert teacher.rows == ROWS * BATCHES
    assert_same(first, second)
    for batches in epoch(None):
        assert_same(first, batches)


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"store_key": "sample_id"}, "store_key is 'sample_id', which is not one of ins"),
        ({"store_bytes": 0}, "store_bytes must be"),
        ({"store_model": {"a": "m"}}, "store_model names 'a'"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        reader_of(tmp_path, **options)


def test_options_without_a_store():
    with pytest.raises(ConfigError, match="go with store="):
        DistillReader(["img"], ["prob"], teachers="a:1", store_bytes=7)


def test_a_store_that_is_full_does_not_hold_up_training(tmp_path, caplog):
    with counting() as teacher, reader_of(tmp_path, teacher, store_bytes=1) as reader:
        assert_same(read(reader), read(reader))
        store = reader.stats()["store"]
        assert (store["added"], store["hits"]) == (0, 0)
        assert "limit of 1 bytes" in store["full"]
        assert teacher.rows == 2 * ROWS * BATCHES
    assert caplog.text.count("no more labels are stored") == 1


def test_damaged_labels_are_asked_for_again(tmp_path):
    with counting() as teacher:
        with reader_of(tmp_path, teacher) as reader:
            first = read(reader)
        path = tmp_path / "labels" / "shared" / "data.mdb"
        label = first[3][2][2].tobytes()
        path.write_bytes(path.read_bytes().replace(label, bytes([label[0] ^ 1]) + label[1:]))
        with reader_of(tmp_path, teacher) as reader:
            assert_same(first, read(reader))
            assert reader.stats()["store"]["damaged"] == 1
        assert teacher.rows == ROWS * BATCHES + 1
        with reader_of(tmp_path) as reader:
            assert_same(first, read(reader))
            assert reader.stats()["store"]["damaged"] == 0


def test_a_reader_may_be_left_and_closed_in_the_midst_of_looking_up(tmp_path):
    with counting() as teacher:
        with reader_of(tmp_path, teacher) as reader:
            whole = read(reader)
        for number in range(30):
            with reader_of(tmp_path, teacher) as reader:
                iterator = iter(reader)
                assert_same(whole[: number % 3], [next(iterator) for _ in range(number % 3)])
        with reader_of(tmp_path) as reader:
            assert_same(whole, read(reader))


def test_a_program_that_ends_without_closing_keeps_its_labels(tmp_path):
    program = (
        "from tests.distill.test_store import *\n"
        "import pathlib, sys, types\n"
        "teacher = types.SimpleNamespace(endpoint=sys.argv[2])\n"
        "reader = reader_of(pathlib.Path(sys.argv[1]), teacher)\n"
        "iterator = iter(reader)\n"
        "next(iterator), next(iterator)\n"
    )
    with counting() as teacher:
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), teacher.endpoint], cwd=ROOT, check=True,
            timeout=60, env={**os.environ},
        )  # fmt: skip
    with reader_of(tmp_path, source=lambda: images(2)) as reader:
        assert len(read(reader)) == 2
