"""What follows from a service's entries, whatever is in them."""

import math

from edl.discovery import StudentRecord
from edl.discovery.assignment import Rates, plan
from edl.discovery.records import format_assignment, format_rate


def test_teachers_are_of_any_origin():
    entries = {"nodes/t1": "{gpu:20%, net:1}", "nodes/t2": "{}", "students/a": "{}"}
    assert plan(entries, Rates()).assignment == {"a": {"t1", "t2"}}


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


def test_what_students_measure_of_a_shared_teacher_are_parts_of_it():
    entries = {"nodes/shared": "{}", "nodes/own": "{}"}
    for name, rate in (("a", 30.0), ("b", 30.0), ("c", 40.0)):
        rates = {"shared": rate} if name != "c" else {"shared": rate, "own": 50.0}
        entries[f"students/{name}"] = StudentRecord(rates=rates).to_json()
        entries[f"assignments/{name}"] = format_assignment(frozenset(rates))
    assert plan(entries, Rates()).summary.supply == 150.0
    entries["assignments/c"] = format_assignment(frozenset({"own"}))
    assert plan(entries, Rates()).summary.supply == 110.0, "it has just left"


def test_a_teachers_own_rate_counts_before_its_entrys_and_that_before_what_students_see():
    entries = {"nodes/t": "{}", "students/a": StudentRecord(rates={"t": 10.0}).to_json()}
    for key, value, rate in (
        ("x", "", 10.0),
        ("nodes/t", '{"rate": 20}', 20.0),
        ("rates/t", format_rate(30.0), 30.0),
    ):
        entries[key] = value
        assert plan(entries, Rates()).summary.supply == rate


def test_a_student_that_wants_nothing_has_no_teachers_and_none_are_counted_for_it():
    entries = {"nodes/t1": '{"rate": 10}', "nodes/t2": '{"rate": 10}'}
    entries["students/reads"] = StudentRecord().to_json()
    entries["students/rests"] = StudentRecord(want=0.0).to_json()
    result = plan(entries, Rates())
    assert result.assignment == {"reads": {"t1", "t2"}, "rests": frozenset()}
    assert (result.summary.links, result.summary.demand, result.summary.unsatisfied) == (2, 20, 1)
    for name, links in result.assignment.items():
        entries[f"assignments/{name}"] = format_assignment(links)
    entries["students/rests"] = StudentRecord().to_json()
    assert all(len(links) == 1 for links in plan(entries, Rates()).assignment.values())
