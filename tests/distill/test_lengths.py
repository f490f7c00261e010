"""Rows of different length: what is sent of them, and answers as wide as the batch. No sockets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.distill import DistillReader
from edl.distill.batches import ArrayBatch, read_samples
from edl.distill.lengths import Span, fill_up, row_lengths
from edl.distill.plan import make_plan
from edl.errors import ConfigError, SourceError, WireError
from edl.serving import Description, TensorSpec

TOKENS = TensorSpec((-1,), "int64", pad=0)
TEACHER = Description(
    {"ids": TOKENS, "mask": TOKENS, "image": TensorSpec((3,), "float32")},
    {
        "logits": TensorSpec((-1, 20), "float32", pad=-5.0),
        "prob": TensorSpec((2,), "float32"),
        "boxes": TensorSpec((-1,), "float32"),
    },
    {"labels": 1},
)
INS = ["ids", "mask", "image", "labels"]


def mask_of(lengths, width, dtype="int64"):
    return (np.arange(width) < np.array(lengths)[:, None]).astype(dtype)


def batch_of(lengths, width, mask=None):
    rows = len(lengths)
    ids = np.arange(1, rows * width + 1).reshape(rows, width) * mask_of(lengths, width)
    labels = np.where(mask_of(lengths, width), 3, -100)
    mask = mask_of(lengths, width) if mask is None else mask
    return ArrayBatch((ids, mask, np.zeros((rows, 3), "f4"), labels), rows, 0)


def plan_of(predicts=("logits", "prob"), description=TEACHER, **options):
    return make_plan(INS, list(predicts), description, lengths="mask", **options)


@st.composite
def ragged(draw):
    """Lengths of rows, the width of their batch, and which of its rows are asked about."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    width = draw(st.integers(max(1, *lengths), 14))
    start = draw(st.integers(0, len(lengths) - 1))
    return lengths, width, start, draw(st.integers(start + 1, len(lengths)))


@given(ragged(), st.sampled_from(["int64", "int32", "bool", "float32", "uint8"]))
def test_lengths_are_read_from_a_mask_of_any_dtype(case, dtype):
    lengths, width, _, _ = case
    assert row_lengths(mask_of(lengths, width, dtype)).tolist() == lengths
    assert row_lengths(np.array(lengths)).tolist() == lengths


@given(ragged(), st.data())
def test_a_mask_with_a_zero_before_a_one_is_refused_wherever_that_is(case, data):
    lengths, width, _, _ = case
    mask = mask_of(lengths, width)
    row = data.draw(st.integers(0, len(lengths) - 1))
    column = data.draw(st.integers(0, width - 1))
    mask[row, column] = 1 - mask[row, column]
    if column in (lengths[row], lengths[row] - 1):
        assert row_lengths(mask)[row] in (lengths[row] + 1, lengths[row] - 1)
    else:
        with pytest.raises(SourceError, match=rf"row {row + 5} of the mask"):
            row_lengths(mask, first=5)


@given(ragged())
def test_nothing_is_sent_beyond_the_longest_row_of_a_request_and_all_of_each_row_is(case):
    lengths, width, start, stop = case
    batch, plan = batch_of(lengths, width), plan_of()
    span = plan.span(batch, start, stop)
    feeds = plan.feed(batch, start, stop, span)
    longest = max(1, *lengths[start:stop])
    assert span == Span(stop - start, longest, width)
    assert span.work == (stop - start) * longest
    ids = batch.value[0]
    assert feeds["ids"].shape == feeds["mask"].shape == (stop - start, longest)
    assert feeds["image"].shape == (stop - start, 3)
    np.testing.assert_array_equal(feeds["ids"], ids[start:stop, :longest])
    assert feeds["ids"].sum() == ids[start:stop].sum(), "no token is left out"
    assert np.shares_memory(feeds["ids"], ids), "nothing is copied"


@given(ragged())
def test_columns_are_as_wide_as_the_batch_and_hold_what_was_answered(case):
    lengths, width, start, stop = case
    plan = plan_of()
    span = plan.span(batch_of(lengths, width), start, stop)
    rows = stop - start
    logits = np.random.default_rng(0).random((rows, span.length, 20), "f4")
    prob = np.ones((rows, 2), "f4")
    wide = plan.widen({"logits": logits, "prob": prob}, span)
    assert not plan.check(wide, rows)
    assert wide["prob"] is prob
    assert (wide["logits"].shape, wide["logits"].dtype) == ((rows, width, 20), np.float32)
    np.testing.assert_array_equal(wide["logits"][:, : span.length], logits)
    assert (wide["logits"][:, span.length :] == -5.0).all()
    assert (wide["logits"] is logits) == (span.length == width), "and copied only if it must be"


@given(ragged(), st.sampled_from(["float32", "float16", "int32", "uint8"]))
def test_filling_up_is_undone_by_cutting(case, dtype):
    lengths, width, _, _ = case
    array = np.arange(len(lengths) * 5 * 2).reshape(-1, 5, 2).astype(dtype)
    filled = fill_up(array, 5 + width, 7)
    assert filled.dtype == array.dtype
    np.testing.assert_array_equal(filled[:, :5], array)
    assert (filled[:, 5:] == 7).all()


def test_targets_are_as_long_as_the_rows_and_seeds_do_not_depend_on_what_is_sent():
    ask = "logits?top_k=2&samples=3&target"
    batch = batch_of([3, 5], 9)
    trimming = plan_of([ask], targets="labels")
    whole = make_plan(INS, [ask], TEACHER, "labels")
    spans = [plan.span(batch, 0, 2) for plan in (trimming, whole)]
    assert [(span.length, span.width) for span in spans] == [(5, 9), (9, 9)]
    trimmed, full = (
        plan.label_feeds(batch, 0, 2, span) for plan, span in zip((trimming, whole), spans)
    )
    np.testing.assert_array_equal(trimmed["labels.target"], full["labels.target"][:, :5])
    np.testing.assert_array_equal(trimmed["labels.seed"], full["labels.seed"])


@pytest.mark.parametrize("lengths", [[3, 5], [9, 9]])
@pytest.mark.parametrize("lengths_are_known", [True, False])
def test_targets_that_are_more_than_the_tokens_are_refused_by_the_slots_name(
    lengths, lengths_are_known
):
    """As those of a block of tokens of which the last one is not fed."""
    ids, mask, image, labels = batch_of(lengths, 9).value
    longer = np.concatenate([labels, labels[:, :1]], axis=1)
    batch = ArrayBatch((ids, mask, image, longer), 2, 0)
    known = "mask" if lengths_are_known else None
    plan = make_plan(INS, ["logits?top_k=2&target"], TEACHER, "labels", known)
    span = plan.span(batch, 0, 2)
    words = r"slot 3 \('labels'\), the targets: a row has 10, but 9 tokens are fed"
    with pytest.raises(SourceError, match=words):
        plan.label_feeds(batch, 0, 2, span)


def test_numbers_in_the_place_of_tokens_are_left_for_the_teacher_to_refuse():
    ids, _, image, labels = batch_of([3, 5], 9).value
    batch = ArrayBatch((ids, np.array([3, 5]), image, labels), 2, 0)
    plan = plan_of()
    feeds = plan.feed(batch, 0, 2, plan.span(batch, 0, 2))
    assert (feeds["ids"].shape, feeds["mask"].shape) == ((2, 5), (2,))


def test_parts_of_sparse_labels_are_filled_up_with_zeros():
    plan = plan_of(["logits?top_k=2&samples=3&target"], targets="labels")
    span = plan.span(batch_of([3, 5], 9), 0, 2)
    kinds = {"values": "f2", "indices": "i4", "logsumexp": "f4", "samples": "i4", "target": "f4"}
    sizes = {"values": [2], "indices": [2], "samples": [3]}
    parts = {
        f"logits.{part}": np.ones((2, 5, *sizes.get(part, [])), kind)
        for part, kind in kinds.items()
    }
    wide = plan.widen(parts, span)
    assert not plan.check(wide, 2)
    for name, array in wide.items():
        assert array.shape[:2] == (2, 9)
        assert array[:, :5].all()
        assert not array[:, 5:].any(), name


def test_an_answer_that_is_not_as_long_as_what_was_sent_is_none():
    plan = plan_of()
    span = plan.span(batch_of([3, 5], 9), 0, 2)
    with pytest.raises(WireError, match=r"'logits' has rows of 4 tokens for rows of 5"):
        plan.widen({"logits": np.zeros((2, 4, 20), "f4")}, span)


def test_lengths_may_be_a_slot_of_numbers_for_samples_too():
    teacher = Description({"ids": TOKENS}, {"logits": TEACHER.fetches["logits"]})
    plan = make_plan(["ids", "long"], ["logits"], teacher, lengths="long")
    samples = [(np.arange(8), 3), (np.arange(8), 6), (np.arange(8), 2)]
    (batch,) = read_samples(samples, 3)
    span = plan.span(batch, 0, 3)
    assert plan.feed(batch, 0, 3, span)["ids"].tolist() == [list(range(6))] * 3
    assert plan.span(batch, 2, 3) == Span(1, 2, 8)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 1, 0], [0, 1, 1]], r"row 1 of the mask begins with 0 \(padding in front\); .*right"),
        ([[1, 0, 1], [1, 1, 1]], r"row 0 of the mask has a 1 behind a 0; .*leave out lengths="),
        ([[1, 2, 0], [1, 1, 1]], r"row 0 of the mask holds 2"),
        ([[[1], [1]]] * 2, r"of shape \(2, 2, 1\) is neither a mask .* nor integers \(rows,\)"),
        ([0.5, 1.5], r"float64 of shape \(2,\) is neither"),
        ([2, -1], r"row 1 has a length of -1"),
        ([2, 4], r"a row of 4 tokens, but slot 0 \('ids'\) has 3"),
        ([[1, 1, 1, 1]] * 2, r"slots differ in the length .*ids'\): 3, slot 1 \('mask'\): 4"),
    ],
)
def test_lengths_that_are_none_are_refused_by_the_slots_name(mask, words):
    batch = batch_of([3, 3], 3, np.array(mask))
    with pytest.raises(SourceError, match=words) as caught:
        plan_of().span(batch, 0, 2)
    assert "slot 1 ('mask')" in str(caught.value)


def test_a_wrong_mask_is_refused_whatever_the_teacher_declares():
    plain = Description({"ids": TensorSpec((-1,), "int64")}, {"prob": TEACHER.fetches["prob"]})
    plan = plan_of(["prob"], plain)
    assert "does not say that a feed's rows are sequences" in plan.whole
    assert plan.span(batch_of([2, 2], 3), 0, 2) == Span(2)
    with pytest.raises(SourceError, match="begins with 0"):
        plan.span(batch_of([2, 2], 3, np.array([[0, 1, 1]] * 2)), 0, 2)


def test_rows_are_not_trimmed_for_an_output_of_which_nobody_knows_whether_it_is_a_sequence():
    plan = plan_of(["logits", "boxes"])
    assert "whether the rows of 'boxes' are sequences" in plan.whole
    assert plan.span(batch_of([2, 2], 9), 0, 2) == Span(2, 9, 9)


def test_a_batch_without_rows_is_asked_about_in_its_whole_width():
    assert plan_of().span(batch_of([], 9), 0, 0) == Span(0, 9, 9)


def test_the_slot_of_lengths_is_one_of_ins():
    with pytest.raises(ConfigError, match="lengths is 'masks', which is not one of ins"):
        DistillReader(["ids", "mask"], ["logits"], lengths="masks")
