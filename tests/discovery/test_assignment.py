"""What follows from a service's entries, whatever is in them."""

import math

import pytest

from edl.discovery import StudentRecord
from edl.discovery.assignment import Rates, plan


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"max_teachers": "many"}',
        '{"rates": [1]}',
        '{"want": "all"}',
        "1e999",
    ],
)
def test_a_students_mistake_is_its_own(text):
    records = {"nodes/t1": "{gpu:20%, net:1}", "nodes/t2": "{}", "students/bad": text}
    records["students/good"] = StudentRecord(1).to_json()
    result = plan(records, Rates())
    assert len(result.assignment["good"]) == 1
    assert result.assignment["bad"]


def test_a_rate_is_replaced_only_by_one_that_differs_by_more_than_noise():
    rates = Rates()
    assert rates.update({"t": 100.0, "unknown": None}) == {"t": 100.0, "unknown": 100.0}
    assert rates.update({"t": 120.0})["t"] == 100.0
    assert rates.update({"t": None})["t"] == 100.0
    assert rates.update({"t": 130.0})["t"] == 130.0


def test_what_students_measure_counts_where_teachers_say_nothing():
    records = {
        "nodes/says": '{"rate": 500}',
        "nodes/silent": "{}",
        "students/a": StudentRecord(rates={"says": 7.0, "silent": 70.0}).to_json(),
        "students/b": StudentRecord(want=30.0, rates={"silent": math.inf}).to_json(),
    }
    rates = Rates()
    plan(records, rates)
    assert rates.in_use == {"says": 500.0, "silent": 70.0}
