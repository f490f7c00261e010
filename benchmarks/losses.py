"""What the losses cost a student: seconds, and memory beside its logits.

python benchmarks/losses.py [--rows N] [--classes N] [--rounds N]

Two tables, of forward and backward passes on this machine's CPU: the logarithm of a softmax by
Paddle's operation and by subtracting the logsumexp, which is what the losses do; and the losses of
whole and of sparse labels. Memory is the most that Paddle has allocated meanwhile, as a multiple of
the logits (their gradient, which any loss has, is 1).
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Callable

import numpy as np
import paddle
from rich.console import Console
from rich.table import Table

from edl.distill import divergences
from edl.distill.losses import distillation, reverse_distillation, sparse_distillation

TOP, SAMPLES = 64, 16
STATISTICS = paddle.base.core


def measure(loss: Callable[[], Any], logits: Any, rounds: int) -> tuple[float, float, float]:
    """Seconds forward, seconds backward (medians), and memory."""
    times, most = [], 0
    for _ in range(rounds):
        before = STATISTICS.host_memory_stat_current_value("Allocated", 0)
        STATISTICS.host_memory_stat_reset_peak_value("Allocated", 0)
        started = time.perf_counter()
        value = loss()
        between = time.perf_counter()
        value.backward()
        times.append((between - started, time.perf_counter() - between))
        most = STATISTICS.host_memory_stat_peak_value("Allocated", 0) - before
        logits.clear_grad()
        del value
    forward, backward = (statistics.median(column) for column in zip(*times))
    return forward, backward, most / (logits.size * logits.element_size())


def student(rows: int, classes: int) -> Any:
    """Logits that want a gradient."""
    logits = 2 * paddle.randn([rows, classes])
    logits.stop_gradient = False
    return logits


def labels(rows: int, classes: int) -> dict[str, Any]:
    """Sparse ones, as a reader gives them."""
    generator = np.random.default_rng(0)
    ids = generator.permutation(classes)[: TOP + SAMPLES].astype("i4")
    values = -np.sort(-generator.normal(0, 3, (rows, TOP))).astype("f2")
    return {
        "values": paddle.to_tensor(values),
        "indices": paddle.to_tensor(np.tile(ids[:TOP], (rows, 1))),
        "logsumexp": paddle.full([rows], 8.0),
        "samples": paddle.to_tensor(np.tile(ids[TOP:], (rows, 1))),
    }


def show(title: str, rows: list[tuple[str, tuple[float, float, float]]]) -> None:
    """A table."""
    table = Table(title=title)
    for name in ("", "forward, ms", "backward, ms", "memory / logits"):
        table.add_column(name, justify="right")
    for name, (forward, backward, memory) in rows:
        table.add_row(name, f"{1e3 * forward:.1f}", f"{1e3 * backward:.1f}", f"{memory:.2f}")
    Console(width=100).print(table)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--classes", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    paddle.set_device("cpu")

    found = []
    for rows, classes in ((32, 10), (256, 1000), (256, 4000), (16, 32_000)):
        logits = student(rows, classes)
        weights = paddle.rand([rows, classes])
        for name, function in (
            ("Paddle's log_softmax", paddle.nn.functional.log_softmax),
            ("less its logsumexp", divergences.log_softmax),
        ):
            cost = measure(
                lambda function=function, logits=logits, weights=weights: (
                    function(logits) * weights
                ).sum(),
                logits, options.rounds,
            )  # fmt: skip
            found.append((f"{rows}x{classes:,}: {name}", cost))
    show("log of a softmax", found)

    logits = student(options.rows, options.classes)
    teacher = 2 * paddle.randn(logits.shape)
    given = labels(options.rows, options.classes)
    without = {name: given[name] for name in ("values", "indices", "logsumexp")}
    losses: dict[str, Callable[[], Any]] = {
        "distillation": lambda: distillation(logits, teacher, 1.0),
        "reverse_distillation": lambda: reverse_distillation(logits, teacher, 1.0),
        f"sparse, top {TOP}": lambda: sparse_distillation(logits, **without),
        f"sparse, top {TOP}, reverse": lambda: sparse_distillation(
            logits, **without, divergence="reverse_kl"
        ),
        f"sparse, top {TOP} + {SAMPLES} drawn": lambda: sparse_distillation(logits, **given),
    }
    show(
        f"losses, logits of {options.rows}x{options.classes:,}",
        [(name, measure(loss, logits, options.rounds)) for name, loss in losses.items()],
    )


if __name__ == "__main__":
    main()
