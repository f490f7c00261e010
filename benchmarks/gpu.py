"""A teacher on a GPU beside the bare loop around its model, in whichever framework is there.

python benchmarks/gpu.py [--framework paddle|torch] [--layers 18|50] [--batch N] [--students N]

A ResNet with random weights as ``edl teacher --python``, with 1 and with N students (DistillReader,
processes of their own), in turn with a loop over the same batches in one process, which copies them
to the device and the answers back, as the teacher must. Every answer is compared with what the loop
has said before. Medians over the rounds; the ratio is the median of each round's own. The table
says which card. ``--device cpu`` shows on any machine that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _networks import FRAMEWORKS
from _peers.aims import rates, spread
from _peers.lines import LOOP, students
from _peers.students import recorded, sample, started, together, turns_of
from _teachers import ROOT, teachers
from rich.console import Console
from rich.table import Table


def find(frameworks: list[str], device: str) -> tuple[str, str]:
    """The first framework that can use such a device, and the device's name. Raises SystemExit."""
    reasons = []
    for framework in frameworks:
        asked = subprocess.run(
            [sys.executable, "-W", "ignore", "_networks.py", framework, device],
            capture_output=True,
            text=True,
            cwd=ROOT / "benchmarks",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        if asked.returncode == 0:
            return framework, asked.stdout.splitlines()[-1]
        reasons.append((asked.stderr.splitlines() or ["it ended"])[-1])
    raise SystemExit(
        f"no {device.upper()} that can be used here ({'; '.join(reasons)}): run this on a machine "
        "that has one, in a Python that has Paddle or PyTorch for it; --device cpu shows that it "
        "runs"
    )


def measure(python: str, options: argparse.Namespace) -> dict[str, list[Any]]:
    """The samples of each line."""
    work: dict[str, Any] = {"name": "ResNet-18", "batch_rows": options.batch}
    count = options.batches
    with ExitStack() as stack:
        loop = recorded(stack, work, {"python": python}, 4)
        limit = ["--max-batch-rows", str(options.batch)]
        (endpoint,) = stack.enter_context(teachers(1, ["--python", python, *limit]))
        given = {"endpoints": [endpoint], "way": ""}
        crowd = started(stack, *[("reader", work, given)] * options.students)
        each = -(-count // options.students)
        return turns_of(
            {
                LOOP: lambda: sample(loop.ask("batches", count)),
                students(1): lambda: together(crowd[:1], count),
                students(len(crowd)): lambda: together(crowd, each),
            },
            options.rounds,
        )


def as_dict(samples: dict[str, list[Any]], rows: int) -> dict[str, dict[str, float]]:
    """By line: images a second, CPU seconds of a student for a batch, spread, ratio to the loop."""
    return {
        name: {
            "images_per_second": rows * statistics.median(turn.rate for turn in turns),
            "cpu": statistics.median(turn.cpu for turn in turns),
            "spread": spread([turn.rate for turn in turns]),
            "of_the_loop": statistics.median(map(rates, turns, samples[LOOP])),
        }
        for name, turns in samples.items()
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="default: the first that is there")
    parser.add_argument("--layers", type=int, choices=[18, 50], default=50)
    parser.add_argument("--batch", type=int, default=32, help="rows")
    parser.add_argument("--batches", type=int, default=200, help="of a turn, all students together")
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    wanted = [options.framework] if options.framework else list(FRAMEWORKS)
    framework, name = find(wanted, options.device)
    found = as_dict(
        measure(f"_networks:{framework}_{options.device}_{options.layers}", options), options.batch
    )
    if options.json:
        said = {"device": name, "framework": framework, "layers": options.layers, "lines": found}
        said |= {"batch": options.batch, "rounds": options.rounds}
        options.json.write_text(json.dumps(said, indent=1))
    table = Table(
        "", title=f"ResNet-{options.layers}, {framework}, batches of {options.batch}, {name}"
    )
    for column in ("images/s", "of the loop", "student's CPU a batch", "spread"):
        table.add_column(column, justify="right")
    for line, values in found.items():
        table.add_row(
            line,
            f"{values['images_per_second']:,.0f}",
            f"{values['of_the_loop']:.3f}",
            f"{values['cpu'] * 1e3:.1f} ms",
            f"{values['spread']:.0%}",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    main()
