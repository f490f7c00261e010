"""Distil small language models from one that is served, and compare.

Trains a tokenizer and a teacher, unless they are there already; starts an etcd and two teachers;
trains students alone and distilled from labels of several forms, over seeds, while one teacher is
killed and another one takes its place; prints a table.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edl.discovery.embedded import EmbeddedEtcd

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from processes import Processes  # noqa: E402

SERVICE = "qwen3"


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--teacher", type=Path, help="a checkpoint of PaddleFormers instead of the demo's own")
    add("--ways", nargs="+", default=["alone", "full", "48+16", "8+8"], help="see train.py")
    add("--seeds", type=int, default=3, help="students of each kind")
    add("--steps", type=int, default=512, help="of each student")
    add("--teacher_steps", type=int, default=2048)
    add("--reviews", type=int, default=0, help="use only so many; 0: all")
    add("--on_policy", action="store_true", help="let a student go on with its own texts")
    add("--quick", action="store_true", help="few reviews and steps, two ways and one seed")
    add("--work", type=Path, default=HERE / "work", help="for models, logs and results")
    args = parser.parse_args()
    if args.quick:
        args.reviews, args.teacher_steps, args.steps = 2000, 400, 100
        args.ways, args.seeds = ["alone", "8+8"], 1
    return args


def main():
    """From nothing to the table; nothing is left running."""
    args = parse()
    if importlib.util.find_spec("paddleformers") is None:
        raise SystemExit(
            "the models need PaddleFormers: pip install 'paddle-edl[llm]', or scripts/demo lm"
        )
    started = time.monotonic()
    args.work.mkdir(parents=True, exist_ok=True)
    with EmbeddedEtcd() as etcd, Processes(HERE, args.work) as processes:
        Demo(args, etcd.endpoint, processes).run()
    print(f"Took {time.monotonic() - started:.0f} s; no process is left running.")


class Demo:
    """The steps."""

    def __init__(self, args, etcd, processes):
        self.args, self.etcd, self.processes = args, etcd, processes
        self.results, self.losses = (args.work / f"{name}.jsonl" for name in ("results", "losses"))
        for file in (self.results, self.losses):
            file.unlink(missing_ok=True)
        own = f"teacher-{args.reviews or 'all'}-{args.teacher_steps}"
        self.checkpoint = args.teacher or args.work / own
        self.distilled = [way for way in args.ways if way != "alone"]
        self.where = ("--etcd", etcd, "--service", SERVICE)
        self.common = (
            *("--teacher", self.checkpoint, "--reviews", args.reviews, "--steps", args.steps),
            *("--results", self.results, "--losses", self.losses, *self.where),
        )

    def run(self):
        """All of them."""
        say("1. Train the teacher, and students without one")
        self.train_without_teacher()
        if self.distilled:
            say(f"2. Two teachers register in the etcd at {self.etcd}; train students with them")
            self.distil()
            say("3. Let the teachers label text, as fast as they can")
            few = ("--steps", max(self.args.steps // 4, 2))
            self.processes.run(("speed.py", *self.common, *few, "--ways", *self.distilled))
        self.print_table()
        if self.args.on_policy:
            say("4. Let a student write, and learn what the teacher would have written")
            self.go_on()

    def train_without_teacher(self):
        """These students do not wait for the teacher: its tokenizer is enough."""
        running = []
        if self.args.teacher is None:
            size = ("--reviews", self.args.reviews, "--steps", self.args.teacher_steps)
            running.append(
                self.processes.start_program("teacher.py", "--out", self.checkpoint, *size)
            )
            tokenizer = self.checkpoint / "tokenizer.json"
            self.processes.wait(0, running, until=tokenizer.exists)
        if "alone" in self.args.ways:
            self.processes.run(*self.students("alone"), at_once=2, running=running)
        self.processes.wait(0, running)

    def distil(self):
        """In the midst of it one teacher is killed, and another one takes its place."""
        first, _ = self.start_teacher(), self.start_teacher()
        self.processes.once(self.in_the_midst, lambda: self.replace(first))
        self.processes.run(*self.students(*self.distilled), at_once=2)

    def go_on(self):
        """On-policy distillation of one more student."""
        student = self.args.work / "student"
        shared = ("--teacher", self.checkpoint, "--reviews", self.args.reviews, *self.where)
        few = ("--steps", self.args.steps)
        self.processes.run(("train.py", *shared, *few, "--ways", "8+8", "--save", student))
        few = ("--steps", self.args.steps // 8)
        self.processes.run(("on_policy.py", *shared, *few, "--student", student))

    def students(self, *ways):
        """The commands that train one of each way, seed by seed."""
        common = ("train.py", *self.common, "--ways", *ways)
        return [(*common, "--seed", seed) for seed in range(self.args.seeds)]

    def start_teacher(self):
        """One that registers."""
        return self.processes.start_teacher("--causal-lm", self.checkpoint, *self.where)

    def in_the_midst(self):
        """Whether a student has had half of its steps with a teacher."""
        half = [loss for loss in read(self.losses) if loss["way"] != "alone" and loss["seed"] == 0]
        return len(half) >= self.args.steps // 2

    def replace(self, teacher):
        """Kill it, and start another one."""
        self.processes.kill(teacher)
        new = self.start_teacher()
        print(f"killed a teacher (kill -9 {teacher.pid}), started another ({new.pid})", flush=True)

    def print_table(self):
        """Perplexities, and what the labels cost."""
        table = Table(
            title="Perplexity on test reviews: mean and standard deviation over the seeds"
        )
        for name in ("labels", "perplexity", "bytes per token", "labelled tokens per second"):
            table.add_column(name, justify="left" if name == "labels" else "right")
        results = read(self.results)
        for way in self.args.ways:
            of_way = [result for result in results if result["way"] == way]
            found = [result["perplexity"] for result in of_way if "perplexity" in result]
            labels = [result for result in of_way if "bytes_per_token" in result]
            cost = [
                f"{result[name]:,.0f}"
                for result in labels
                for name in ("bytes_per_token", "tokens_per_second")
            ]
            table.add_row(way, spread(found), *cost)
        Console(width=100).print(table)


def say(text):
    """A heading."""
    print(f"\n{text}", flush=True)


def read(file):
    """The lines of a file of JSON lines; the last may be in the midst of being written."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def spread(values):
    """Mean and standard deviation."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
