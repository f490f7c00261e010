"""The table of the original, on this machine: a student alone, with its teacher, with a service.

python benchmarks/paper.py [--rounds N] [--epochs N] [--plot FILE.png] [--work-dir DIRECTORY]

demos/resnet/train.py trains a student on the digits in each of the demo's three modes, from the
same seed and on the same batches; a round is one seed in all modes, one after the other, so that
what slows the machine down for a while slows all of them. The paper: EDL-Dist, arXiv 2207.06667.
The original's table, in the README of elasticdeeplearning/edl: 8 V100 alone 1,828 images/s, with
the teacher on the same cards 656, with 40 P4 as teachers 1,514.

Where teachers are SIMULATED REMOTE they are real ``edl teacher`` processes that receive the real
images and send the real teacher's labels, which were computed before, after the time that its
forward pass took in a student's process, divided by ``--speed-up``: what they would compute
elsewhere costs this machine nothing, so that the student has its CPU as it would have its GPU. REAL
ones compute here, one thread each, beside the student's one thread. With a LABEL STORE there is no
teacher at all: it was filled by an epoch before, as in epochs 2 and on of any run.

Images/s are those of the steps of an epoch after the first eight, while the first answers are on
their way: an epoch has 37 steps here, and 40,000 on ImageNet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from _teachers import ROOT, teachers
from rich.console import Console
from rich.table import Table

from edl.discovery.embedded import EmbeddedEtcd

DEMO = ROOT / "demos" / "resnet"
FILLING = 8  # steps at the beginning of an epoch that are not counted; half of it at most
CONSOLE = Console(width=None if sys.stdout.isatty() else 120)


@dataclass
class Row:
    """One line of the table: how the student is trained, and what came out in each round."""

    mode: str
    simulated: int = 0
    real: int = 0
    stored: bool = False
    speeds: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    top5: list[float] = field(default_factory=list)

    @property
    def teachers(self) -> str:
        """The teacher's resources."""
        if self.simulated:
            return f"{self.simulated} simulated remote"
        if self.real:
            return f"{self.real} real, this CPU"
        if self.stored:
            return "none: a label store"
        return "the student's" if self.mode == "online" else "none"


def main() -> None:
    """Measure and print the table."""
    options = parse()
    with contextlib.ExitStack() as stack:
        work = options.work_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        weights = options.teacher_weights or train_teacher(options, work)
        model = export(options, weights, work)
        seconds = record(options, weights, work)
        etcd = stack.enter_context(EmbeddedEtcd(work / "etcd"))
        lab = Lab(options, work, weights, model, etcd.endpoint)
        rows = [Row("pure")] + ([] if options.without_online else [Row("online")])
        rows += [Row("service", simulated=count) for count in options.teachers]
        rows += [Row("service", real=count) for count in options.real_teachers]
        rows += [] if options.without_store else [Row("service", stored=True)]
        for seed in range(options.rounds):
            for row in rows:
                lab.train(row, seed)
            CONSOLE.print(f"round {seed + 1} of {options.rounds} done", style="dim")
    show(options, rows, seconds)
    if options.plot:
        plot(options, rows, seconds)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--student", default="shufflenet_v2_x0_5")
    add("--teacher", default="resnet34")
    add("--teacher-weights", help="instead of training it: what paddle.save wrote")
    add("--teacher-epochs", type=int, default=6)
    add("--image-size", type=int, default=32)
    add("--batch-size", type=int, default=32)
    add("--train-images", type=int, default=0, help="for the student; 0: all 1,200")
    add("--epochs", type=int, default=4)
    add("--soft-weight", type=float, default=0.9, help="of the teacher in the loss")
    add("--rounds", type=int, default=3)
    add("--teachers", type=int, nargs="+", default=[1, 2, 4, 8], help="simulated remote")
    add("--real-teachers", type=int, nargs="*", default=[1], help="on this CPU")
    add("--speed-up", type=float, default=1.0, help="of a simulated teacher over this CPU")
    add("--without-online", action="store_true", help="leave out the mode that takes longest")
    add("--without-store", action="store_true", help="leave out the one with stored labels")
    add("--plot", help="an image to write (needs matplotlib)")
    add("--work-dir", type=Path, help="keep everything here")
    options = parser.parse_args()
    if options.work_dir and options.work_dir.exists() and any(options.work_dir.iterdir()):
        parser.error(f"--work-dir {options.work_dir} is not empty")
    return options


def train_teacher(options: argparse.Namespace, work: Path) -> str:
    """Its parameters' file."""
    CONSOLE.print(f"training the teacher, {options.teacher}", style="dim")
    python(DEMO / "train.py", "--student", options.teacher, "--epochs", options.teacher_epochs,
           "--image-size", options.image_size, "--output", work / "teacher")  # fmt: skip
    return str(work / "teacher" / "student.pdparams")


def export(options: argparse.Namespace, weights: str, work: Path) -> Path:
    """The teacher as ``edl teacher`` hosts it."""
    python(DEMO / "export.py", "--network", options.teacher, "--weights", weights, "--classes", 10,
           "--image-size", options.image_size, "--out", work / "model")  # fmt: skip
    return work / "model"


def record(options: argparse.Namespace, weights: str, work: Path) -> float:
    """Record the teacher's answers; seconds of a batch's forward pass."""
    import numpy as np

    path = work / "recorded.npz"
    python(ROOT / "benchmarks" / "_recorded.py", options.teacher, weights, options.image_size,
           options.batch_size, path)  # fmt: skip
    return float(np.load(path)["seconds_per_row"]) * options.batch_size


@dataclass
class Lab:
    """Runs the demo."""

    options: argparse.Namespace
    work: Path
    weights: str
    model: Path
    etcd: str

    def train(self, row: Row, seed: int) -> None:
        """One training run in a process of its own; its results go into the row."""
        options = self.options
        output = self.work / f"{row.mode}-{row.simulated}-{row.real}-{row.stored:d}-{seed}"
        arguments = ["--seed", seed, "--epochs", options.epochs]
        if row.mode == "online":
            arguments += ["--teacher", options.teacher, "--teacher-weights", self.weights]
        if row.stored:
            arguments += ["--store", self.store()]
        self.run(row, output, *arguments)
        row.speeds.append(speed(output / "losses-0.jsonl", options.batch_size))
        last = json.loads((output / "epochs.jsonl").read_text().splitlines()[-1])
        row.top1.append(last["top1"])
        row.top5.append(last["top5"])

    def run(self, row: Row, output: Path, *arguments: object) -> None:
        """The demo's program, with the teachers of a row."""
        options, number = self.options, row.simulated or row.real
        common = ["--mode", row.mode, "--student", options.student, "--output", output]
        common += ["--image-size", options.image_size, "--batch-size", options.batch_size]
        common += ["--train-images", options.train_images]
        common += ["--soft-weight", options.soft_weight]
        with contextlib.ExitStack() as stack:
            if number:
                host, environment = self.simulated() if row.simulated else self.real()
                host += ["--etcd", self.etcd, "--service", output.name]
                stack.enter_context(teachers(number, host, environment))
                common += ["--teachers", f"etcd://{self.etcd}/{output.name}"]
            python(DEMO / "train.py", *common, *arguments)

    def store(self) -> Path:
        """A label store that has all labels; filled by an epoch, if it was not."""
        store = self.work / "labels"
        if not store.exists():
            row = Row("service", simulated=1)
            images = self.options.train_images or 1200
            whole = math.gcd(images, self.options.batch_size)  # an epoch leaves out no image then
            fill = ("--epochs", 1, "--batch-size", whole, "--store", store)
            self.run(row, self.work / "filling", *fill)
        return store

    def simulated(self) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment of a simulated teacher."""
        recorded = {"EDL_RECORDED": str(self.work / "recorded.npz")}
        recorded["EDL_RECORDED_SPEED_UP"] = str(self.options.speed_up)
        return ["--python", "_recorded:Recorded"], recorded

    def real(self) -> tuple[list[str], dict[str, str]]:
        """The same of a real one."""
        return ["--model", str(self.model), "--cpu-threads", "1"], {}


def python(*arguments: object) -> None:
    """Run a program of the demo; show what it wrote if it fails."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOG_minloglevel": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{arguments[0]} failed:\n{result.stdout[-3000:]}")


def speed(path: Path, batch_size: int) -> float:
    """Images/s over the steps of all epochs but each one's first."""
    at: dict[int, list[float]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        at.setdefault(line["epoch"], []).append(line["at"])
    spans = [times[min(FILLING, len(times) // 2) :] for times in at.values()]
    steps = sum(len(times) - 1 for times in spans)
    return steps * batch_size / sum(times[-1] - times[0] for times in spans)


def show(options: argparse.Namespace, rows: list[Row], seconds: float) -> None:
    """The table, and what it takes to read it."""
    table = Table(
        title=f"{options.student} distilled from {options.teacher}: digits at "
        f"{options.image_size}x{options.image_size}, {options.epochs} epochs, "
        f"{options.rounds} seeds"
    )
    columns = ("mode", "teachers", "student", "batch", "top-1", "top-5",
               "images/s", "spread", "of pure", "of online")  # fmt: skip
    for column in columns:
        justify = "right" if columns.index(column) > 2 else "left"
        table.add_column(column, justify=justify, no_wrap=True)
    alone = rows[0].speeds
    online = next((row.speeds for row in rows if row.mode == "online"), None)
    for row in rows:
        median = statistics.median(row.speeds)
        table.add_row(
            row.mode, row.teachers, "1 thread", str(options.batch_size),
            mean_and_deviation(row.top1), mean_and_deviation(row.top5), f"{median:.1f}",
            f"{(max(row.speeds) - min(row.speeds)) / median:.0%}",
            f"{ratio(row.speeds, alone):.3f}", f"{ratio(row.speeds, online):.2f}" if online else "",
        )  # fmt: skip
    CONSOLE.print(table)
    CONSOLE.print(
        f"A forward pass of the teacher took {seconds:.3f} s for a batch in a student's process; "
        f"simulated remote teachers take that divided by {options.speed_up:g}, and cost this "
        f"machine only the transfer. A student's step takes "
        f"{options.batch_size / statistics.median(alone):.3f} s. Ratios are medians over the seeds."
    )


def mean_and_deviation(values: list[float]) -> str:
    """As text, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def ratio(values: list[float], base: list[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(values, base))


def plot(options: argparse.Namespace, rows: list[Row], seconds: float) -> None:
    """Throughput against the number of simulated teachers."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    service = [row for row in rows if row.simulated]
    counts = [row.simulated for row in service]
    medians = [statistics.median(row.speeds) for row in service]
    low = [median - min(row.speeds) for median, row in zip(medians, service)]
    high = [max(row.speeds) - median for median, row in zip(medians, service)]
    alone = statistics.median(rows[0].speeds)
    one = options.batch_size * options.speed_up / seconds

    figure, axis = plt.subplots(figsize=(6, 3.6))
    axis.errorbar(counts, medians, (low, high), fmt="o-", capsize=3, label="service")
    axis.axhline(alone, color="green", linestyle="--", label="pure")
    for row in rows:
        if row.mode == "online":
            online = statistics.median(row.speeds)
            axis.axhline(online, color="gray", linestyle=":", label=row.mode)
    ideal = [0, alone / one, max(counts)]
    axis.plot(ideal, [0, alone, alone], color="lightgray", zorder=0, label="ideal")
    axis.set_xlabel("teachers (simulated remote)")
    axis.set_ylabel("images/s")
    axis.set_xlim(0)
    axis.set_ylim(0)
    axis.legend(fontsize=8)
    axis.set_title(f"{options.student} distilled from {options.teacher}", fontsize=10)
    figure.tight_layout()
    figure.savefig(options.plot, dpi=150)


if __name__ == "__main__":
    main()
