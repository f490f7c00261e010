"""``benchmarks/peers.py``: what it judges by, and that it runs with what needs no installation."""

from contextlib import ExitStack

import numpy as np
import pytest
from _children import NotReady
from _peers import environments
from _peers.aims import Aim, Sample, aims, cpu_microseconds, judge, rates, times
from _peers.lines import GROUPS, HOSTED, lines
from _peers.process import WrongAnswer, measure_batches, measure_for, prove
from _peers.students import started
from _peers.work import NOTHING, Nothing, Recorded, filled_up, sentences

from tests.benchmarks.commands import benchmark, run

DIGITS = NOTHING["1x28x28"]
SMALL = Nothing("img", (4, 2), "float32", {"prob": ((3,), "float32")}, 5)


def answers(work):
    return lambda batches: map(work.answer, batches)


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", NOTHING.values(), ids=list(NOTHING))
def test_a_batch_has_its_own_answer_and_no_other(work):
    for number in range(work.variants):
        answer = work.answer(work.batch(number))
        assert [array.dtype.name for array in answer] == [kind for _, kind in work.kinds.values()]
        assert work.is_whole(number, answer)
        assert work.matches(number + work.variants, answer)
        assert not work.matches(number + 1, answer)


def test_the_answer_to_rows_that_follow_one_another_is_no_copy():
    (answer,) = DIGITS.answer(DIGITS.batch(2))
    assert np.shares_memory(answer, DIGITS.tables[0])


def test_rows_of_several_batches_have_their_answers_whatever_their_order():
    mixed = np.concatenate([SMALL.batch(3), SMALL.batch(1)])
    (answer,) = SMALL.answer(mixed)
    assert SMALL.is_whole(3, [answer[:4]])
    assert SMALL.is_whole(1, [answer[4:]])


def test_a_byte_that_was_lost_is_found():
    work = SMALL

    def loses(batches):
        for batch in batches:
            other = batch.copy()
            other.flat[-1] += 1
            yield work.answer(other)

    prove(answers(work), work)
    with pytest.raises(WrongAnswer, match="as it was"):
        prove(loses, work)


def test_answers_out_of_order_are_found():
    def swaps(batches):
        held = [SMALL.answer(batch) for batch in batches]
        held[1], held[2] = held[2], held[1]
        return iter(held)

    assert measure_batches(answers(SMALL), SMALL, 7)["batches"] == 7
    with pytest.raises(WrongAnswer, match="answer 1 "):
        measure_batches(swaps, SMALL, 7)


def test_answers_that_are_missing_are_found():
    with pytest.raises(WrongAnswer, match="6 answers to 7 batches"):
        measure_batches(lambda batches: map(SMALL.answer, list(batches)[:6]), SMALL, 7)


def test_a_slow_pipeline_is_measured_for_a_few_batches_all_the_same():
    found = measure_for(answers(SMALL), SMALL, 0.0)
    assert found["batches"] == 2
    assert found["seconds"] > 0


def test_a_real_models_answers_are_held_to_what_it_said_before():
    work = Recorded("ids", "logits", sentences(2), [np.zeros((1, 4)), np.ones((1, 4))])
    assert work.matches(3, [np.ones((1, 4)) + 1e-4])
    assert not work.matches(3, [np.zeros((1, 4))])
    assert not work.matches(3, [np.ones((1, 3))])


def test_batches_are_as_wide_as_their_longest_row():
    rows = sentences(5)
    batches = filled_up(rows, 2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert batches[1].shape[1] == max(rows[2].shape[1], rows[3].shape[1])
    assert np.array_equal(batches[2], rows[4])
    assert [np.count_nonzero(row) for batch in batches for row in batch] == [
        row.size for row in rows
    ]


# --- aims ----------------------------------------------------------------------------------------

RESULTS = {"g": {"ours": [Sample(20, 1e-4), Sample(30, 3e-4)], "theirs": [Sample(10, 0)] * 2}}


@pytest.mark.parametrize(
    ("of", "limit", "at_most", "value", "met"),
    [
        (rates, 2.5, False, 2.5, True),
        (rates, 2.6, False, 2.5, False),
        (times, 0.5, True, (0.5 + 1 / 3) / 2, True),
        (times, 0.4, True, (0.5 + 1 / 3) / 2, False),
        (cpu_microseconds, 200.0, True, 200.0, True),
        (cpu_microseconds, 199.0, True, 200.0, False),
    ],
)
def test_an_aim_is_judged_by_the_median_of_the_rounds_ratios(of, limit, at_most, value, met):
    outcome = judge(Aim("g", "", "ours", "theirs", of, limit, at_most), RESULTS)
    assert outcome.value == pytest.approx(value)
    assert outcome.met is met


def test_an_aim_of_something_that_was_not_measured_is_neither_met_nor_missed():
    for group, line, beside in (("g", "ours", "x"), ("g", "x", "theirs"), ("x", "ours", "theirs")):
        assert judge(Aim(group, "", line, beside, rates, 1.0), RESULTS).met is None


def test_aims_are_of_lines_that_are_measured():
    known = {group: {line.name for line in lines(group, ["a", "b"], True)} for group in HOSTED}
    for aim in aims(8):
        assert aim.group in GROUPS
        if aim.group in HOSTED:
            assert aim.line in known[aim.group]
            assert aim.beside in {*known[aim.group], "paddle_edl 0.3.1", None}


# --- peers ---------------------------------------------------------------------------------------


def test_a_peer_that_cannot_be_installed_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "PEERS", tmp_path / "venv")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert environments.with_package("pyzmq") is None
    assert (tmp_path / "venv/bin/python").exists()
    environments.with_package.cache_clear()


def test_a_pipeline_that_does_not_start_says_why():
    given = {"endpoint": "127.0.0.1:1", "window": 1, "way": "TCP"}
    with ExitStack() as stack, pytest.raises(NotReady, match=r"127\.0\.0\.1:1"):
        started(stack, ("client", {"name": "row"}, given))


# --- the run -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(260)
def test_it_measures_every_line_that_needs_no_installation(tmp_path):
    shown, found = benchmark("peers", tmp_path / "json", "1x28x28", "sentences", "--quick")
    assert found["left_out"] == []
    results = found["results"]
    assert set(results["1x28x28"]) == {line.name for line in lines("1x28x28", ["a", "b"], False)}
    assert all(line in shown for group in results.values() for line in group)
    assert set(results["sentences"]) == {"loop in one process", "edl teacher, 2 students"}
    turns = [turn for group in results.values() for turn in group.values()]
    assert all(rate > 0 for turn in turns for rate in turn["rate"])
    measured = {aim["line"] for aim in found["aims"] if aim["met"] is not None}
    assert {"DistillReader, 1 edl teacher, TCP", "edl teacher, 2 students"} <= measured


def test_a_group_that_is_not_there_is_refused():
    result = run("peers", "4x4")
    assert result.returncode == 2
    assert "no such group: 4x4; there are 3x224x224, " in result.stderr
