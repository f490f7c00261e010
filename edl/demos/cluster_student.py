"""One student of ``edl demo cluster``: trains without end on soft labels of its teachers.

python -m edl.demos.cluster_student ETCD NUMBER
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator

import numpy as np

from edl._paddle import import_paddle
from edl.demos.digits import SERVICE, STUDENT_IMAGES, Mixtures, load_digits, make_student, train
from edl.distill import DistillReader

#: A student is in a hurry for the last third of its period, and slow before; so many seconds each.
_PERIODS = (120.0, 180.0)

#: Seconds that a step takes, beside the training of a small network, when it is slow.
_SLOW = 0.065


def pause(number: int, seconds: float) -> float:
    """How long a student rests after a batch, so many seconds after it has begun."""
    period = _PERIODS[number % len(_PERIODS)]
    return _SLOW if seconds % period < 2 / 3 * period else 0.004


def main(etcd: str, number: int) -> None:
    """Train until the process is ended."""
    paddle = import_paddle("this demo")
    warnings.filterwarnings("ignore", module="paddle")
    paddle.set_device("cpu")
    data = load_digits()
    paddle.seed(number)
    mixtures = Mixtures(data, STUDENT_IMAGES, seed=number)
    started = time.monotonic()

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for _ in range(10):  # epochs that can be seen to pass
            yield from mixtures()

    with DistillReader(
        ins=["img", "label"],
        predicts=["logits"],
        source=batches,
        teachers=f"etcd://{etcd}/{SERVICE}",
    ) as reader:
        while True:
            train(
                make_student(),
                reader,
                epochs=10,
                learning_rate=1e-2,
                on_batch=lambda: time.sleep(pause(number, time.monotonic() - started)),
            )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
