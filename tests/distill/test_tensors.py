"""Predictions as tensors or arrays, and batches on the student's device."""

import gc

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import ConfigError, SourceError
from edl.serving import serve
from tests.support.processes import eventually

paddle = pytest.importorskip("paddle")

ROWS, COUNT = 4, 6


def arrays():
    for number in range(COUNT):
        yield np.full((ROWS, 3), number, "f4"), np.full(ROWS, number)


def tensors():
    return [tuple(map(paddle.to_tensor, slots)) for slots in arrays()]


def reader_of(teacher, source=arrays, form="batch", **options):
    reader = DistillReader(["img", "label"], ["prob"], teachers=teacher.endpoint, **options)
    return getattr(reader, f"set_{form}_generator")(source)


def is_tensor(value):
    return isinstance(value, paddle.Tensor)


@pytest.mark.parametrize("source", [arrays, tensors])
@pytest.mark.parametrize(("kind", "tensor"), [("pd", True), ("np", False)])
def test_predictions_come_as_they_are_asked_for_and_slots_as_they_were(
    sums_teacher, source, kind, tensor
):
    with reader_of(sums_teacher, source, return_tensors=kind) as reader:
        for img, label, prob in reader:
            assert is_tensor(img) == is_tensor(label) == (source is tensors)
            assert is_tensor(prob) == tensor
            assert (np.asarray(prob)[:, 0] == 3 * np.asarray(label)).all()


@pytest.mark.parametrize("form", ["sample", "sample_list"])
def test_samples_have_tensors_too_where_they_are_asked_for(sums_teacher, form):
    def samples():
        return ((np.full(3, number, "f4"), number) for number in range(COUNT))

    source = samples if form == "sample" else lambda: [list(samples())]
    with reader_of(sums_teacher, source, form, return_tensors="pd") as reader:
        out = list(reader) if form == "sample" else next(iter(reader))
    assert [float(prob[0]) for _, _, prob in out] == [3.0 * number for number in range(COUNT)]
    assert all(is_tensor(prob) and prob.shape == [2] for _, _, prob in out)


@pytest.mark.parametrize("source", [arrays, tensors])
@pytest.mark.parametrize("places", ["cpu", [paddle.CPUPlace()]], ids=["name", "place"])
def test_whole_batches_come_to_a_place_in_order(sums_teacher, source, places):
    with reader_of(sums_teacher, source, places=places) as reader:
        for _ in range(2):
            for number, slots in enumerate(reader):
                assert all(is_tensor(slot) and slot.place.is_cpu_place() for slot in slots)
                img, label, prob = (slot.numpy() for slot in slots)
                assert (label == number).all()
                assert (prob[:, 0] == img.sum(axis=1)).all()
            assert number + 1 == COUNT
        assert reader.epoch == 2


def test_dicts_and_what_is_no_array_keep_their_form(sums_teacher):
    source = [{"img": np.ones((2, 3), "f4"), "label": [1, 2], "name": "two rows"}]
    with reader_of(sums_teacher, lambda: source, places="cpu") as reader:
        (batch,) = list(reader)
    assert list(batch) == ["img", "label", "name", "prob"]
    assert batch["label"] == [1, 2]
    assert batch["name"] == "two rows"
    assert (batch["prob"].numpy() == [[3, 6], [3, 6]]).all()


def test_what_is_copied_ahead_has_not_been_delivered(sums_teacher):
    with reader_of(sums_teacher, places="cpu") as reader:
        batches = iter(reader)
        next(batches)
        eventually(lambda: reader.stats()["batches"] >= 3)  # it has been read ahead
        state = reader.state_dict()
        batches.close()
    assert state["delivered"] == 1
    with reader_of(sums_teacher, places="cpu") as reader:
        reader.load_state_dict(state)
        assert [int(label[0]) for _, label, _ in reader] == list(range(1, COUNT))


def test_an_iteration_that_is_left_lets_the_next_one_begin(sums_teacher):
    with reader_of(sums_teacher, places="cpu") as reader:
        for _ in reader:
            break
        gc.collect()
        assert [int(label[0]) for _, label, _ in reader] == list(range(COUNT))


@pytest.mark.parametrize("around", [iter, lambda it: paddle.io.DataLoader(it, batch_size=None)])
def test_an_error_reaches_the_student_behind_the_batches_before_it(sums_teacher, around):
    def broken():
        yield next(arrays())
        raise RuntimeError("the disk is full")

    seen = []
    with reader_of(sums_teacher, broken, places="cpu") as reader:
        with pytest.raises(RuntimeError, match="the disk is full"):
            seen.extend(iter(around(reader)))
        assert (len(seen), reader.epoch, reader.state_dict()["delivered"]) == (1, 0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_around_it_has_places_of_its_own(sums_teacher, workers):
    with reader_of(sums_teacher, places="cpu") as reader:
        outer = paddle.io.DataLoader(reader, batch_size=None, num_workers=workers)
        assert [int(label[0]) for _, label, _ in outer] == list(range(COUNT))


@pytest.mark.parametrize("slots", [np.asarray, paddle.to_tensor])
def test_strings_stay_arrays(slots):
    def name(img):
        return np.array([f"class {int(row[0])}" for row in img])

    feeds, source = {"img": ((3,), "float32")}, [(slots(np.full((2, 3), 7, "f4")),)]
    with serve(name, feeds, {"name": ((), "str")}) as teacher:
        teachers = teacher.endpoint
        with DistillReader(["img"], ["name"], source, teachers, return_tensors="pd") as reader:
            assert [batch[1].tolist() for batch in reader] == [["class 7"] * 2]
        with DistillReader(["img"], ["name"], source, teachers, places="cpu") as reader:
            with pytest.raises(SourceError, match=r"slot \[1\] of a batch .* dtype object"):
                next(iter(reader))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"return_tensors": "tf"}, '"pd", "np" or None, not \'tf\''),
        ({"return_tensors": "np", "places": "cpu"}, "arrays have no places"),
    ],
)
def test_what_cannot_be_had_is_refused(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        DistillReader(["img"], ["prob"], teachers="127.0.0.1:1", **options)
