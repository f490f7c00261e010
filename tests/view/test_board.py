"""What a page is told: everything once, then what has changed; and the curves."""

import json
import re
from dataclasses import replace

import pytest

from edl.view.board import changes, state
from edl.view.figures import TeacherFigures
from edl.view.history import POINTS, STEP, History
from edl.view.registry import describe
from edl.view.snapshot import (
    MOST_SERVICES,
    MOST_TEACHERS,
    Figures,
    Snapshot,
    snapshot,
)
from edl.view.terminal import screen
from tests.cli.test_ls import ODD
from tests.view.situations import service, with_teacher


def shown(*services, time=1000.0):
    return state(Snapshot(time, services))


def test_nothing_is_told_of_what_is_the_same():
    one = service()
    again = with_teacher(one, busy=one.teachers[0].busy + 1e-4)
    assert changes(shown(one), shown(again, time=1001.0))["services"] == {}


def test_rows_that_changed_are_told_and_those_that_are_gone():
    one = service(3)
    first, _, third = one.teachers
    now = replace(one, teachers=(replace(first, busy=0.5), third))
    told = changes(shown(one), shown(now))["services"]["resnet"]
    assert set(told["teachers"]) == {"10.0.0.1:9292", "10.0.0.2:9292"}
    assert told["teachers"]["10.0.0.1:9292"]["busy"] == 0.5
    assert told["teachers"]["10.0.0.2:9292"] is None
    assert "students" not in told


def test_services_come_and_go():
    one, other = service(), replace(service(), name="bert")
    told = changes(shown(one), shown(other))["services"]
    assert told["resnet"] is None
    assert set(told["bert"]["teachers"]) == set(shown(other)["services"]["bert"]["teachers"])


def test_of_five_hundred_teachers_one_that_changed_is_one_row():
    one = service(500, 100)
    told = json.dumps(changes(shown(one), shown(with_teacher(one, queue=7.0))))
    assert len(told) < 1000 < 50_000 < len(json.dumps(shown(one)))


def test_a_page_rounds_as_a_sentence_does():
    one = service(waits=0.2747, busy=0.95)
    page = shown(one)["services"]["resnet"]
    assert page["info"]["waits"] == 0.27
    assert "27 %" in page["advice"][0][1]
    assert shown(service(waits=0.001))["services"]["resnet"]["info"]["waits"] > 0


def test_a_curve_is_an_hour_in_means_and_no_longer():
    history = History()
    for second in range(0, 2 * POINTS * STEP, 2):
        history.add(Snapshot(float(second), (service(waits=second % STEP / 10),)))
    (points,) = history.curves().values()
    assert len(points) == POINTS
    assert [step for step, _ in points] == list(range(POINTS - 1, 2 * POINTS - 1))
    rows, waits, *_, teachers, students = points[-1][1]
    assert (rows, waits, teachers, students) == (None, pytest.approx(0.4), 4.0, 2.0)


def test_services_that_are_gone_for_an_hour_are_forgotten():
    history = History()
    history.add(Snapshot(0.0, (service(),)))
    assert set(history.add(Snapshot(STEP, ()))) == {"resnet"}
    history.add(Snapshot(POINTS * STEP - 1.0, ()))
    assert set(history.curves()) == {"resnet"}
    history.add(Snapshot((POINTS + 1.0) * STEP, ()))
    assert history.curves() == {}


def test_a_thousand_names_a_minute_do_not_fill_the_memory():
    history = History()
    for step in range(60):
        crowd = tuple(replace(service(), name=f"{step}-{number}") for number in range(50))
        history.add(Snapshot(step * STEP, crowd))
    assert len(history.curves()) <= 2 * MOST_SERVICES


@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:40])
def test_whatever_the_registry_says_becomes_short_plain_text(text):
    keys = ("nodes/<b>:1", "nodes/a:1", "rates/a:1", "students/s", "assignments/s", "balance")
    registry = {"<script>\x1b": describe({**dict.fromkeys(keys, text), "leader": text, "": text})}
    wild = Figures({("<script>\x1b", "a:1"): TeacherFigures(errors=1.0)}, {}, {}, {})
    seen = snapshot(registry, wild, 0.0, "\x1b" + "x" * 5000)
    page = json.dumps(state(seen), allow_nan=False)
    assert len(page) < 20_000
    assert "\\u001b" not in page
    assert screen(seen, 20) is not None


def test_numbers_that_nobody_can_have_are_none():
    text = re.sub("=", "1.797e308", """
        {"rate": =, "since": =, "want": =, "rows_per_second": =, "max_teachers": =, "demand": =,
         "supply": =, "wanted": =}""")  # fmt: skip
    keys = ("nodes/a:1", "nodes/b:1", "students/s", "students/t", "balance")
    entries = {**dict.fromkeys(keys, text), "leader": "l"}
    seen = snapshot({"resnet": describe(entries)}, Figures(), 0.0)
    history = History()
    history.add(seen)
    history.add(replace(seen, time=100.0))
    assert "e+308" not in json.dumps([state(seen), history.curves()], allow_nan=False)
    assert screen(seen, 20) is not None


def test_a_crowd_is_cut_and_counted():
    entries = {f"nodes/10.0.{n // 250}.{n % 250}:1": "{}" for n in range(MOST_TEACHERS + 7)}
    registry = {f"service{number}": describe({}) for number in range(MOST_SERVICES + 3)}
    seen = snapshot({"aaa": describe(entries), **registry}, Figures(), 0.0)
    assert len(seen.services) == MOST_SERVICES
    assert seen.more_services == 4
    assert len(seen.services[0].teachers) == MOST_TEACHERS
    assert seen.services[0].more_teachers == 7


def test_what_the_balancer_wants_counts_while_there_is_one():
    entries = {"nodes/a:1": "{}", "balance": '{"wanted": 12, "demand": 7.5}', "leader": "me"}
    (service,) = snapshot({"resnet": describe(entries)}, Figures(), 0.0).services
    assert (service.wanted, service.demand, service.balanced) == (12, 7.5, True)
    del entries["leader"]
    (service,) = snapshot({"resnet": describe(entries)}, Figures(), 0.0).services
    assert (service.wanted, service.demand, service.balanced) == (None, None, False)
