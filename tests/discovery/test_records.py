"""Whatever a stranger writes to the registry can be read, and means no more than it says."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edl.discovery import StudentRecord
from edl.discovery.assignment import Rates, plan
from edl.discovery.records import (
    format_assignment,
    format_rate,
    parse_assignment,
    parse_rate,
    read_object,
)

DIGITS = "9" * 400
FIELDS = [
    *("max_teachers", "want", "rates", "avoid", "rows_per_second", "teachers", "rate", "metrics"),
]
HOSTILE = [
    "", "[]", "nonsense", "1e999", "null", "true", '"text"', "\ud800", "\0", "{", DIGITS * 20,
    "[" * 100_000, '{"a":' * 100_000, '{"rate": "' + "x" * (10 << 20) + '"}',
    *(
        f'{{"{name}": {value}}}'
        for name in FIELDS
        for value in (
            DIGITS, DIGITS * 20, f"-{DIGITS}", "1e999", "NaN", "-Infinity", "true", "null", "-1",
            '"120"', "[]", "[[[]]]", "{}", '{"a": {}}', '["a", 1, null]', "[" * 50_000, '"\\ud800"',
            f'{{"t1": {DIGITS}}}', '{"t1": true, "t2": -1}', '{"t1": NaN, "t2": 1e-320}',
            '{"t1": 1e300, "t2": 1e300}',
        )
    ),
]  # fmt: skip

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
objects = st.dictionaries(st.sampled_from(FIELDS), values | st.dictionaries(st.text(), values))
texts = st.text() | objects.map(json.dumps) | values.map(json.dumps) | st.sampled_from(HOSTILE)


def is_sound(record):
    """Whether it is what the annotations of StudentRecord say."""
    json.loads(record.to_json(), parse_constant=pytest.fail)
    return (
        (record.max_teachers is None or 1 <= record.max_teachers <= 1 << 30)
        and (record.want is None or 0 <= record.want < math.inf)
        and all(0 < rate < math.inf for rate in record.rates.values())
        and all(isinstance(name, str) for name in (*record.rates, *record.avoid))
        and 0 <= record.rows_per_second < math.inf
    )


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_one_strangers_entries_keep_nobody_from_its_teachers(text):
    entries = {f"{kind}/bad": text for kind in ("nodes", "rates", "students", "assignments")}
    entries |= {"nodes/t1": '{"rate": 10}', "nodes/t2": '{"rate": 30}', "leader": text}
    entries["students/good"] = StudentRecord(want=35.0).to_json()
    result = plan(entries, Rates())
    assert len(result.assignment["good"] & {"t1", "t2", "bad"}) >= 1
    assert all(math.isfinite(value) for value in vars(result.summary).values())


@given(texts)
@example(DIGITS)
def test_any_text_is_a_record_an_assignment_and_a_rate(text):
    assert is_sound(StudentRecord.from_json(text))
    assert all(isinstance(teacher, str) for teacher in parse_assignment(text))
    rate = parse_rate(text)
    assert rate is None or 0 < rate < math.inf
    json.dumps(read_object(text), allow_nan=False)


keys = ["nodes/a", "nodes/b", "rates/a", "students/s", "students/u", "assignments/s", "balance"]


@given(st.dictionaries(st.sampled_from(keys), texts))
def test_a_plan_follows_from_any_entries(entries):
    result = plan(entries, Rates())
    assert result.assignment.keys() == {key[9:] for key in entries if key.startswith("students/")}
    assert all(links <= {"a", "b"} for links in result.assignment.values())
    assert all(math.isfinite(value) for value in vars(result.summary).values())


rates = st.floats(1e-6, 1e12)
records = st.builds(
    StudentRecord,
    st.none() | st.integers(1, 1 << 30),
    st.none() | st.floats(0, 1e12),
    st.dictionaries(st.text(), rates),
    st.sets(st.text()).map(sorted).map(tuple),
    st.floats(0, 1e12),
    st.dictionaries(st.text(), st.text()),
)


@given(records, st.frozensets(st.text()), rates)
def test_what_is_written_is_what_is_read(record, teachers, rate):
    assert StudentRecord.from_json(record.to_json(pid=1)) == record
    assert parse_assignment(format_assignment(teachers)) == teachers
    assert parse_rate(format_rate(rate)) == pytest.approx(rate, rel=0.06)


def test_what_is_wrong_takes_nothing_with_it_that_is_right():
    text = (
        f'{{"max_teachers": {DIGITS * 20}, "want": 5, "rates": {{"a": 1, "b": "x"}}, "avoid": 3, '
        '"ways": {"a": "tcp", "b": 1}}'
    )
    assert StudentRecord.from_json(text) == StudentRecord(
        want=5.0, rates={"a": 1.0}, ways={"a": "tcp"}
    )


@pytest.mark.parametrize("address", ["10.0.0.7:9100", "[fe80::1%eth0]:9100", "student-0.pods:9100"])
def test_an_address_of_metrics_is_read(address):
    assert StudentRecord.from_json(StudentRecord(metrics=address).to_json()).metrics == address


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:0", "host:99999", "host/x:1", "a b:1", "h?x:1", "h#:1", "h\n:1", "é:1",
     "user@host:1", "http://h:1", "x" * 300 + ":1", 9100, None, ["h:1"]],
)  # fmt: skip
def test_what_is_no_address_is_asked_by_nobody(address):
    text = json.dumps({"metrics": address})
    assert StudentRecord.from_json(text).metrics is None
