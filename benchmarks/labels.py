"""Stored labels: what it costs to find them, beside what it takes at least, and beside asking.

python benchmarks/labels.py [--rounds N] [--directory D]

Two kinds of rows: images, 3x224x224 float32 with whole logits of 1,000 classes, in batches of 64;
and sequences, 2,048 ids with top-64 labels of 32,000 classes, in batches of 8. "Hash and copy" is
what a hit takes at least: the XXH3 of the row, that of the label, which is checked, and a copy of
the label, which is in a cache then, into memory that is there; "into new arrays" the same into such
as numpy makes, one of which is held while the next is filled, as a student does. "From the disk"
reads the labels' bytes from a file of their own. The teacher is an ``edl teacher`` on this machine
that computes nothing. Epochs of which 0, 50 and 100 % of each batch are known (the first such epoch
of a process maps the pages, later ones do not; one of 12 batches is partly its beginning and its
end, so there is a longer one of the same rows); and a student's steps, a ResNet-18 on 3x64x64, with
labels that are there already and with labels from the store. Everything in turn; medians over the
rounds. CPU is this process's own, of all its threads.
``--directory``: where stores are made (default: a temporary one).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import xxhash
from _teachers import teachers
from rich.console import Console
from rich.table import Table

from edl.distill import DistillReader
from edl.serving import Description, TensorSpec

_LONG = 8
CLASSES, VOCABULARY, TOKENS, TOP_K = 1000, 32000, 2048, 64
LOGITS = np.random.default_rng(0).random((256, CLASSES), np.float32)


class Images:
    """logits that cost nothing. ``--python labels:Images``."""

    description = Description(
        {"img": TensorSpec((3, -1, -1), "float32")},
        {"logits": TensorSpec((CLASSES,), "float32")},
        fingerprint="images",
    )

    def run(self, feeds: dict[str, np.ndarray], fetches: list[str]) -> dict[str, np.ndarray]:
        return {"logits": LOGITS[: len(feeds["img"])]}


class Sequences:
    """Top-64 labels that cost nothing, as of a program that makes them."""

    _form = f"top_k={TOP_K}"
    description = Description(
        {"ids": TensorSpec((-1,), "int64", pad=0)},
        {
            f"logits.values?{_form}": TensorSpec((-1, TOP_K), "float16", pad=0.0),
            f"logits.indices?{_form}": TensorSpec((-1, TOP_K), "int32", pad=0),
            f"logits.logsumexp?{_form}": TensorSpec((-1,), "float32", pad=0.0),
        },
        fingerprint="sequences",
    )

    def run(self, feeds: dict[str, np.ndarray], fetches: list[str]) -> dict[str, np.ndarray]:
        rows, tokens = feeds["ids"].shape
        made = (
            np.ones((rows, tokens, TOP_K), np.float16),
            np.tile(np.arange(TOP_K, dtype=np.int32), (rows, tokens, 1)),
            np.full((rows, tokens), 9, np.float32),
        )
        return {name: each for name, each in zip(self.description.fetches, made) if name in fetches}


@dataclass(frozen=True)
class Case:
    """Rows of one kind. ``slot``: what is fed; ``label_bytes``: of a row's labels."""

    name: str
    predictor: str
    slot: str
    batches: int
    rows: int
    label_bytes: int
    top_k: Optional[int] = None

    def data(self, part: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batches; every ``part``-th row of each, where others are another's."""
        generator = np.random.default_rng(1)
        found = []
        for number in range(self.batches):
            if self.slot == "img":
                array = generator.random((self.rows, 3, 224, 224), np.float32)
            else:
                array = generator.integers(0, VOCABULARY, (self.rows, TOKENS))
            ids = np.arange(number * self.rows, (number + 1) * self.rows)
            found.append((np.ascontiguousarray(array[::part]), ids[::part]))
        return found

    def reader(
        self, data: list, store: Optional[Path], endpoints: Optional[Sequence[str]], **more: object
    ) -> DistillReader:
        return DistillReader(
            [self.slot, "id"], ["logits"], data, endpoints, store=store, top_k=self.top_k, **more
        )


TOKEN_BYTES = TOP_K * 6 + 4
CASES = [
    Case("images, 1,000 classes", "Images", "img", 12, 64, 4 * CLASSES),
    Case("2,048 tokens, top-64", "Sequences", "ids", 12, 8, TOKENS * TOKEN_BYTES, TOP_K),
]


def timed(act: Callable[[], object]) -> np.ndarray:
    """Seconds, and seconds of this process's CPU."""
    started, cpu = time.perf_counter(), time.process_time()
    act()
    return np.array([time.perf_counter() - started, time.process_time() - cpu])


def epoch(reader: DistillReader) -> np.ndarray:
    """The same, of one epoch."""
    return timed(lambda: deque(reader, maxlen=0))


def least(case: Case, data: list, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Seconds for all rows: hashing, copying labels, both, and reading them from a file."""
    views = [memoryview(array.reshape(-1).view(np.uint8)) for array, _ in data]
    nbytes = data[0][0].nbytes // case.rows
    targets = np.zeros((2, case.rows, case.label_bytes), np.uint8)  # a student holds one of them

    def go_through(hashing: bool = True, copying: bool = True, new: bool = False) -> None:
        rest, target = iter(labels), targets[1]
        for number, view in enumerate(views):
            before, target = target, np.empty_like(target) if new else targets[number % 2]
            for row, label in zip(range(case.rows), rest):
                if hashing:
                    xxhash.xxh3_128_digest(view[row * nbytes : (row + 1) * nbytes])
                    xxhash.xxh3_64_digest(label)
                if copying:
                    target[row] = label
            del before

    go_through()

    def read_all() -> None:
        for number in range(case.batches):
            for row in range(case.rows):
                file.readinto(targets[number % 2][row].data)

    acts = {
        "hash": partial(go_through, copying=False),
        "copy labels": partial(go_through, hashing=False),
        "hash and copy": go_through,
        "into new arrays": partial(go_through, new=True),
    }
    times = {name: timed(act) for name, act in acts.items()}
    with tempfile.TemporaryFile() as file:
        labels.tofile(file)
        file.seek(0)
        times["labels from the disk"] = timed(read_all)
    return times


def measure(case: Case, rounds: int, directory: Path) -> tuple[dict[str, list], float]:
    """Seconds for all rows of an epoch, by what was done; and bytes on the disk for a label."""
    times: dict[str, list] = {}
    data, half = case.data(), case.data(part=2)
    rows = case.batches * case.rows
    labels = np.ones((rows, case.label_bytes), np.uint8)
    arguments = ["--python", f"labels:{case.predictor}"]
    with teachers(1, arguments) as endpoints:
        for number in range(rounds):
            stores = [directory / f"{case.predictor}-{number}-{name}" for name in "abc"]
            found = least(case, data, labels)
            with case.reader(data, None, endpoints) as reader:
                found["asking, no store"] = epoch(reader)
            with case.reader(half, stores[1], endpoints) as reader:
                epoch(reader)
            with case.reader(data, stores[1], endpoints) as reader:
                found["store, 50 % known"] = epoch(reader)
            with case.reader(data, stores[0], endpoints) as reader:
                found["store, 0 % known"] = epoch(reader)
                found["store, 100 % known"] = epoch(reader)
                found["the same again"] = epoch(reader)
            with case.reader(_LONG * data, stores[0], None) as reader:
                epoch(reader)
                found[f"the same, {_LONG} times as long"] = epoch(reader) / _LONG
            with case.reader(data, stores[2], endpoints, store_key="id") as reader:
                epoch(reader)
                found["100 % known, store_key"] = epoch(reader)
            nbytes = sum(file.stat().st_size for file in stores[0].glob("*/data.mdb")) / rows
            for name, seconds in found.items():
                times.setdefault(name, []).append(seconds)
    return times, nbytes


def show(case: Case, times: dict[str, list], nbytes: float) -> None:
    """Print a table."""
    rows = case.batches * case.rows
    medians = {name: np.median(np.array(values), axis=0) for name, values in times.items()}
    least = medians["hash and copy"]
    table = Table(title=f"{case.name}, {case.label_bytes:,} bytes a label")
    for name in ("", "rows/s", "of hash and copy", "spread", "CPU us/row", "of hash and copy"):
        table.add_column(name, justify="right" if name else "left")
    for name, values in times.items():
        median, wall = medians[name], [seconds[0] for seconds in values]
        table.add_row(
            *(name, f"{rows / median[0]:,.0f}", f"{least[0] / median[0]:.2f}"),
            f"{(max(wall) - min(wall)) / median[0]:.0%}",
            *(f"{median[1] / rows * 1e6:,.0f}", f"{least[1] / median[1]:.2f}"),
        )
    Console().print(table)
    print(f"{nbytes:,.0f} bytes on the disk for a label")


# --- a student ----------------------------------------------------------------------------------


def train(batches: Iterator, step: Callable[[np.ndarray, np.ndarray], None]) -> float:
    """Seconds per step; the first two are not counted."""
    count, started = 0, 0.0
    for count, (image, _, soft) in enumerate(batches, 1):
        step(image, soft)
        if count == 2:
            started = time.perf_counter()
    return (time.perf_counter() - started) / (count - 2)


def student(rounds: int, directory: Path) -> None:
    """A student's steps with labels that are there, and with labels from the store."""
    import paddle

    model = paddle.vision.models.resnet18()
    optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters())

    def step(image: np.ndarray, soft: np.ndarray) -> None:
        out = model(paddle.to_tensor(image))
        loss = paddle.nn.functional.mse_loss(out, paddle.to_tensor(soft))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        float(loss)

    generator = np.random.default_rng(0)
    data = [(generator.random((16, 3, 64, 64), np.float32), np.zeros(16)) for _ in range(12)]
    times: dict[str, list[float]] = {"labels that are there": [], "from the store": []}
    case, store = CASES[0], directory / "student"
    arguments = ["--python", "labels:Images"]
    with teachers(1, arguments) as endpoints, case.reader(data, store, endpoints) as reader:
        soft = [batch[2] for batch in reader]
    with case.reader(data, store, None) as reader:
        for _ in range(rounds):
            plain = ((*batch, each) for batch, each in zip(data, soft))
            times["labels that are there"].append(train(plain, step))
            times["from the store"].append(train(iter(reader), step))
        found = reader.stats()["store"]
    base = statistics.median(times["labels that are there"])
    table = Table(title="ResNet-18, 16x3x64x64, no teacher")
    for name in ("", "s/step", "speed", "spread"):
        table.add_column(name, justify="left" if not name else "right")
    for name, values in times.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        table.add_row(name, f"{median:.3f}", f"{base / median:.3f}", f"{spread:.0%}")
    Console().print(table)
    print(f"looking up takes {found['seconds'] / (rounds * len(data)) * 1e3:.2f} ms a step")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        for case in CASES:
            show(case, *measure(case, options.rounds, Path(name)))
        student(options.rounds, Path(name))


if __name__ == "__main__":
    main()
