"""Balancing at scale, beside the original's greedy method on the same events.

python benchmarks/balance.py [--seed N]

Teachers of four speeds and students come and go. After every event both methods rebalance from what
they had before. ``fair`` is what the poorest student gets, as a share of an even part of all rates;
``Jain`` is Jain's index of what students get (1: all the same); ``moves`` are links added and
removed; ``steady`` says how many further rebalancings change something.

The original's method is reimplemented here from its description, for comparison only: a teacher
has at most ceil(students / teachers) connections, a student at most max(1, teachers // students)
teachers; who exceeds that lets go, and then students are linked greedily to the least used ones.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from edl.discovery.balance import Assignment, Student, balance, rates

SPEEDS = (10.0, 20.0, 50.0, 100.0)
SIZES = ((10, 40), (100, 1000), (1000, 10_000), (1000, 500), (4000, 4))

Method = Callable[[Mapping[str, float], Mapping[str, Student], Assignment], Assignment]


def greedy(
    teachers: Mapping[str, float], students: Mapping[str, Student], current: Assignment
) -> Assignment:
    """The original's method."""
    if not teachers or not students:
        return dict.fromkeys(students, frozenset())
    most_students = math.ceil(len(students) / len(teachers))
    most_teachers = max(1, len(teachers) // len(students))
    count = dict.fromkeys(teachers, 0)
    links: dict[str, set[str]] = {student: set() for student in students}
    for student in students:
        for teacher in sorted(current.get(student, ())):
            room = len(links[student]) < most_teachers
            if teacher in count and room and count[teacher] < most_students:
                links[student].add(teacher)
                count[teacher] += 1
    free = [(used, teacher) for teacher, used in count.items()]
    heapq.heapify(free)
    for student in sorted(students, key=lambda name: len(links[name])):
        passed_over = []
        while len(links[student]) < most_teachers and free:
            used, teacher = heapq.heappop(free)
            if used != count[teacher] or used >= most_students:
                continue
            if teacher in links[student]:
                passed_over.append((used, teacher))
                continue
            links[student].add(teacher)
            count[teacher] += 1
            heapq.heappush(free, (count[teacher], teacher))
        for entry in passed_over:
            heapq.heappush(free, entry)
    return {student: frozenset(teachers) for student, teachers in links.items()}


@dataclass
class Record:
    """What one method did on one kind of event."""

    seconds: list[float] = field(default_factory=list)
    fair: list[float] = field(default_factory=list)
    jain: list[float] = field(default_factory=list)
    moves: list[int] = field(default_factory=list)
    steady: list[int] = field(default_factory=list)


class World:
    """Who is there."""

    def __init__(self, students: int, teachers: int, seed: int) -> None:
        self.random = random.Random(seed)
        self._numbers = iter(range(1 << 30))
        self.teachers: dict[str, float] = {}
        self.students: dict[str, Student] = {}
        self.join_teachers(teachers)
        self.join_students(students)

    def join_teachers(self, count: int) -> None:
        for _ in range(count):
            self.teachers[f"t{next(self._numbers)}"] = self.random.choice(SPEEDS)

    def join_students(self, count: int) -> None:
        for _ in range(count):
            self.students[f"s{next(self._numbers)}"] = Student()

    def leave(self, population: dict, count: int) -> None:
        for name in self.random.sample(sorted(population), count):
            del population[name]


def events(students: int, teachers: int) -> list[tuple[str, Callable[[World], None]]]:
    """The name of each event, and what it does."""
    tenth = max(1, teachers // 10)
    return [
        ("all at once", lambda world: None),
        *[("a teacher joins", lambda world: world.join_teachers(1))] * 3,
        *[("a teacher leaves", lambda world: world.leave(world.teachers, 1))] * 3,
        *[("a student joins", lambda world: world.join_students(1))] * 3,
        *[("a student leaves", lambda world: world.leave(world.students, 1))] * 3,
        ("a tenth of the teachers leave", lambda world: world.leave(world.teachers, tenth)),
        ("a tenth of the teachers join", lambda world: world.join_teachers(tenth)),
    ]


def simulate(students: int, teachers: int, seed: int) -> dict[tuple[str, str], Record]:
    """Both methods on the same events."""
    methods: dict[str, Method] = {"edl": balance, "original": greedy}
    world = World(students, teachers, seed)
    state: dict[str, Assignment] = {name: {} for name in methods}
    records: dict[tuple[str, str], Record] = {}
    for event, happen in events(students, teachers):
        happen(world)
        for name, method in methods.items():
            record = records.setdefault((event, name), Record())
            before = state[name]
            started = time.perf_counter()
            after = method(world.teachers, world.students, before)
            record.seconds.append(time.perf_counter() - started)
            got = list(rates(world.teachers, after).values())
            even = math.fsum(world.teachers.values()) / len(world.students)
            record.fair.append(min(got) / even)
            record.jain.append(sum(got) ** 2 / (len(got) * sum(value * value for value in got)))
            record.moves.append(moves(before, after))
            again, rounds = method(world.teachers, world.students, after), 0
            while moves(after, again) and rounds < 9:
                after, again = again, method(world.teachers, world.students, again)
                rounds += 1
            record.steady.append(rounds)
            state[name] = again
    return records


def moves(before: Assignment, after: Assignment) -> int:
    """Links added and removed."""
    names = before.keys() | after.keys()
    return sum(len(before.get(name, frozenset()) ^ after.get(name, frozenset())) for name in names)


def main() -> None:
    """Simulate and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    for students, teachers in SIZES:
        table = Table(title=f"{students:,} students, {teachers:,} teachers (edl | original)")
        for column in ("event", "ms", "fair", "Jain", "moves", "steady"):
            table.add_column(column, justify="left" if column == "event" else "right")
        records = simulate(students, teachers, seed)
        for event in dict.fromkeys(event for event, _ in records):
            cells = []
            for measure, form in (
                (lambda record: [1000 * value for value in record.seconds], ",.1f"),
                (lambda record: record.fair, ".2f"),
                (lambda record: record.jain, ".3f"),
                (lambda record: record.moves, ",.0f"),
                (lambda record: record.steady, ".0f"),
            ):
                each = [
                    format(statistics.median(measure(records[event, name])), form)
                    for name in ("edl", "original")
                ]
                cells.append(" | ".join(each))
            table.add_row(event, *cells)
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
