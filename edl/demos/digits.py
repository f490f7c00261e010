"""The whole system on one machine: ``edl demo digits``.

A convolutional network learns scikit-learn's handwritten digits from 1,200 images and is hosted as
a service by two processes. Small students see only 150 of these images. One kind learns from their
labels alone, the other learns from the teacher's soft labels, which DistillReader adds to every
batch while one teacher is killed and another one joins. Both see the same mixtures of two images
(mixup) in the same order: for a mixture only the teacher can say what it looks like, as in
"Knowledge distillation: a good teacher is patient and consistent" (Beyer et al., arXiv 2106.05237).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
from rich.console import Console
from rich.table import Table

from edl._paddle import import_paddle
from edl.demos import processes
from edl.discovery.embedded import EmbeddedEtcd
from edl.distill import DistillReader
from edl.errors import EdlError, MissingDependencyError
from edl.serving import export_model

SERVICE = "digits_teacher"
STUDENT_IMAGES = 150
BATCH, BATCHES_PER_EPOCH = 64, 20
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) in 0..1 and labels (n,), for training and for testing."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


#: Makes a bar, of what is done and what is counted; its ``show`` is told how many of how many.
MakeBar = Callable[[str, str], contextlib.AbstractContextManager[Any]]


def run(seeds: int, epochs: int, work_dir: Optional[Path], progress: MakeBar) -> None:
    """The demonstration, from nothing to the tables. Cleans up, also when it is interrupted."""
    console = Console()
    import_paddle("this demo")
    signal.signal(signal.SIGTERM, _interrupt)
    logging.getLogger("edl").addHandler(logging.NullHandler())
    started = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            if work_dir is None:
                temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="edl-demo-"))
                work_dir = Path(temporary)
            _demonstrate(console, stack, seeds, epochs, work_dir, progress)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; everything that was started has been stopped[/]")
        sys.exit(130)
    console.print(f"Took {time.monotonic() - started:.0f} s; no process is left running.")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _demonstrate(
    console: Console,
    stack: contextlib.ExitStack,
    seeds: int,
    epochs: int,
    work_dir: Path,
    progress: MakeBar,
) -> None:
    paddle = import_paddle("this demo")
    warnings.filterwarnings("ignore", module="paddle")
    data = load_digits()
    step = _Steps(console)

    step("Training the teacher, a convolutional network, on 1,200 labelled digits")
    paddle.seed(0)
    teacher = make_teacher()
    with progress("the teacher", "batches") as bar:
        tick = _ticker(bar, 20 * BATCHES_PER_EPOCH)
        train(teacher, Mixtures(data, len(data.images), seed=0), 20, 5e-3, tick)
    teacher_accuracy = accuracy(teacher, data)

    step("Exporting it as an inference model, with the names that students will ask for")
    model_dir = work_dir / "teacher_model"
    export_model(teacher, model_dir, {"img": ((1, 8, 8), "float32")}, ["logits"])

    etcd = stack.enter_context(EmbeddedEtcd(work_dir / "etcd"))
    step(f"Started etcd at {etcd.endpoint}: the registry in which teachers are found")

    host = stack.enter_context(TeacherHost(["--model", str(model_dir)], etcd.endpoint, work_dir))
    first, second = host.start(), host.start()
    endpoints = " and ".join((first.wait_until_ready(), second.wait_until_ready()))
    step(f"Started two teachers (edl teacher) at {endpoints}; each keeps a lease in etcd alive")

    step(f"Training {seeds} small students on {STUDENT_IMAGES} of the images, from labels alone")
    total = epochs * BATCHES_PER_EPOCH
    with progress("labels alone", "batches") as bar:
        tick = _ticker(bar, seeds * total)
        alone = [train_student(data, seed, epochs, tick) for seed in range(seeds)]

    step("Training the same students, same seeds and batches, with soft labels from the teachers")
    reader = DistillReader(ins=["img", "label"], predicts=["logits"])
    reader.set_dynamic_teacher(etcd.endpoint, SERVICE, require_max_teacher=4)
    stack.enter_context(reader)
    with progress("soft labels", "batches") as bar:
        tick = _ticker(bar, seeds * total)
        incident = _Incident(host, first, at=total // 2 + BATCHES_PER_EPOCH // 2, say=console.print)

        def on_batch() -> None:
            tick()
            incident.on_batch()

        distilled = distill_students(reader, data, seeds, epochs, on_batch)
    stats = reader.stats()
    incident.report(console)

    _print_accuracy(console, teacher_accuracy, alone, distilled)
    _print_delivery(console, seeds * total, stats)


# --- data, models, training: what any Paddle user knows ---------------------------------------


def load_digits() -> Digits:
    """scikit-learn's digits, shuffled with a fixed seed: 1,200 for training, 597 for testing."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"this demo needs scikit-learn: pip install scikit-learn ({error})"
        ) from error
    digits = datasets.load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1200], order[1200:]
    return Digits(images[train], labels[train], images[test], labels[test])


class Mixtures:
    """Batches of mixtures of two images each, with the labels mixed alike. One seed, one sequence.

    Calling it gives one epoch: images (64, 1, 8, 8) and label probabilities (64, 10).
    """

    def __init__(self, data: Digits, images: int, seed: int) -> None:
        self._data, self._images = data, images
        self._random = np.random.default_rng(seed)

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch."""
        one_hot = np.eye(10, dtype=np.float32)[self._data.labels]
        for _ in range(BATCHES_PER_EPOCH):
            left, right = self._random.integers(0, self._images, (2, BATCH))
            share = self._random.random((BATCH, 1, 1, 1), dtype=np.float32)
            images = share * self._data.images[left] + (1 - share) * self._data.images[right]
            flat = share[:, :, 0, 0]
            yield images, flat * one_hot[left] + (1 - flat) * one_hot[right]


def make_teacher() -> Any:
    """A convolutional network with 17,000 parameters."""
    from paddle import nn

    return nn.Sequential(
        *(nn.Conv2D(1, 16, 3, padding=1), nn.BatchNorm2D(16), nn.ReLU()),
        *(nn.Conv2D(16, 32, 3, padding=1), nn.BatchNorm2D(32), nn.ReLU(), nn.MaxPool2D(2)),
        *(nn.Conv2D(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def make_student() -> Any:
    """A multi-layer perceptron with 2,400 parameters."""
    from paddle import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train(
    model: Any,
    batches: Callable[[], Iterator[tuple]],
    epochs: int,
    learning_rate: float,
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Train with Adam and a cosine schedule. With a third slot in the batches (the teacher's
    logits), learn from these; else from the labels.
    """
    import paddle
    from paddle.nn import functional as F

    steps = epochs * BATCHES_PER_EPOCH
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, steps)
    optimizer = paddle.optimizer.Adam(schedule, parameters=model.parameters())
    model.train()
    for _ in range(epochs):
        for images, labels, *soft in batches():
            logits = model(paddle.to_tensor(images))
            if soft:
                target = F.softmax(paddle.to_tensor(soft[0]) / TEMPERATURE)
                loss = F.cross_entropy(logits / TEMPERATURE, target, soft_label=True)
                loss = loss * TEMPERATURE**2
            else:
                loss = F.cross_entropy(logits, paddle.to_tensor(labels), soft_label=True)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            schedule.step()
            on_batch()


def train_student(data: Digits, seed: int, epochs: int, on_batch: Callable[[], None]) -> float:
    """A student from labels alone; its accuracy."""
    import paddle

    paddle.seed(seed)
    student = make_student()
    train(student, Mixtures(data, STUDENT_IMAGES, seed), epochs, 1e-2, on_batch)
    return accuracy(student, data)


def distill_students(
    reader: DistillReader, data: Digits, seeds: int, epochs: int, on_batch: Callable[[], None]
) -> list[float]:
    """The same students with soft labels. This is all that distillation changes: the reader wraps
    the batches, and they come out with one more slot.
    """
    import paddle

    current: list[Mixtures] = []
    reader.set_batch_generator(lambda: iter(current[0]()))
    scores = []
    for seed in range(seeds):
        paddle.seed(seed)
        student = make_student()
        current[:] = [Mixtures(data, STUDENT_IMAGES, seed)]
        train(student, reader, epochs, 1e-2, on_batch)
        scores.append(accuracy(student, data))
    return scores


def accuracy(model: Any, data: Digits) -> float:
    """Share of the test images that are recognised."""
    import paddle

    model.eval()
    with paddle.no_grad():
        guesses = model(paddle.to_tensor(data.test_images)).numpy().argmax(axis=1)
    return float((guesses == data.test_labels).mean())


# --- teachers as processes --------------------------------------------------------------------


@dataclass
class TeacherProcess:
    """One ``edl teacher`` in a process of its own."""

    process: subprocess.Popen
    log: Path

    def wait_until_ready(self, timeout: float = 60.0) -> str:
        """Its endpoint, once it has printed it. Raises EdlError with its last words otherwise."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                if line.startswith("teacher ready at "):
                    return line.rpartition(" ")[2]
            time.sleep(0.05)
        raise EdlError(f"a teacher did not come up:\n{self.log.read_text()[-2000:]}")


class TeacherHost:
    """Starts teachers of one model, and ends those that are left. ``model``: what ``edl teacher``
    is told of it.
    """

    def __init__(self, model: Sequence[str], etcd: str, work_dir: Path) -> None:
        self._arguments = [*model, "--etcd", etcd, "--service", SERVICE]
        self._work_dir = work_dir
        self._started: list[TeacherProcess] = []

    def start(self) -> TeacherProcess:
        """Start one; does not wait for it."""
        log = self._work_dir / f"teacher-{len(self._started)}.log"
        command = [sys.executable, "-m", "edl.cli.main", "teacher", *self._arguments]
        command += ["--cpu-threads", "1", "--ttl", "5"]
        # So that the socket of one that is killed goes with the rest.
        extra = {"XDG_RUNTIME_DIR": str(self._work_dir.resolve())}
        process = processes.start(command, log, extra)
        self._started.append(TeacherProcess(process, log))
        return self._started[-1]

    def __enter__(self) -> TeacherHost:
        return self

    def __exit__(self, *_: object) -> None:
        processes.end([teacher.process for teacher in self._started])


class _Incident:
    """Kills a teacher when its batch has come, starts another, and times the pause that follows."""

    def __init__(
        self, host: TeacherHost, victim: TeacherProcess, at: int, say: Callable[[str], None]
    ) -> None:
        self._host, self._victim, self._at, self._say = host, victim, at, say
        self._seen = 0
        self._killed_at = 0.0
        self._pause = 0.0

    def on_batch(self) -> None:
        """One more batch has reached the student."""
        self._seen += 1
        if self._seen == self._at:
            self._victim.process.kill()
            self._killed_at = time.monotonic()
            self._say(f"  batch {self._at}: killed a teacher (SIGKILL), starting another one")
            self._host.start()
        elif self._at < self._seen <= self._at + 20:
            now = time.monotonic()
            self._pause = max(self._pause, now - self._killed_at)
            self._killed_at = now

    def report(self, console: Console) -> None:
        """How long the student had to wait at most."""
        console.print(
            f"  Longest time between two batches after the kill: {self._pause * 1000:.0f} ms"
        )


# --- output -----------------------------------------------------------------------------------


class _Steps:
    """Numbered lines that say what happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0

    def __call__(self, text: str) -> None:
        self._number += 1
        self._console.print(f"[bold]{self._number}.[/] {text}")


def _ticker(bar: Any, total: int) -> Callable[[], None]:
    """What is to be called for each batch."""
    done = itertools.count(1)
    return lambda: bar.show(next(done), total)


def _print_accuracy(
    console: Console, teacher: float, alone: list[float], distilled: list[float]
) -> None:
    table = Table(title="Accuracy on 597 test images")
    table.add_column("model")
    table.add_column("mean", justify="right")
    table.add_column("standard deviation", justify="right")
    table.add_row("teacher", f"{teacher:.4f}", "")
    for name, scores in (("student, labels alone", alone), ("student, distilled", distilled)):
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        table.add_row(name, f"{statistics.mean(scores):.4f}", f"{spread:.4f}")
    console.print(table)


def _print_delivery(console: Console, expected: int, stats: dict[str, Any]) -> None:
    """What the reader did. Raises EdlError if a batch is missing, or one came twice."""
    table = Table(title="What the reader did")
    for name in ("batches expected", "batches seen", "tasks sent", "tasks resent", "teachers lost"):
        table.add_column(name, justify="right")
    counts = [stats[name] for name in ("batches", "tasks_sent", "resent", "lost_teachers")]
    table.add_row(str(expected), *map(str, counts))
    console.print(table)
    if stats["batches"] != expected:
        raise EdlError(f"{stats['batches']} batches were seen, {expected} were expected")
