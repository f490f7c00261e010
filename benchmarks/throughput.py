"""Training throughput against the number and mix of teachers, with and without scheduling.

python benchmarks/throughput.py [--plot FILE.png]

The paper's question (EDL-Dist, arXiv 2207.06667), answered by simulation: how many teachers does a
student need, and what is lost when they differ in speed? The times of a training step and of a
teacher's inference are measured here first (ResNet-18 student, ResNet-50 teacher, 16x3x64x64), and
the student is then taken to have an accelerator that is ``--speedup`` times as fast as this
machine, as in the paper, where a V100 trains and P4s infer (there a student's card needs six).
The reader's own decisions (``Dispatch``) then run on simulated time, for thousands of batches:

- *scheduled*: what DistillReader does; teachers pull work, slow ones get less, a task that holds up
  the student goes to a second teacher;
- *static*: batch i goes to teacher i modulo n, two in flight at each, as without scheduling.

Teachers are equal, or mixed: every second one takes three times as long; and in a third run one of
them stops for the middle third of the time. 1.0 is the student without any teacher.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import statistics
import time
from collections import deque
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from edl.distill.dispatch import Dispatch

BATCHES = 3000
ROWS = 16
TEACHERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
SLOW = 3.0


def measure() -> tuple[float, float]:
    """Seconds of a student's training step and of a teacher's inference, on this machine."""
    from edl._paddle import import_paddle

    paddle = import_paddle("the benchmark")
    student, teacher = paddle.vision.models.resnet18(), paddle.vision.models.resnet50()
    teacher.eval()
    optimizer = paddle.optimizer.Momentum(parameters=student.parameters())
    image = paddle.rand([ROWS, 3, 64, 64])

    def step() -> None:
        loss = student(image).mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()

    def infer() -> None:
        with paddle.no_grad():
            teacher(image).numpy()

    times = []
    for action in (step, infer):
        action()
        each = []
        for _ in range(5):
            started = time.perf_counter()
            action()
            each.append(time.perf_counter() - started)
        times.append(statistics.median(each))
    return times[0], times[1]


@dataclass
class Teacher:
    """A simulated teacher: first come, first served. ``pause``: it does nothing then."""

    name: str
    seconds: float
    pause: tuple[float, float] = (0.0, 0.0)
    free_at: float = 0.0

    def finish(self, now: float) -> float:
        """When a task that is sent now is done."""
        start = max(now, self.free_at)
        if self.pause[0] <= start < self.pause[1]:
            start = self.pause[1]
        self.free_at = start + self.seconds
        return self.free_at


def scheduled(teachers: list[Teacher], step: float) -> float:
    """Seconds that the student takes for all batches, with the reader's own decisions."""
    dispatch: Dispatch[int] = Dispatch()
    by_name = {teacher.name: teacher for teacher in teachers}
    for name in by_name:
        dispatch.join(name, 0.0)
    events: list[tuple[float, int, str, int]] = []
    numbers = itertools.count()
    now, busy_until, added, taken = 0.0, 0.0, 0, 0
    while taken < BATCHES:
        while added < BATCHES and dispatch.wants_input():
            dispatch.add(added, ROWS, 1, ROWS)
            added += 1
        progress = True
        while progress:
            progress = False
            for name in dispatch.preferred(by_name, now):
                task = dispatch.next_task(name, now)
                if task is not None:
                    done = by_name[name].finish(now)
                    heapq.heappush(events, (done, next(numbers), name, task.id))
                    progress = True
        if busy_until <= now and dispatch.ready:
            dispatch.take()
            taken += 1
            busy_until = now + step
            continue
        waiting_for = [events[0][0]] if events else []
        if busy_until > now:
            waiting_for.append(busy_until)
        hedge = dispatch.next_hedge()
        if now < hedge < float("inf"):
            waiting_for.append(hedge)
        now = min(waiting_for)
        while events and events[0][0] <= now:
            _, _, name, task_id = heapq.heappop(events)
            dispatch.answered(name, task_id, None, 1, now)
    return now


def static(teachers: list[Teacher], step: float) -> float:
    """The same with batch i at teacher i modulo n, and two in flight at each."""
    window = 2 * len(teachers)
    finished: deque[float] = deque()
    sent, now = 0, 0.0
    for _ in range(BATCHES):
        while sent < BATCHES and len(finished) < window:
            finished.append(teachers[sent % len(teachers)].finish(now))
            sent += 1
        now = max(now, finished.popleft()) + step
    return now


def make(count: int, seconds: float, mix: str, alone: float) -> list[Teacher]:
    """``count`` teachers of a mix."""
    teachers = [Teacher(f"t{number}", seconds) for number in range(count)]
    if mix != "equal":
        for teacher in teachers[1::2]:
            teacher.seconds *= SLOW
    if mix == "one stops":
        teachers[0].pause = (alone / 3, 2 * alone / 3)
    return teachers


def main() -> None:
    """Measure, simulate, print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", help="an image to write (needs matplotlib)")
    parser.add_argument("--step", type=float, help="seconds of a training step; default: measured")
    parser.add_argument("--speedup", type=float, default=9.0, help="of the student's device")
    parser.add_argument("--infer", type=float, help="seconds of an inference; default: measured")
    arguments = parser.parse_args()
    step, infer = arguments.step, arguments.infer
    if step is None or infer is None:
        step, infer = measure()
        step /= arguments.speedup
    print(f"a step of {ROWS} images takes {step:.3f} s, their soft labels {infer:.3f} s; "
          f"a student could use {infer / step:.1f} teachers")  # fmt: skip
    alone = BATCHES * step
    results: dict[tuple[str, str], list[float]] = {}
    for mix in ("equal", "mixed", "one stops"):
        for name, method in (("scheduled", scheduled), ("static", static)):
            results[mix, name] = [
                alone / method(make(count, infer, mix, alone), step) for count in TEACHERS
            ]
    table = Table(title="Throughput, of the student's own")
    table.add_column("teachers", justify="right")
    for mix, name in results:
        table.add_column(f"{mix}, {name}", justify="right")
    for index, count in enumerate(TEACHERS):
        table.add_row(str(count), *(f"{values[index]:.2f}" for values in results.values()))
    Console(width=120).print(table)
    if arguments.plot:
        plot(arguments.plot, results, step, infer)


def plot(path: str, results: dict[tuple[str, str], list[float]], step: float, infer: float) -> None:
    """Throughput against the number of teachers, one panel for each mix."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mixes = list(dict.fromkeys(mix for mix, _ in results))
    titles = {
        "equal": "equal teachers",
        "mixed": f"every second one {SLOW:g} times slower",
        "one stops": "... and one stops for a third of the time",
    }
    figure, axes = plt.subplots(1, len(mixes), figsize=(11, 3.4), sharey=True)
    for axis, mix in zip(axes, mixes):
        axis.plot(TEACHERS, results[mix, "scheduled"], "o-", label="scheduled (DistillReader)")
        axis.plot(TEACHERS, results[mix, "static"], "s--", color="gray", label="static")
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=titles[mix], xlabel="teachers", ylim=(0, 1.05))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("throughput, of the student's own")
    axes[-1].legend(loc="lower right")
    figure.suptitle(f"A student with a step of {step:.2f} s, teachers that need {infer:.2f} s")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
