"""What there is to see, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from rich.console import Group
from rich.table import Table
from rich.text import Text

from edl.view.advice import LITTLE_WAITING, advise_service
from edl.view.snapshot import Service, Snapshot, Student, Teacher
from edl.view.text import age, duration, number, percent

_STYLES = {"act": "bold red", "note": "yellow", "good": "green"}
_SIGNS = {"act": "!", "note": "·", "good": "✓"}
_LEFT = ("teacher", "student", "host", "device", "serves", "problem", "teachers")


def screen(seen: Snapshot, lines: Optional[int] = None) -> Any:
    """For rich. ``lines``: how many there is room for; those who have trouble come first then, and
    it is said how many are not shown. None: all.
    """
    parts: list[Any] = []
    if seen.problem:
        text = f"The registry does not answer; this is what it said last: {seen.problem}"
        parts.append(Text(text, style="bold red"))
    if not seen.services:
        parts.append(Text("nothing is registered"))
    room = None if lines is None else _room(seen, lines)
    for service in seen.services:
        parts += [_headline(service), *_advice(service)]
        if service.teachers:
            parts.append(_teachers(service, seen.time, room))
        if service.students:
            parts.append(_students(service, seen.time, room))
        parts.append(Text())
    if seen.more_services:
        parts.append(Text(f"and {seen.more_services} more services"))
    return Group(*parts)


def _room(seen: Snapshot, lines: int) -> int:
    """Rows of a table that there is room for."""
    tables = 2 * max(1, len(seen.services))
    advice = sum(len(advise_service(service)) for service in seen.services)
    return max(1, (lines - advice - 2 * len(seen.services)) // tables - 4)


def _headline(service: Service) -> Text:
    per_second = f"{service.unit}/s"
    known = [
        f"{len(service.teachers) + service.more_teachers} teachers",
        f"{len(service.students) + service.more_students} students",
    ]
    if service.rows is not None:
        known.append(f"{number(service.rows)} {per_second}")
    if service.busy is not None:
        known.append(f"teachers busy {percent(service.busy)}")
    if service.waits is not None:
        known.append(f"students wait {percent(service.waits)}")
    return Text(f"{service.name}: {', '.join(known)}", style="bold")


def _advice(service: Service) -> list[Text]:
    return [
        Text(f" {_SIGNS[item.level]} {item.english}", style=_STYLES[item.level])
        for item in advise_service(service)
    ]


def _teachers(service: Service, now: float, room: Optional[int]) -> Table:
    columns = ("teacher", "device", f"{service.unit}/s", "can", "busy", "queue", "latency",
               "errors", "students", "age", "serves", "problem")  # fmt: skip
    table = _table(columns)
    shown, more = _first(service.teachers, room, _trouble)
    for one in shown:
        _add_row(
            table,
            one.endpoint,
            one.device,
            number(one.rows),
            number(one.rate),
            percent(one.busy),
            number(one.queue),
            duration(one.latency),
            percent(one.errors),
            str(one.students or ""),
            age(one.since, now),
            one.serves or one.protocol,
            one.problem or (one.words if one.errors else ""),
        )
    return _with_rest(table, more + service.more_teachers)


def _students(service: Service, now: float, room: Optional[int]) -> Table:
    columns = ("student", "host", f"{service.unit}/s", "waits", "volume", "store", "epoch",
               "wants", "age", "teachers", "problem")  # fmt: skip
    table = _table(columns)
    shown, more = _first(service.students, room, lambda one: -(one.waits or 0.0))
    for one in shown:
        _add_row(
            table,
            one.name[:8],
            f"{one.hostname} ({one.pid})" if one.pid else one.hostname,
            number(one.rows),
            percent(one.waits),
            _volume(one),
            percent(one.store_hits),
            _position(one),
            number(one.want) or "any",
            age(one.since, now),
            _some(one.teachers) or "none",
            one.problem,
        )
        if (one.waits or 0.0) >= LITTLE_WAITING:
            table.rows[-1].style = "red"
    return _with_rest(table, more + service.more_students)


def _volume(one: Student) -> str:
    """Batches that are ready, and the thresholds."""
    if one.volume is None:
        return ""
    return f"{number(one.volume)} of {number(one.low)}-{number(one.high)}"


def _position(one: Student) -> str:
    if one.epoch is None:
        return ""
    of = f"/{one.length}" if one.length else ""
    return f"{one.epoch}: {one.batch or 0}{of}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _trouble(one: Teacher) -> tuple[float, bool, float]:
    return -(one.errors or 0.0), not one.problem, -(one.busy or 0.0)


def _first(items: Sequence[Any], room: Optional[int], by: Any) -> tuple[Sequence[Any], int]:
    if room is None or len(items) <= room:
        return items, 0
    return sorted(items, key=by)[:room], len(items) - room


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        left = column in _LEFT
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "teacher")
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))


def _with_rest(table: Table, more: int) -> Any:
    return Group(table, Text(f"and {more} more", style="dim")) if more else table
