"""Names of the reader against names of the teacher; which teachers a reader uses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.distill import DistillReader
from edl.distill.batches import ArrayBatch
from edl.distill.plan import make_plan
from edl.distill.roster import choose
from edl.distill.teachers import fixed_teachers, service_teachers
from edl.errors import ConfigError, SourceError
from edl.serving import Description, TensorSpec, serve

TEACHER = Description(
    {"img": TensorSpec((4,), "float32")},
    {"prob": TensorSpec((2,), "float32"), "hint": TensorSpec((-1,), "float32")},
)
BATCH = ArrayBatch((np.arange(3), np.zeros((3, 2, 2))), rows=3, nbytes=0)


def test_slots_that_the_teacher_feeds_on_are_sent_as_it_wants_them():
    plan = make_plan(["label", "img"], ["prob"], TEACHER)
    feeds = plan.feed(BATCH, 1, 3)
    assert list(feeds) == ["img"]
    assert (feeds["img"].shape, feeds["img"].dtype) == ((2, 4), np.float32)


def test_a_feed_that_the_reader_lacks_is_named():
    with pytest.raises(ConfigError, match=r"needs feeds 'img'.*'image'.*'img' is missing from ins"):
        make_plan(["image", None], ["prob"], TEACHER)


def test_a_prediction_that_the_teacher_lacks_is_named():
    with pytest.raises(ConfigError, match=r"serves 'prob', 'hint', but predicts names 'logits'"):
        make_plan(["img"], ["logits"], TEACHER)


def test_rows_of_the_right_dtype_are_sent_without_a_copy():
    plan = make_plan(["img"], ["prob"], TEACHER)
    images = np.zeros((3, 2, 2), "f4")
    assert np.shares_memory(plan.feed(ArrayBatch((images,), 3, 0), 1, 3)["img"], images)


def test_values_that_a_feed_cannot_hold_are_refused_by_the_slots_name():
    plan = make_plan(["label", "img"], ["prob"], TEACHER)
    batch = ArrayBatch((np.arange(3), np.full((3, 4), 1e300)), rows=3, nbytes=0)
    with pytest.raises(SourceError, match=r"slot 1 \('img'\): float32 cannot hold .* 1e\+300"):
        plan.feed(batch, 0, 3)


def test_a_batch_that_cannot_be_converted_is_refused_when_its_turn_comes():
    feeds = {"mask": ((4,), "float32"), "ids": ((4,), "int32")}
    fetches = {"total": ((), "float32")}
    source = [(np.ones((2, 4), "i8"), np.full((2, 4), number)) for number in range(20)]
    source[7][1][1, 3] = 2**31 + 5
    with serve(lambda mask, ids: mask.sum(1) + ids.sum(1), feeds, fetches) as teacher:
        with DistillReader(
            ["mask", "ids"], ["total"], source=source, teachers=[teacher.endpoint]
        ) as reader:
            batches = iter(reader)
            for number in range(7):
                assert (next(batches)[2] == 4 + 4 * number).all()
            with pytest.raises(SourceError, match=r"'ids'.*int32 cannot hold .*2147483653"):
                next(batches)


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        ({}, "lacks 'prob'"),
        ({"prob": np.zeros((2, 2), "f4")}, "for 3 rows"),
        ({"prob": np.zeros((3, 5), "f4")}, "expected shape"),
        ({"prob": np.zeros((3, 2), "f8")}, "expected dtype"),
        ({"prob": np.zeros((), "f4")}, "for 3 rows"),
    ],
)
def test_an_answer_of_the_wrong_kind_is_noticed(outputs, complaint):
    assert complaint in make_plan(["img"], ["prob"], TEACHER).check(outputs, rows=3)


def test_a_good_answer_is_good():
    plan = make_plan(["img"], ["prob", "hint"], TEACHER)
    outputs = {"prob": np.zeros((3, 2), "f4"), "hint": np.zeros((3, 7), "f4"), "more": 0}
    assert plan.check(outputs, rows=3) == ""


def test_fixed_teachers_come_as_a_list_or_separated_by_commas():
    assert fixed_teachers("a:1, b:2,") == fixed_teachers(["a:1", "b:2", "a:1"])


@pytest.mark.parametrize("teachers", ["", [], "host", ["a:1", "b:x"]])
def test_endpoints_that_are_none_are_refused(teachers):
    with pytest.raises(ConfigError, match="teacher"):
        fixed_teachers(teachers)


def test_a_service_needs_a_name():
    with pytest.raises(ConfigError, match="service"):
        service_teachers("a:1", "")


endpoints = st.lists(st.integers(1, 99).map(lambda n: f"h:{n}"), unique=True, max_size=20)


@given(endpoints, st.integers(1, 10), st.text(max_size=5), st.data())
def test_a_reader_takes_as_many_as_it_may_and_failing_ones_last(found, limit, reader, data):
    avoid = data.draw(st.lists(st.sampled_from(found), unique=True)) if found else []
    chosen = choose(found, limit, reader, avoid)
    assert chosen <= set(found)
    assert len(chosen) == min(limit, len(found))
    good = set(found) - set(avoid)
    assert chosen <= good or good <= chosen


@given(endpoints, st.integers(1, 10), st.text(max_size=5), st.integers(100, 200))
def test_one_teacher_more_changes_one_choice_at_most(found, limit, reader, new):
    before = choose(found, limit, reader, [])
    after = choose([*found, f"h:{new}"], limit, reader, [])
    assert len(before - after) <= 1


def test_readers_spread_over_the_teachers():
    found = [f"h:{port}" for port in range(10)]
    used = [choose(found, 1, f"reader {number}", []).pop() for number in range(200)]
    assert all(5 < used.count(endpoint) < 45 for endpoint in found)
