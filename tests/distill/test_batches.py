"""Forms of data: what is sent, what comes back, what passes through untouched."""

import numpy as np
import pytest

from edl.distill.batches import (
    ArrayBatch,
    SampleBatch,
    as_array,
    join_parts,
    read_batches,
    read_sample_lists,
    read_samples,
)
from edl.errors import SourceError

IMG = np.arange(12, dtype="f4").reshape(4, 3)
LABEL = np.arange(4)
PROB = {"prob": np.arange(8, dtype="f4").reshape(4, 2)}


def one(value, names=("img", "label")):
    (batch,) = read_batches([value], list(names))
    return batch


def predicted(batch, predictions=PROB):
    batch.predictions.update(predictions)
    return batch


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_batch_keeps_its_type_and_its_objects_and_gains_the_predictions(kind):
    result = predicted(one(kind((IMG, LABEL)))).with_predictions()
    assert type(result) is kind
    assert result[0] is IMG
    assert result[1] is LABEL
    assert result[2] is PROB["prob"]


def test_a_dict_gains_the_predictions_by_name():
    result = predicted(one({"label": LABEL, "img": IMG})).with_predictions()
    assert list(result) == ["label", "img", "prob"]
    assert result["img"] is IMG


def test_a_dict_with_a_slot_of_a_predictions_name_is_refused():
    with pytest.raises(SourceError, match="already has prob"):
        predicted(one({"img": IMG, "prob": LABEL})).with_predictions()


def test_a_single_slot_becomes_a_tuple_with_the_predictions():
    assert predicted(one(IMG, ["img"])).with_predictions()[0] is IMG


def test_columns_are_views():
    batch = one((IMG, LABEL))
    assert batch.column(0, "img", 0, 4) is IMG
    part = batch.column(0, "img", 1, 3)
    assert np.shares_memory(part, IMG)
    assert part.tolist() == IMG[1:3].tolist()


def test_a_paddle_tensor_is_viewed_and_its_predictions_are_tensors():
    paddle = pytest.importorskip("paddle")
    tensor = paddle.to_tensor(IMG)
    batch = one([tensor, paddle.to_tensor(LABEL)])
    column = batch.column(0, "img", 0, 4)
    assert (column == IMG).all()
    assert np.shares_memory(column, as_array(tensor)), "no copy"
    result = predicted(batch).with_predictions()
    assert result[0] is tensor
    assert isinstance(result[2], paddle.Tensor)
    assert (result[2].numpy() == PROB["prob"]).all()


def test_a_bfloat16_tensor_travels_as_its_bits():
    paddle = pytest.importorskip("paddle")
    tensor = paddle.to_tensor(IMG).astype("bfloat16")
    assert as_array(tensor).dtype == np.uint16


def test_a_slot_may_be_a_list_even_of_ragged_rows():
    batch = one(([[1, 2], [3]], IMG[:2]), ["ids", "img"])
    assert batch.rows == 2
    assert batch.column(1, "img", 0, 2).shape == (2, 3)


def test_unnamed_slots_do_not_count_rows():
    assert one((np.float32(3), IMG), [None, "img"]).rows == 4


def test_slots_that_differ_in_rows_are_refused_when_they_are_sent():
    batch = one((IMG, LABEL[:2]))
    with pytest.raises(SourceError, match=r"slot 1 \('label'\) has shape \(2,\).*4 rows"):
        batch.column(1, "label", 0, 4)


@pytest.mark.parametrize("value", [(), 3.0, {"other": IMG}, (np.float32(1),)])
def test_a_batch_without_rows_to_count_is_refused(value):
    with pytest.raises(SourceError):
        one(value)


def test_samples_are_grouped_stacked_and_come_back_one_by_one():
    samples = [(IMG[i], i) for i in range(4)]
    groups = list(read_samples(iter(samples), 3))
    assert [group.rows for group in groups] == [3, 1]
    assert groups[0].column(0, "img", 0, 3).tolist() == IMG[:3].tolist()
    assert groups[0].column(1, "label", 1, 3).tolist() == [1, 2]
    out = predicted(groups[0], {"prob": PROB["prob"][:3]}).with_predictions()
    assert out[1][0] is samples[1][0]
    assert out[1][2].tolist() == [2, 3]


def test_a_sample_list_generator_must_yield_lists():
    with pytest.raises(SourceError, match="must yield lists of samples, not ndarray"):
        list(read_sample_lists([IMG]))


def test_samples_that_do_not_stack_are_refused_by_slot():
    batch = SampleBatch([(np.zeros(2),), (np.zeros(3),)])
    with pytest.raises(SourceError, match=r"slot 0 \('img'\) cannot be stacked"):
        batch.column(0, "img", 0, 2)
    with pytest.raises(SourceError, match=r"slot 1 \('label'\) is missing"):
        batch.column(1, "label", 0, 2)


def test_parts_are_joined_in_order():
    parts = [{"p": np.zeros((2, 1))}, {"p": np.ones((1, 1))}]
    assert join_parts(parts, ["p"])["p"].tolist() == [[0], [0], [1]]


def test_predictions_are_aligned_in_memory():
    raw = np.zeros(17, "u1")[1:]
    unaligned = raw.view("f4")
    assert not unaligned.flags.aligned
    assert join_parts([{"p": unaligned}], ["p"])["p"].flags.aligned


def test_the_size_of_a_batch_is_known():
    assert one((IMG, LABEL)).nbytes == IMG.nbytes + LABEL.nbytes
    assert isinstance(one((IMG, LABEL)), ArrayBatch)
