"""Many students, many connections, many teachers: what they take of a machine, and of the time.

python benchmarks/many.py [PART ...] [--students N] [--connections N] [--teachers N] [--seconds S]

One table a part, a real ``edl teacher`` whose model does nothing, batches of 32x1x28x28 float32,
answers checked, everything on this machine.

- students: one teacher and 1 to 200 students (TeacherPool; fifty in a process), each of which asks
  two batches a second, and then as many as it can. "Fair" is what the student who got least had, as
  a share of what a student got on average.
- connections: one student, beside 0 to 2,000 connections that have asked something once. CPU is
  what the front process takes in a second in which nobody asks anything.
- teachers: one student of 1 to 50 teachers: images/s of a DistillReader, CPU for each batch, the
  time of one request after the other by a TeacherPool, and the student's threads and memory.

Memory is proportional (what processes share counts in parts); of a teacher it is the front
process's, where connections are: its worker has none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from _children import Child
from _footprint import children, footprint
from _peers.students import sample, started
from _teachers import teachers
from rich.console import Console
from rich.table import Table

HOST = ["--python", "_peers.models:digits", "--cpu-threads", "1"]
WORK = {"name": "1x28x28"}
ROWS = 32
PER_PROCESS = 50
PAUSE = 0.5


@contextmanager
def crowd(kind: str, endpoint: str, number: int) -> Iterator[Child]:
    """A process with so many students, or idle connections, that is ready."""
    child = Child("_crowd", kind, json.dumps({"endpoint": endpoint, "number": number}))
    with closing(child):
        child.wait_until_ready()
        yield child


@contextmanager
def teacher() -> Iterator[tuple[str, int]]:
    """One teacher's endpoint, and its front process."""
    with teachers(1, HOST) as (endpoint,):
        (pid,) = children(os.getpid())
        yield endpoint, pid


def middle_and_p99(latencies: Sequence[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    return {"median": statistics.median(ordered), "p99": ordered[int(len(ordered) * 0.99)]}


# --- parts ---------------------------------------------------------------------------------------


def many_students(most: int, seconds: float) -> list[dict[str, float]]:
    """One line for each number of students and each pace."""
    found = []
    for number in numbers(most):
        with teacher() as (endpoint, pid), ExitStack() as stack:
            before = footprint(pid)
            sizes = [PER_PROCESS] * (number // PER_PROCESS) + [number % PER_PROCESS]
            groups = [
                stack.enter_context(crowd("students", endpoint, size)) for size in sizes if size
            ]
            for pause in (PAUSE, 0.0):
                for group in groups:
                    group.tell(seconds, pause)
                each = [latencies for group in groups for latencies in group.hear()]
                counts = [len(latencies) for latencies in each]
                after = footprint(pid)
                found.append(
                    {
                        "students": number,
                        "pause": pause,
                        "requests_per_second": sum(counts) / seconds,
                        **middle_and_p99([value for latencies in each for value in latencies]),
                        "fair": min(counts) / statistics.mean(counts),
                        "threads": after.threads,
                        "files": after.files,
                        "memory": after.memory,
                        "memory_for_each": (after.memory - before.memory) / number,
                    }
                )
    return found


def many_connections(most: int, seconds: float) -> list[dict[str, float]]:
    """One line without any, and one with all."""
    found = []
    with teacher() as (endpoint, pid), crowd("students", endpoint, 1) as student:
        for number in (0, most):
            before = footprint(pid)
            with ExitStack() as stack:
                idle = stack.enter_context(crowd("connections", endpoint, number))
                begun = footprint(pid)
                time.sleep(seconds)
                after = footprint(pid)
                (latencies,) = student.ask(seconds, 0.0)
                if (there := idle.ask()) != number:
                    raise SystemExit(f"{number - there} of {number} connections were closed")
                found.append(
                    {
                        "connections": number,
                        "requests_per_second": len(latencies) / seconds,
                        **middle_and_p99(latencies),
                        "cpu": (after.cpu - begun.cpu) / seconds,
                        "threads": after.threads,
                        "memory": after.memory,
                        "memory_for_each": (after.memory - before.memory) / max(1, number),
                    }
                )
    return found


def many_teachers(most: int, seconds: float) -> list[dict[str, float]]:
    """One line for each number of teachers."""
    found = []
    with teachers(most, HOST) as endpoints:
        for number in numbers(most):
            some = endpoints[:number]
            with ExitStack() as stack:
                given = {"endpoints": some, "way": ""}
                (reader,) = started(stack, ("reader", WORK, given))
                rate, cpu = sample(reader.ask("for", seconds))
                size = footprint(reader.pid)
            with ExitStack() as stack:
                asking = {"endpoint": some, "window": 1, "way": ""}
                (pool,) = started(stack, ("pool", WORK, asking))
                one, _ = sample(pool.ask("for", seconds))
            found.append(
                {
                    "teachers": number,
                    "images_per_second": rate * ROWS,
                    "cpu_for_each": cpu,
                    "latency": 1 / one,
                    "threads": size.threads,
                    "memory": size.memory,
                }
            )
    return found


def numbers(most: int) -> list[int]:
    """1, about a quarter, all."""
    return sorted({1, max(1, most // 4), most})


# --- tables --------------------------------------------------------------------------------------

#: By part: the columns, and how each is said.
COLUMNS: dict[str, dict[str, str]] = {
    "students": {
        "students": "count", "pause": "seconds", "requests_per_second": "count", "median": "ms",
        "p99": "ms", "fair": "share", "threads": "count", "files": "count", "memory": "MB",
        "memory_for_each": "kB",
    },
    "connections": {
        "connections": "count", "requests_per_second": "count", "median": "ms", "p99": "ms",
        "cpu": "share", "threads": "count", "memory": "MB", "memory_for_each": "kB",
    },
    "teachers": {
        "teachers": "count", "images_per_second": "count", "cpu_for_each": "ms", "latency": "ms",
        "threads": "count", "memory": "MB",
    },
}  # fmt: skip

_SAID = {
    "count": lambda value: f"{value:,.0f}",
    "seconds": lambda value: f"{value:g} s",
    "share": lambda value: f"{value:.1%}",
    "ms": lambda value: f"{value * 1e3:,.2f} ms",
    "MB": lambda value: f"{value / 1e6:,.0f} MB",
    "kB": lambda value: f"{value / 1e3:,.1f} kB",
}


def table(part: str, lines: Sequence[dict[str, float]]) -> Table:
    made = Table(title=f"many {part}, {os.cpu_count()} cores")
    for name in COLUMNS[part]:
        made.add_column(name.replace("_", " "), justify="right")
    for line in lines:
        made.add_row(*(_SAID[kind](line[name]) for name, kind in COLUMNS[part].items()))
    return made


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(COLUMNS))
    parser.add_argument("--students", type=int, default=200)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--teachers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=5.0, help="that each line takes")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    unknown = set(options.parts) - set(COLUMNS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(COLUMNS)}")
    measures = {
        "students": (many_students, options.students),
        "connections": (many_connections, options.connections),
        "teachers": (many_teachers, options.teachers),
    }
    found = {}
    for part in options.parts or COLUMNS:
        measure, most = measures[part]
        found[part] = measure(most, options.seconds)
        Console(width=None if sys.stdout.isatty() else 120).print(table(part, found[part]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
