"""What the reader costs: images per second with teachers that cost nothing.

python benchmarks/reader.py [--rounds N] [--no-original]

One table, one run, everything in turn. At the other end is a stub, a process that answers at once
with bytes made beforehand, which shows the student's side alone; or a real ``edl teacher`` whose
model does nothing, by its Unix socket and by TCP. DistillReader with one, and with 2 and 4 stubs;
TeacherPool by ``map`` and by one ``infer`` after the other; a bare socket round trip of the same
bytes; and the original, paddle_edl 0.3.1, in a virtual environment of its own (made on first use)
with its predictor replaced by one that costs nothing and transfers nothing, one predict worker per
teacher. Batches of 32; medians over the rounds. "CPU" is the student process's own CPU time per
batch (for the original of its main process only, start included: its workers are killed at the end
and not counted).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import sys
import time

import numpy as np
from _nothing import Peer, bare_round_trip
from _original import make_original_environment, run_original
from _teachers import teachers
from rich.console import Console
from rich.table import Table

from edl.distill import DistillReader, TeacherPool

BATCH = 32
SHAPES = {(1, 28, 28): 3000, (3, 224, 224): 120}  # shape: batches per round
LABELS = {(1, 28, 28): 10, (3, 224, 224): 1000}
PREDICTORS = {(1, 28, 28): "_nothing:Digits", (3, 224, 224): "_nothing:Nothing"}


def run_reader(shape: tuple, teachers: list[str], count: int) -> tuple[float, float]:
    """(seconds per batch, CPU seconds per batch); the first tenth is not counted."""
    image, label = np.zeros((BATCH, *shape), np.float32), np.zeros(BATCH, np.int64)
    skip = count // 10
    source = ((image, label) for _ in range(count + skip))
    with DistillReader(["img", "label"], ["prob"], source, teachers) as reader:
        for number, _ in enumerate(reader):
            if number == skip - 1:
                started, cpu = time.perf_counter(), time.process_time()
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    return elapsed / count, cpu / count


def run_pool(shape: tuple, teacher: str, count: int, by: str) -> tuple[float, float]:
    """The same for requests to a TeacherPool, by ``map`` or ``infer``."""
    feeds = {"img": np.zeros((BATCH, *shape), np.float32)}
    with TeacherPool(["prob"], teacher) as pool:
        skip = count // 10
        requests = (feeds for _ in range(count + skip))
        answers = pool.map(requests) if by == "map" else map(pool.infer, requests)
        for number, _ in enumerate(answers):
            if number == skip - 1:
                started, cpu = time.perf_counter(), time.process_time()
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    return elapsed / count, cpu / count


def run_bare(shape: tuple, peer: Peer, count: int) -> tuple[float, float]:
    """The same for one bare round trip after the other."""
    image = np.zeros((BATCH, *shape), np.float32)
    answer = memoryview(bytearray(BATCH * LABELS[shape] * 4))
    with peer.connect() as conn:
        for _ in range(count // 10):
            bare_round_trip(conn, image, answer)
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            bare_round_trip(conn, image, answer)
        return (time.perf_counter() - started) / count, (time.process_time() - cpu) / count


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-original", action="store_true")
    options = parser.parse_args()
    original = not options.no_original and make_original_environment()

    table = Table(title=f"batches of {BATCH}, {sys.platform}, medians of {options.rounds} rounds")
    for name in ("shape", "what", "images/s", "MB/s", "beside bare", "CPU us/batch", "spread"):
        table.add_column(name, justify="left" if name in ("shape", "what") else "right")
    for shape in SHAPES:
        measure(table, shape, options.rounds, original)
    Console(width=110).print(table)


def measure(table: Table, shape: tuple, rounds: int, original: bool) -> None:
    """Add the lines of one shape."""
    count = SHAPES[shape]
    labels = np.random.default_rng(0).random((BATCH, LABELS[shape]), dtype=np.float32)
    peers = [Peer(labels) for _ in range(4)]
    stubs = [peer.endpoint for peer in peers]
    arguments = ["--python", PREDICTORS[shape]]
    with contextlib.ExitStack() as stack:
        by_socket = stack.enter_context(teachers(1, arguments, {"EDL_LOCAL": "1"}))
        by_tcp = stack.enter_context(teachers(1, arguments, {"EDL_LOCAL": "0"}))
        ends = {"1 stub": stubs[:1], "edl teacher, TCP": by_tcp, "edl teacher": by_socket}
        actions = {"bare socket round trip": functools.partial(run_bare, shape, peers[0], count)}
        for end, who in {**ends, "2 stubs": stubs[:2], "4 stubs": stubs}.items():
            actions[f"DistillReader, {end}"] = functools.partial(run_reader, shape, who, count)
        for by in ("map", "infer"):
            for end, (one,) in ends.items():
                actions[f"TeacherPool.{by}, {end}"] = functools.partial(
                    run_pool, shape, one, count, by
                )
        for number in (1, 4) if original else ():
            actions[f"paddle_edl 0.3.1, {number} teachers"] = functools.partial(
                run_original, shape, number, count // 4
            )
        results: dict[str, list] = {name: [] for name in actions}
        for _ in range(rounds):
            for name, action in actions.items():
                results[name].append(action())
    for peer in peers:
        peer.close()
    bare = statistics.median(seconds for seconds, _ in results["bare socket round trip"])
    for name, values in results.items():
        times = sorted(seconds for seconds, _ in values)
        median = statistics.median(times)
        table.add_row(
            "x".join(map(str, shape)),
            name,
            f"{BATCH / median:,.0f}",
            f"{BATCH * np.prod(shape) * 4 / median / 1e6:,.0f}",
            f"{bare / median:.2f}",
            f"{statistics.median(cpu for _, cpu in values) * 1e6:,.0f}",
            f"{(times[-1] - times[0]) / median:.0%}",
        )
    table.add_section()


if __name__ == "__main__":
    main()
