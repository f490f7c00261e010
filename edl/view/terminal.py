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


#: Columns of a terminal that has room for all of a table's.
_WIDE = 130
_WHERE_THERE_IS_ROOM = ("can", "device", "serves", "host", "store", "wants", "age")


def screen(seen: Snapshot, lines: Optional[int] = None, columns: int = _WIDE) -> Any:
    """For rich. ``lines``: how many there is room for; those who have trouble come first then, and
    it is said how many are not shown. None: all. ``columns``: of the terminal.
    """
    parts: list[Any] = []
    if seen.problem:
        text = f"This is of the past: {seen.problem}"
        parts.append(Text(text, style="bold red"))
    if not seen.services:
        parts.append(Text("nothing is registered"))
    room = None if lines is None else _room(seen, lines)
    for service in seen.services:
        parts += [_headline(service), *_advice(service)]
        if service.teachers:
            parts.append(_teachers(service, seen.time, room, columns))
        if service.students:
            parts.append(_students(service, seen.time, room, columns))
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


def _teachers(service: Service, now: float, room: Optional[int], columns: int) -> Any:
    shown, more = _first(service.teachers, room, _trouble)
    table = _table(
        columns,
        [
            {
                "teacher": one.endpoint,
                "device": one.device,
                f"{service.unit}/s": number(one.rows),
                "can": number(one.rate),
                "busy": percent(one.busy),
                "queue": number(one.queue),
                "latency": duration(one.latency),
                "errors": percent(one.errors),
                "students": str(one.students or ""),
                "age": age(one.since, now),
                "serves": one.serves or one.protocol,
                "problem": one.problem or one.words,
            }
            for one in shown
        ],
    )
    return _with_rest(table, more + service.more_teachers)


def _students(service: Service, now: float, room: Optional[int], columns: int) -> Any:
    shown, more = _first(service.students, room, lambda one: -(one.waits or 0.0))
    table = _table(
        columns,
        [
            {
                "student": one.name[:8],
                "host": f"{one.hostname} ({one.pid})" if one.pid else one.hostname,
                f"{service.unit}/s": number(one.rows),
                "waits": percent(one.waits),
                "volume": _volume(one),
                "store": percent(one.store_hits),
                "epoch": _position(one),
                "wants": number(one.want) or "any",
                "age": age(one.since, now),
                "teachers": _some(one.teachers) or "none",
                "problem": one.problem,
            }
            for one in shown
        ],
    )
    for one, row in zip(shown, table.rows):
        if (one.waits or 0.0) >= LITTLE_WAITING:
            row.style = "red"
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


def _table(columns: int, rows: list[dict[str, str]]) -> Table:
    """A row for each of ``rows``; columns in which there is nothing, or no room, are left out."""
    names = [
        name
        for name in rows[0]
        if any(row[name] for row in rows) and (columns >= _WIDE or name not in _WHERE_THERE_IS_ROOM)
    ]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in names:
        numbers = name not in _LEFT
        table.add_column(
            name, justify="right" if numbers else "left", no_wrap=numbers or name == "teacher"
        )
    for row in rows:
        table.add_row(*(Text(row[name]) for name in names))
    return table


def _with_rest(table: Table, more: int) -> Any:
    return Group(table, Text(f"and {more} more", style="dim")) if more else table
