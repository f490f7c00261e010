"""Registry and figures together: everything that is shown, at one moment. Pure.

Texts in here are cut and have no control characters; numbers are finite; lists have limits, and
what was left out is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from edl.discovery.records import as_number, parse_ways
from edl.view.figures import StudentFigures, TeacherFigures
from edl.view.registry import unit
from edl.view.text import plain

#: More are not shown, and not asked: one service can be that large, and a page is for people.
MOST_SERVICES, MOST_TEACHERS, MOST_STUDENTS = 50, 2000, 2000

_LONGEST = 120
_MOST = 1e15


@dataclass(frozen=True)
class Teacher:
    """One teacher. Rates per second, shares from 0 to 1, ``since`` in seconds since 1970, all None
    if not known. ``rate``: what it can do, ``rows``: what it does (rows, or tokens: see Service).
    ``problem``: why there are no figures. ``words``: what it says of its errors.
    """

    endpoint: str
    hostname: str = ""
    device: str = ""
    precision: str = ""
    protocol: str = ""
    serves: str = ""
    model: str = ""
    since: Optional[float] = None
    students: int = 0
    rate: Optional[float] = None
    rows: Optional[float] = None
    busy: Optional[float] = None
    queue: Optional[float] = None
    latency: Optional[float] = None
    errors: Optional[float] = None
    requests: float = 0.0
    words: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Student:
    """One student; as for Teacher. ``want``: None for any number. ``connected``: those of its
    ``teachers`` that it says it is connected to. ``asked``: whether it serves figures at all.
    """

    name: str
    hostname: str = ""
    pid: str = ""
    since: Optional[float] = None
    teachers: tuple[str, ...] = ()
    connected: tuple[str, ...] = ()
    limit: Optional[int] = None
    want: Optional[float] = None
    rows: Optional[float] = None
    volume: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    waits: Optional[float] = None
    store_hits: Optional[float] = None
    epoch: Optional[int] = None
    batch: Optional[int] = None
    length: Optional[int] = None
    asked: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Service:
    """One service. ``unit``: "rows" or "tokens", what all rates count. ``wanted``: how many
    teachers the balancer would have. ``waits``, ``busy``: averages of those that say.
    """

    name: str
    unit: str = "rows"
    balanced: bool = False
    demand: Optional[float] = None
    supply: Optional[float] = None
    wanted: Optional[int] = None
    teachers: tuple[Teacher, ...] = ()
    students: tuple[Student, ...] = ()
    more_teachers: int = 0
    more_students: int = 0

    @property
    def rows(self) -> Optional[float]:
        """What the students get together, per second."""
        return _sum(student.rows for student in self.students)

    @property
    def waits(self) -> Optional[float]:
        """Share of their time that students wait."""
        return _mean(student.waits for student in self.students)

    @property
    def busy(self) -> Optional[float]:
        """Share of their time that teachers compute."""
        return _mean(teacher.busy for teacher in self.teachers)

    @property
    def errors(self) -> Optional[float]:
        """Share of the requests to all teachers that were answered with an error."""
        asked = [teacher for teacher in self.teachers if teacher.errors is not None]
        requests = sum(teacher.requests for teacher in asked)
        failed = sum((teacher.errors or 0.0) * teacher.requests for teacher in asked)
        return failed / requests if requests else None


@dataclass(frozen=True)
class Snapshot:
    """Everything. ``problem``: why it is of the past, if it is."""

    time: float
    services: tuple[Service, ...] = ()
    more_services: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Figures:
    """What was measured, by service and endpoint or student. ``problems``: why something was not;
    ``words``: what teachers say of their errors.
    """

    teachers: Mapping[tuple[str, str], TeacherFigures] = field(default_factory=dict)
    students: Mapping[tuple[str, str], StudentFigures] = field(default_factory=dict)
    problems: Mapping[tuple[str, str], str] = field(default_factory=dict)
    words: Mapping[tuple[str, str], str] = field(default_factory=dict)


def snapshot(
    registry: Mapping[str, Any], figures: Figures, now: float, problem: str = ""
) -> Snapshot:
    """``registry``: see ``registry.by_service``. ``now``: seconds since 1970."""
    names = list(registry)[:MOST_SERVICES]
    services = tuple(_service(name, registry[name], figures) for name in names)
    return Snapshot(now, services, len(registry) - len(names), plain(problem, 1000))


def _service(name: str, found: Mapping[str, Any], figures: Figures) -> Service:
    counted = unit(found)
    students = list(found["students"].items())
    users: dict[str, int] = {}
    for _, record in students:
        for endpoint in record["teachers"]:
            users[endpoint] = users.get(endpoint, 0) + 1
    teachers = list(found["teachers"].items())
    balance = found["balance"] if found["leader"] else {}  # otherwise it is of the past
    return Service(
        name=_text(name),
        unit=counted,
        balanced=bool(found["leader"]),
        demand=_number(balance.get("demand")),
        supply=_number(balance.get("supply")),
        wanted=_count(balance.get("wanted")),
        teachers=tuple(
            _teacher(endpoint, entry, users.get(endpoint, 0), counted, (name, endpoint), figures)
            for endpoint, entry in teachers[:MOST_TEACHERS]
        ),
        students=tuple(
            _student(student, record, (name, student), figures)
            for student, record in students[:MOST_STUDENTS]
        ),
        more_teachers=max(0, len(teachers) - MOST_TEACHERS),
        more_students=max(0, len(students) - MOST_STUDENTS),
    )


def _teacher(
    endpoint: str,
    entry: Mapping[str, Any],
    users: int,
    counted: str,
    key: tuple[str, str],
    figures: Figures,
) -> Teacher:
    measured = figures.teachers.get(key, TeacherFigures())
    return Teacher(
        endpoint=_text(endpoint),
        hostname=_text(entry.get("hostname")),
        device=_text(entry.get("device")),
        precision=_text(entry.get("precision")),
        protocol=_text(entry.get("protocol", entry.get("info"))),
        serves=_serves(entry),
        model=_text(entry.get("fingerprint")),
        since=_number(entry.get("since")),
        students=users,
        rate=_number(entry.get("rate")),
        rows=measured.tokens if counted == "tokens" else measured.rows,
        busy=measured.busy,
        queue=measured.queued_rows,
        latency=measured.latency,
        errors=measured.errors,
        requests=measured.requests,
        words=plain((figures.words.get(key) or _kinds(measured)) if measured.errors else "", 300),
        problem=plain(figures.problems.get(key, ""), 300),
    )


def _student(
    name: str, record: Mapping[str, Any], key: tuple[str, str], figures: Figures
) -> Student:
    measured = figures.students.get(key, StudentFigures())
    teachers = record["teachers"][:MOST_TEACHERS]
    ways = parse_ways(record.get("ways"))
    rows = _number(record.get("rows_per_second")) if measured.rows is None else measured.rows
    return Student(
        name=_text(name),
        hostname=_text(record.get("hostname")),
        pid=_text(record.get("pid")),
        since=_number(record.get("since")),
        teachers=tuple(map(_text, teachers)),
        connected=tuple(_text(teacher) for teacher in teachers if teacher in ways),
        limit=_count(record.get("max_teachers")),
        want=_number(record.get("want")),
        rows=rows,
        volume=measured.volume,
        low=measured.low,
        high=measured.high,
        waits=measured.waits,
        store_hits=measured.store_hits,
        epoch=_count(measured.epoch),
        batch=_count(measured.epoch_batches),
        length=_count(measured.epoch_length),
        asked=isinstance(record.get("metrics"), str),
        problem=plain(figures.problems.get(key, ""), 300),
    )


def _serves(entry: Mapping[str, Any]) -> str:
    """Feeds and fetches by name, as in "img → logits"."""
    sides = [entry.get("feeds"), entry.get("fetches")]
    if not all(isinstance(side, dict) for side in sides):
        return ""
    return _text(" → ".join(", ".join(list(side)[:8]) for side in sides if isinstance(side, dict)))


def _kinds(measured: TeacherFigures) -> str:
    return ", ".join(f"{count:.0f} {kind}" for kind, count in measured.outcomes)


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, (dict, list)) else plain(str(value), _LONGEST)


def _number(value: Any) -> Optional[float]:
    """A number of which sums are finite, and that people can read."""
    known = as_number(value)
    return None if known is None or abs(known) >= _MOST else known


def _count(value: Any) -> Optional[int]:
    known = _number(value)
    return None if known is None or known < 0 else int(known)


def _sum(values: Any) -> Optional[float]:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _mean(values: Any) -> Optional[float]:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
