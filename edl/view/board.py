"""What a page shows as plain values, and what has changed since. Pure.

Numbers are rounded as a page shows them, so that what looks the same is the same, and is not sent.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Callable, Optional

from edl.view.advice import advise_service
from edl.view.snapshot import Service, Snapshot, Student, Teacher

#: A row, or a service without its rows.
Row = dict[str, Any]
State = dict[str, Any]

_ROWS = ("teachers", "students")
_SHARES = {"busy", "waits", "errors", "store_hits"}
_LEAST_SHARE = 0.004  # is shown as less than 1 %


def state(seen: Snapshot) -> State:
    """Everything, for JSON. What is not known is not there."""
    return {
        "time": round(seen.time, 1),
        "problem": seen.problem,
        "more": seen.more_services,
        "services": {service.name: _service(service) for service in seen.services},
    }


def changes(before: State, after: State) -> State:
    """What makes ``after`` of ``before``: rows as they are now, None for those that are gone."""
    old, new = before["services"], after["services"]
    services: dict[str, Any] = {name: None for name in old if name not in new}
    for name, service in new.items():
        if name not in old:
            services[name] = service
        else:
            changed = _changes(old[name], service)
            if changed:
                services[name] = changed
    return {**after, "services": services}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for part, value in new.items():
        if part in _ROWS:
            rows: dict[str, Optional[Row]] = {key: None for key in old[part] if key not in value}
            rows.update((key, row) for key, row in value.items() if old[part].get(key) != row)
            if rows:
                changed[part] = rows
        elif old[part] != value:
            changed[part] = value
    return changed


def _service(service: Service) -> dict[str, Any]:
    info = {
        "unit": service.unit,
        "rows": service.rows,
        "waits": service.waits,
        "busy": service.busy,
        "errors": service.errors,
        "wanted": service.wanted,
        "demand": service.demand,
        "supply": service.supply,
        "balanced": service.balanced,
        "moreTeachers": service.more_teachers,
        "moreStudents": service.more_students,
    }
    return {
        "info": _rounded(info),
        "advice": [[item.level, item.english, item.chinese] for item in advise_service(service)],
        "teachers": {teacher.endpoint: _teacher(teacher) for teacher in service.teachers},
        "students": {student.name: _student(student) for student in service.students},
    }


def _row_of(kind: type, leave_out: tuple[str, ...]) -> Callable[[Any], Row]:
    names = [field.name for field in fields(kind) if field.name not in leave_out]
    return lambda one: _rounded({name: getattr(one, name) for name in names})


_teacher = _row_of(Teacher, ("endpoint", "requests"))
_student = _row_of(Student, ("name", "asked"))


def _rounded(row: Row) -> Row:
    return {
        name: _round(name, value) if isinstance(value, float) else value
        for name, value in row.items()
        if value is not None and value != ""
    }


def _round(name: str, value: float) -> float:
    if name == "since":
        return round(value)
    if name in _SHARES:
        return round(value, 2) or (_LEAST_SHARE if value > 0 else 0.0)
    return float(f"{value:.3g}")
