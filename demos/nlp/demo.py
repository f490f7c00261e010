"""Distil small students of Chinese reviews from a service of teachers, and compare.

Trains a teacher on all labels, and controls on no more labels than the students have; starts an
etcd, two teachers and the controls' teacher; trains students alone, distilled, and distilled from
the controls, at several shares of labelled reviews and over seeds, two at a time; prints a table.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edl.discovery.embedded import EmbeddedEtcd

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from processes import Processes  # noqa: E402

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
        with EmbeddedEtcd() as etcd, Processes(HERE, work) as processes:
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
