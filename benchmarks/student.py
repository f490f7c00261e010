"""Whether the reader slows the student down: ResNet-18 training steps with and without it.

python benchmarks/student.py [--steps N] [--rounds N]

The student is paddle.vision.models.resnet18 on this machine's CPU, batches of 16x3x64x64. Its
teachers are SIMULATED REMOTE: two processes that receive the real bytes, wait as long as a forward
pass of a larger model takes elsewhere, and send soft labels; they cost latency, not this machine's
compute. "Without" trains on the same batches with the same loss and soft labels that are there
already. Rounds of both take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator

import numpy as np
import paddle
from _nothing import Peer
from rich.console import Console
from rich.table import Table

from edl.distill import DistillReader

SHAPE, CLASSES = (16, 3, 64, 64), 1000
DELAY = 0.2  # seconds per batch at a teacher


def train(
    batches: Iterable, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer
) -> float:
    """Seconds per step over ``batches``; the first two steps are not counted."""
    count, started = 0, 0.0
    for count, (image, _, soft) in enumerate(batches, 1):
        logits = model(paddle.to_tensor(image))
        loss = paddle.nn.functional.cross_entropy(logits, paddle.to_tensor(soft), soft_label=True)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        float(loss)
        if count == 2:
            started = time.perf_counter()
    return (time.perf_counter() - started) / (count - 2)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()

    generator = np.random.default_rng(0)
    images = [generator.random(SHAPE, dtype=np.float32) for _ in range(4)]
    labels = np.zeros(SHAPE[0], np.int64)
    soft = np.full((SHAPE[0], CLASSES), 1 / CLASSES, np.float32)
    peers = [Peer(soft, delay=DELAY) for _ in range(2)]
    model = paddle.vision.models.resnet18()
    optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters())

    def source() -> Iterator:
        for step in range(options.steps + 2):
            yield images[step % len(images)], labels

    times: dict[str, list[float]] = {"without the reader": [], "with the reader": []}
    teachers = [peer.endpoint for peer in peers]
    with DistillReader(["img", "label"], ["prob"], source, teachers) as reader:
        for _ in range(options.rounds):
            plain = ((image, label, soft) for image, label in source())
            times["without the reader"].append(train(plain, model, optimizer))
            times["with the reader"].append(train(reader, model, optimizer))
        waited = reader.stats()["student_waited"]
    for peer in peers:
        peer.close()

    plain_median = statistics.median(times["without the reader"])
    table = Table(title=f"ResNet-18, {'x'.join(map(str, SHAPE))}, teachers simulated remote")
    for name in ("", "s/step", "images/s", "speed", "spread"):
        table.add_column(name, justify="right")
    for name, values in times.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        row = (f"{median:.3f}", f"{SHAPE[0] / median:.1f}", f"{plain_median / median:.3f}")
        table.add_row(name, *row, f"{spread:.0%}")
    Console().print(table)
    print(f"teachers' delay {DELAY} s a batch; the student waited {waited:.1f} s in all")


if __name__ == "__main__":
    main()
