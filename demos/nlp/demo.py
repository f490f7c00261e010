"""Distil small students of Chinese reviews from a service of teachers, and compare.

Trains a teacher on all labels, and controls on no more labels than the students have; starts an
etcd, two teachers and the controls' teacher; trains students alone, distilled, and distilled from
the controls, at several shares of labelled reviews and over seeds, two at a time; prints a table.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edl.discovery.embedded import EmbeddedEtcd

HERE = Path(__file__).parent
WAYS = ("alone", "distilled", "control")


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--students", nargs="+", choices=("bow", "cnn"), default=["bow", "cnn"])
    add("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.2], help="of labelled reviews")
    add("--seeds", type=int, default=3, help="students of each kind")
    add("--epochs", type=int, default=2, help="of the students, over all reviews")
    add("--reviews", type=int, default=0, help="use only so many; 0: all")
    add("--quick", action="store_true", help="1,500 reviews, one share and one seed")
    add("--ernie", help="a checkpoint of PaddleNLP, which is to be the teacher")
    add("--work", type=Path, help="keep models, logs and results here")
    args = parser.parse_args()
    if args.quick:
        args.reviews, args.shares, args.seeds = 1500, [0.1], 1
    return args


def main():
    """From nothing to the table; nothing is left running."""
    args = parse()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        with EmbeddedEtcd() as etcd, Processes(work) as processes:
            demonstrate(args, work, etcd.endpoint, processes)
    print(f"Took {time.monotonic() - started:.0f} s; no process is left running.")


def demonstrate(args, work, etcd, processes):
    """The steps."""
    ernie = ("--ernie", args.ernie) if args.ernie else ()
    few = ("--reviews", args.reviews)

    say("1. Train the teacher on all labels, and controls on as few as the students have")
    controls = ("--shares", *(share for share in args.shares if share < 1), "--seeds", args.seeds)
    processes.run(("teacher.py", "--out", work, *controls, *ernie, *few))
    if args.ernie:
        tuned = ("--checkpoint", args.ernie, "--out", work / "teacher")
        processes.run(("ernie.py", *tuned, *few))

    say(f"2. Two teachers, and one that is all the controls, register in the etcd at {etcd}")
    for name in ("teacher", "teacher", "controls"):
        where = ("--etcd", etcd, "--service", f"sentiment_{name}")
        processes.start_teacher("--model", work / name, *where)

    say("3. Train the students")
    results = work / "results.jsonl"
    results.unlink(missing_ok=True)
    shares = ("--shares", *args.shares, *({1.0} - set(args.shares)))
    where = ("--etcd", etcd, "--control_service", "sentiment_controls")
    common = (*shares, *where, *ernie, *few, "--epochs", args.epochs, "--output", results)
    students = [
        ("train.py", "--student", student, "--seed", seed, *common)
        for student in reversed(args.students)
        for seed in range(args.seeds)
    ]
    processes.run(*students, at_once=2)
    print_table(args, [json.loads(line) for line in results.read_text().splitlines()])


def say(text):
    """A heading."""
    print(f"\n{text}", flush=True)


# --- processes --------------------------------------------------------------------------------


class Processes:
    """Programs of this demo and teachers; those that are left at the end are ended, also when it is
    told to stop. What they log is in files in ``work``.
    """

    def __init__(self, work):
        self.work, self.started, self.signum = work, [], 0
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self.stop)

    def stop(self, signum, _):
        """Once a process that is about to be started is among those that will be ended."""
        self.signum = signum

    def run(self, *commands, at_once=1):
        """Run programs of this demo with their arguments to the end, so many at a time."""
        running = []
        for program, *arguments in commands:
            running = self.wait(at_once - 1, running)
            running.append(self.start(HERE / program, *arguments))
        self.wait(0, running)

    def start_teacher(self, *arguments):
        """One ``edl teacher``."""
        command = ("-m", "edl.cli.main", "teacher", *arguments, "--cpu-threads", 1, "--ttl", 5)
        self.start(*command, stdout=subprocess.DEVNULL)

    def start(self, *arguments, **options):
        """Start Python with a core for itself."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOG_minloglevel": "2"}
        command = [sys.executable, "-W", "ignore", *map(str, arguments)]
        with (self.work / f"{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(  # a Ctrl-C is for this process alone
                command, env=environment, stderr=log, start_new_session=True, **options
            )
        self.started.append(process)
        return process

    def wait(self, at_most, running):
        """Wait until at most so many are left; those that are. The first one that fails ends the
        demo, and so does a teacher.
        """
        while True:
            if self.signum:
                raise SystemExit(128 + self.signum)
            for number, process in enumerate(self.started):
                if process.poll():
                    words = (self.work / f"{number}.log").read_text(errors="replace")[-2000:]
                    raise SystemExit(f"{words}\n{' '.join(process.args[3:])} has failed")
            running = [process for process in running if process.returncode is None]
            if len(running) <= at_most:
                return running
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- output -----------------------------------------------------------------------------------


def print_table(args, results):
    """Accuracies, and what the teacher adds to them, seed by seed."""
    table = Table(title="Accuracy on test reviews: mean and standard deviation over the seeds")
    for name in ("student", "labelled", *WAYS, "gain", "over control"):
        table.add_column(name, justify="left" if name == "student" else "right")
    scores = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        key = result["student"], result["share"], result["way"]
        scores.setdefault(key, []).append(result["accuracy"])
    for student in args.students:
        for share in sorted({share for _, share, _ in scores}):
            alone, distilled, control = (scores.get((student, share, way), []) for way in WAYS)
            cells = [spread(values) for values in (alone, distilled, control)]
            cells += [spread(differences(distilled, other)) for other in (alone, control)]
            table.add_row(student, f"{share * 100:g} %", *cells)
    Console(width=110).print(table)


def differences(values, others):
    """Seed by seed."""
    return [value - other for value, other in zip(values, others)]


def spread(values):
    """Mean and standard deviation, if there are any."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
