"""What is counted: rows, or tokens where a teacher says that rows are sequences."""

import json

import numpy as np
import pytest

from edl.discovery.keys import RATES, STUDENTS, service_prefix, under
from edl.discovery.records import StudentRecord, parse_rate
from edl.discovery.watch import list_prefix
from edl.distill import DistillReader
from edl.distill.dispatch import Dispatch, Output
from edl.distill.state import Limits
from tests.support.processes import edl, eventually, python_teacher

TOKENS = 1000


def dispatch_with(*teachers, **limits):
    dispatch = Dispatch(Limits(**limits))
    for name in teachers:
        dispatch.join(name, now=0.0)
    return dispatch


def send(dispatch, name, work, now, rows=4):
    """A batch of so much work, sent to a teacher; its task. No work: it is said to be of none."""
    dispatch.add("x", rows, 100, rows)
    task = dispatch.next_task(name, now)
    if work:
        dispatch.weigh(name, task.id, work)
    return task


def teach(dispatch, name, each, now=0.0):
    """Let a teacher answer batches of so much work in so many seconds each, and take them."""
    for work, seconds in each:
        task = send(dispatch, name, work, now)
        now += seconds
        dispatch.answered(name, [Output(task.id, "labels", 10)], now)
        dispatch.take()
    return now


def test_a_teachers_rate_and_what_is_delivered_are_in_tokens_whatever_the_rows():
    dispatch = dispatch_with("a", "b")
    now = teach(dispatch, "a", [(400, 0.1), (4000, 1.0)] * 10)
    teach(dispatch, "b", [(0, 0.1)] * 10, now)
    assert dispatch.rates() == {"a": pytest.approx(4000, rel=0.01), "b": 40}
    assert dispatch.counters.work == 44000 + 40
    assert dispatch.counters.rows == 120


def test_a_rate_follows_the_rows_as_they_get_longer():
    dispatch = dispatch_with("a")
    teach(dispatch, "a", [(100, 0.1)] * 100 + [(1000, 1.0)] * 40)
    assert dispatch.rates() == {"a": pytest.approx(1000, rel=0.01)}


def test_stats_have_rows_and_work():
    dispatch = dispatch_with("a")
    now = teach(dispatch, "a", [(400, 0.5)] * 20)
    figures = dispatch.stats(now)["teachers"]["a"]
    assert figures["rows_per_second"] == pytest.approx(8)
    assert figures["work_per_second"] == pytest.approx(800)


def test_a_teacher_is_given_more_time_for_longer_sequences():
    dispatch = dispatch_with("a", min_timeout=0.5)
    now = teach(dispatch, "a", [(400, 0.2)] * 50)
    send(dispatch, "a", 2000, now)
    limit = dispatch.teachers["a"].silence_limit(dispatch.limits)
    assert limit == pytest.approx(10.0, rel=0.1)
    assert not dispatch.overdue(now + limit - 0.01)
    assert "silent" in dispatch.overdue(now + limit)["a"]


def test_short_sequences_do_not_make_anybody_impatient():
    dispatch = dispatch_with("a", min_timeout=0.5)
    now = teach(dispatch, "a", [(400, 0.2)] * 50)
    send(dispatch, "a", 40, now)
    assert dispatch.teachers["a"].silence_limit(dispatch.limits) == pytest.approx(2.0, rel=0.1)


def test_a_long_sequence_goes_to_a_second_teacher_later():
    dispatch = dispatch_with("slow", "fast", hedge_factor=4.0)
    now = teach(dispatch, "slow", [(400, 0.1)] * 20)
    send(dispatch, "slow", 1200, now)
    assert dispatch.next_hedge() == pytest.approx(now + 4 * 0.1 * 3)


def test_weights_of_what_is_no_longer_in_flight_are_forgotten():
    dispatch = dispatch_with("a", "b")
    now = teach(dispatch, "a", [(400, 0.1)] * 20)
    task = send(dispatch, "a", 9000, now)
    dispatch.failed("a", task.id, "out of memory", now)
    assert dispatch.next_task("b", now) is task
    assert not dispatch.teachers["a"].weights
    dispatch.weigh("a", task.id, 9000)  # late
    assert not dispatch.teachers["a"].weights


def test_the_registry_is_told_tokens_by_student_and_teacher(etcd_server, etcd, service):
    where = ("--etcd", etcd_server.endpoint, "--service", service)
    rows = np.ones((1, TOKENS), "int64")

    def entries(kind):
        found, _ = list_prefix(etcd, service_prefix(service))
        return under(found, kind)

    def rates_of(record):
        return [rate for rate in record.rates.values() if rate]

    teachers = f"etcd://{etcd_server.endpoint}/{service}"
    with python_teacher("Sequences", *where, delay=0.05, verbose=False) as teacher:
        with DistillReader(["ids"], ["seen"], lambda: [(rows,)] * 60, teachers) as reader:
            for _ in reader:
                pass
            figures = reader.stats()["teachers"][teacher.endpoint]
            said = eventually(lambda: entries(RATES).get(teacher.endpoint))
            records = eventually(
                lambda: [
                    record
                    for record in map(StudentRecord.from_json, entries(STUDENTS).values())
                    if rates_of(record)
                ]
            )
            shown = edl("ls", *where)
    assert figures["work_per_second"] == pytest.approx(TOKENS * figures["rows_per_second"])
    # Of rows it computes a window of 8 at most in every delay.
    assert parse_rate(said) > 8 * 20, json.loads(said)
    assert rates_of(records[0])[0] > 8 * 20
    assert "tokens/s" in shown.stdout
    assert "rows/s" not in shown.stdout
