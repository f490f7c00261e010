"""EDL beside what people would use instead: Ray, gRPC, ZeroMQ, Paddle Serving, sockets.

python benchmarks/peers.py [GROUP ...] [--rounds N] [--seconds S] [--no-peers] [--quick]

One table, one run, everything in turn in every round. A line is a whole pipeline in a process of
its own: batches in, the answers of a model that does nothing out, in order, every one checked
(first that all bytes of a batch have arrived, and all of an answer; then that each answer is its
batch's). All have the same model and the same batches, and are given the window that suits them: a
bare round trip one, Ray, gRPC and ZeroMQ four batches in flight. Groups:

- 3x224x224, 1x28x28: 32 rows of float32, soft labels back. 8x2048: int64 ids, answers of the size
  of top-64 labels.
- row: one small row after the other, and 32 in flight.
- sentences: requests of one row with 16 to 512 ids, from 8 students at once, beside a loop over
  batches of the same rows in one process; a model of convolutions.
- ResNet-18: batches of 8 through ``edl teacher`` with one and 8 students, beside a loop.

"Each" is a batch, or a request; CPU is that of the student's process. Figures are medians over the
rounds; spread is (max - min) / median. The run ends with the aims, as medians of each round's own
ratios.

Peers are installed on first use, into an environment of their own (.venv-peers); what cannot be
installed is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _children import NotReady
from _original import make_original_environment, run_original
from _peers.aims import Outcome, Results, Sample, aims, judge, spread
from _peers.environments import with_package, with_paddle_serving
from _peers.lines import GROUPS, HOSTED, LOOP, ORIGINAL, UNITS, lines, students
from _peers.students import Turn, recorded, sample, started, together, turns_of
from _peers.work import LONGEST, NOTHING, filled_up, sentences
from _teachers import ROOT, teachers
from rich.console import Console
from rich.table import Table


@dataclass
class Options:
    """How long and how much. ``model_batches``: of the real models, for all students together."""

    groups: Sequence[str]
    rounds: int
    seconds: float
    peers: bool
    crowd: int
    requests: int
    model_batches: int


# --- models that do nothing ----------------------------------------------------------------------


@contextmanager
def nothing(group: str, options: Options, left_out: list[str]) -> Iterator[dict[str, Turn]]:
    """The turns of a group with a model that does nothing."""
    predictor, rows = HOSTED[group]
    arguments = ["--python", f"_peers.models:{predictor}", "--max-batch-rows", str(rows)]
    turns: dict[str, Turn] = {}
    with teachers(2, arguments) as endpoints, ExitStack() as stack:
        for line in lines(group, endpoints, options.peers):
            try:
                python = environment(line.package)
                spec = (line.pipeline, {"name": group}, line.options, python)
                (child,) = started(stack, spec)
            except NotReady as reason:
                left_out.append(f"{group}, {line.name}: {reason}")
                continue
            turns[line.name] = lambda child=child: sample(child.ask("for", options.seconds))
        if options.peers and group in ("3x224x224", "1x28x28"):
            turns |= original(group, options, left_out)
        yield turns


def environment(package: str) -> str:
    """The Python that has the package; ours, if none is needed. Raises NotReady."""
    if not package:
        return sys.executable
    python = with_paddle_serving() if package == "serving" else with_package(package)
    if python is None:
        raise NotReady(f"{package} could not be installed")
    return python


def original(group: str, options: Options, left_out: list[str]) -> dict[str, Turn]:
    """The original's turn. Its predictor transfers nothing: all this costs is its pipeline."""
    work = NOTHING[group]
    if not make_original_environment():
        left_out.append(f"{group}, {ORIGINAL}: paddle_edl could not be installed")
        return {}
    count = max(4, round(options.seconds * (15 if work.feed_bytes > 1e6 else 1500)))

    def turn() -> Sample:
        seconds, cpu = run_original(work.shape[1:], 1, count)
        return Sample(1 / seconds, cpu)

    try:
        run_original(work.shape[1:], 1, 1)
    except (OSError, ValueError) as error:
        left_out.append(f"{group}, {ORIGINAL}: {error}")
        return {}
    return {ORIGINAL: turn}


# --- real models ---------------------------------------------------------------------------------


@contextmanager
def exported(name: str) -> Iterator[str]:
    """A directory with the model."""
    with tempfile.TemporaryDirectory(prefix="edl-benchmark-") as directory:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "_peers.models", name, directory],
            check=True,
            capture_output=True,
            cwd=ROOT / "benchmarks",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        yield directory


@contextmanager
def resnet(options: Options) -> Iterator[dict[str, Turn]]:
    """The turns with a ResNet-18: the loop, one student, several."""
    work: dict[str, Any] = {"name": "ResNet-18", "batch_rows": UNITS["ResNet-18"][1]}
    with exported("resnet18") as model, ExitStack() as stack:
        loop = recorded(stack, work, {"model": model}, 4)
        (endpoint,) = stack.enter_context(teachers(1, ["--model", model]))
        given = {"endpoints": [endpoint], "way": ""}
        crowd = started(stack, *[("reader", work, given)] * options.crowd)
        count = options.model_batches
        yield {
            LOOP: lambda: sample(loop.ask("batches", count)),
            students(1): lambda: together(crowd[:1], count),
            students(len(crowd)): lambda: together(crowd, -(-count // len(crowd))),
        }


@contextmanager
def ragged(options: Options) -> Iterator[dict[str, Turn]]:
    """The turns with rows of different length: the loop over batches, and a crowd's requests."""
    rows, count = 32, options.requests
    work: dict[str, Any] = {"name": "sentences", "count": count}
    batches = len(filled_up(sentences(count), rows))
    limits = ["--max-batch-rows", str(rows), "--max-batch-tokens", str(rows * LONGEST)]
    with exported("sentences") as model, ExitStack() as stack:
        given = {"model": model, "pads": {"ids": 0}}
        loop = recorded(stack, {**work, "batch_rows": rows}, given, batches)
        arguments = ["--model", model, "--pad", "ids=0", *limits]
        (endpoint,) = stack.enter_context(teachers(1, arguments))
        asking = {"endpoint": endpoint, "window": 16, "way": ""}
        parts = [
            {**work, "batch_rows": 1, "part": (number, options.crowd)}
            for number in range(options.crowd)
        ]
        crowd = started(stack, *[("pool", part, asking) for part in parts])
        each = count // options.crowd

        def looped() -> Sample:
            """In requests, not in batches."""
            rate, cpu = sample(loop.ask("batches", batches))
            return Sample(rate * count / batches, cpu * batches / count)

        yield {LOOP: looped, students(len(crowd)): lambda: together(crowd, each)}


# --- the run -------------------------------------------------------------------------------------


def measure(group: str, options: Options, left_out: list[str]) -> dict[str, list[Sample]]:
    """By line, the samples of all rounds."""
    if group in HOSTED:
        lines_of = nothing(group, options, left_out)
    else:
        lines_of = ragged(options) if group == "sentences" else resnet(options)
    with lines_of as turns:
        return turns_of(turns, options.rounds)


def result_table(group: str, samples: dict[str, list[Sample]]) -> Table:
    table = Table(group)
    for name in ("a second", "time of each", "CPU of each", "spread"):
        table.add_column(name, justify="right")
    unit, rows = UNITS[group]
    for name, turns in samples.items():
        rate = statistics.median(each.rate for each in turns)
        cpu = statistics.median(each.cpu for each in turns)
        width = spread([each.rate for each in turns])
        each_takes = (in_words(1 / rate), in_words(cpu))
        table.add_row(name, f"{rate * rows:,.0f} {unit}", *each_takes, f"{width:.0%}")
    return table


def aim_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("group", "what", "ratio to, or limit of", title="aims")
    for name in ("aim", "measured", "spread"):
        table.add_column(name, justify="right")
    table.add_column("")
    for aim, value, width, met in outcomes:
        limit = f"{'<=' if aim.at_most else '>='} {aim.limit:g}"
        said = {True: "[green]met", False: "[red]not met", None: "not measured"}[met]
        value_said = "" if value is None else f"{value:.3g}"
        spread_said = "" if value is None else f"{width:.0%}"
        table.add_row(aim.group, aim.line, aim.what, limit, value_said, spread_said, said)
    return table


def in_words(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.0f} us"


def as_json(
    results: Results, outcomes: Sequence[Outcome], left_out: list[str], rounds: int
) -> dict[str, Any]:
    """Everything; rates are batches or requests a second, CPU is in seconds."""
    return {
        "machine": {"cores": os.cpu_count(), "platform": platform.platform()},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rounds": rounds,
        "results": {
            group: {
                name: {"rate": [each.rate for each in turns], "cpu": [each.cpu for each in turns]}
                for name, turns in samples.items()
            }
            for group, samples in results.items()
        },
        "aims": [
            {"group": aim.group, "line": aim.line, "what": aim.what, "limit": aim.limit,
             "at_most": aim.at_most, "value": value, "spread": width, "met": met}
            for aim, value, width, met in outcomes
        ],
        "left_out": left_out,
    }  # fmt: skip


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="that a turn takes")
    parser.add_argument("--no-peers", action="store_true", help="only what needs no installation")
    parser.add_argument("--json", type=Path, help="write every round's figures there, too")
    parser.add_argument("--quick", action="store_true", help="whether it runs; figures mean little")
    arguments = parser.parse_args()
    unknown = set(arguments.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    quick = arguments.quick
    options = Options(
        groups=arguments.groups or GROUPS,
        rounds=1 if quick else arguments.rounds,
        seconds=0.1 if quick else arguments.seconds,
        peers=not (quick or arguments.no_peers),
        crowd=2 if quick else 8,
        requests=64 if quick else 4096,
        model_batches=4 if quick else max(8, round(40 * arguments.seconds)),
    )
    console = Console(width=None if sys.stdout.isatty() else 130)
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    console.print(f"{cores}, medians of {options.rounds} rounds; the order is turned in each")
    results: dict[str, dict[str, list[Sample]]] = {}
    left_out: list[str] = []
    for group in options.groups:
        results[group] = measure(group, options, left_out)
        console.print(result_table(group, results[group]))
    outcomes = [judge(aim, results) for aim in aims(options.crowd) if aim.group in results]
    console.print(aim_table(outcomes))
    for line in left_out:
        console.print(f"left out: {line}", markup=False)
    if arguments.json:
        said = as_json(results, outcomes, left_out, options.rounds)
        arguments.json.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
