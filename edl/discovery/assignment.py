"""What follows from a service's entries: a pure function of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

from edl.discovery.balance import Assignment, Student, balance, rates
from edl.discovery.keys import ASSIGNMENTS, NODES, RATES, STUDENTS, under
from edl.discovery.records import StudentRecord, differs, parse_assignment, parse_rate
from edl.discovery.wanted import NO_LIMIT, Load, Need, mean, need


@dataclass(frozen=True)
class Summary:
    """Demand and supply of a service. Rates in rows per second; ``demand`` counts students who
    would use any number of teachers with what they get now, and ``unsatisfied`` says how many want
    more than they get. ``wanted``: how many teachers there should be, see ``wanted``.
    """

    students: int = 0
    teachers: int = 0
    supply: float = 0.0
    demand: float = 0.0
    unsatisfied: int = 0
    idle: int = 0
    links: int = 0
    wanted: int = 0


@dataclass
class Plan:
    """What follows from a service's entries: the assignment, what it amounts to (how many teachers
    are wanted aside, which takes time to tell), and from what that is told.
    """

    assignment: Assignment
    current: dict[str, frozenset[str]]
    summary: Summary
    load: Load

    def changed(self) -> dict[str, Optional[frozenset[str]]]:
        """Assignments to write, None for those to delete."""
        changed: dict[str, Optional[frozenset[str]]] = {
            student: links
            for student, links in self.assignment.items()
            if self.current.get(student) != links
        }
        changed.update(dict.fromkeys(self.current.keys() - self.assignment.keys()))
        return changed


@dataclass
class Rates:
    """What teachers are taken to deliver. A measured rate replaces the one in use only when they
    differ by more than noise, so that that moves nobody.
    """

    in_use: dict[str, float] = field(default_factory=dict)

    def update(self, measured: Mapping[str, Optional[float]]) -> dict[str, float]:
        """Rates for the teachers that are there. Those of which nothing is known are taken to be
        as fast as the others usually are.
        """
        known = [rate for rate in measured.values() if rate]
        usual = statistics.median(known) if known else 1.0
        before, self.in_use = self.in_use, {}
        for teacher, rate in measured.items():
            old = before.get(teacher)
            new = rate or old or usual
            self.in_use[teacher] = new if old is None or differs(old, new) else old
        return self.in_use


def plan(entries: Mapping[str, str], rates_in_use: Rates) -> Plan:
    """What is to be assigned, given everything under a service's prefix."""
    nodes = under(entries, NODES)
    records = {
        name: StudentRecord.from_json(text) for name, text in under(entries, STUDENTS).items()
    }
    current = {name: parse_assignment(text) for name, text in under(entries, ASSIGNMENTS).items()}
    declared, seen = under(entries, RATES), _seen(records, current)
    measured = {
        endpoint: parse_rate(declared.get(endpoint, "")) or parse_rate(text) or seen.get(endpoint)
        for endpoint, text in nodes.items()
    }
    teachers = rates_in_use.update(measured)
    students = {
        name: Student(
            record.max_teachers or NO_LIMIT,
            math.inf if record.want is None else record.want,
            frozenset(record.avoid),
        )
        for name, record in records.items()
    }
    assignment = balance(teachers, students, current)
    got = rates(teachers, assignment)
    known = mean(teachers[endpoint] for endpoint, rate in measured.items() if rate)
    load = Load(len(teachers), known, _needs(records, got))
    return Plan(assignment, current, _summarise(teachers, students, assignment, got), load)


def _needs(records: Mapping[str, StudentRecord], got: Mapping[str, float]) -> tuple[Need, ...]:
    """Of the students that want any teachers."""
    return tuple(
        Need(
            need(record.want, record.rows_per_second, record.waits, got[name]),
            record.max_teachers or NO_LIMIT,
        )
        for name, record in records.items()
        if record.want != 0
    )


def _seen(
    records: Mapping[str, StudentRecord], current: Mapping[str, frozenset[str]]
) -> dict[str, float]:
    """What students say that teachers deliver. Each of those who share one sees its own part, so it
    is the sum; who does not use a teacher any more, or not yet, counts only if nobody does.
    """
    parts: dict[str, float] = {}
    others: dict[str, float] = {}
    for name, record in records.items():
        links = current.get(name, frozenset())
        for teacher, rate in record.rates.items():
            if teacher in links:
                parts[teacher] = parts.get(teacher, 0.0) + rate
            else:
                others[teacher] = max(rate, others.get(teacher, 0.0))
    return {**others, **parts}


def _summarise(
    teachers: Mapping[str, float],
    students: Mapping[str, Student],
    assignment: Assignment,
    got: Mapping[str, float],
) -> Summary:
    used = {teacher for links in assignment.values() for teacher in links}
    wants = {
        name: student.want if student.want < math.inf else got[name]
        for name, student in students.items()
    }
    return Summary(
        students=len(students),
        teachers=len(teachers),
        supply=round(math.fsum(teachers.values()), 3),
        demand=round(math.fsum(wants.values()), 3),
        unsatisfied=sum(got[name] < student.want for name, student in students.items()),
        idle=len(teachers.keys() - used),
        links=sum(map(len, assignment.values())),
    )
