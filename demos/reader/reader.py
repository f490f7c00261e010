"""The three formats that a reader can have, and what comes back with a teacher's predictions.

    python reader.py                              # with a teacher in this process
    python reader.py --teachers HOST:PORT,...     # or etcd://HOST:PORT/SERVICE

The teacher is one that feeds on "img" (1, 28, 28) and answers "prob" (10,). Programs for the
original paddle_edl look like this too, but for the import.
"""

import argparse
import contextlib

import numpy as np

from edl.distill import DistillReader
from edl.serving import serve

SAMPLES, BATCH = 64, 16
GENERATOR = np.random.default_rng(0)


def sample():
    """An image and its label."""
    return GENERATOR.random((1, 28, 28), dtype=np.float32), GENERATOR.integers(0, 10, 1)


def samples():
    """Samples, one at a time."""
    for _ in range(SAMPLES):
        yield sample()


def sample_lists():
    """Lists of samples."""
    for _ in range(SAMPLES // BATCH):
        yield [sample() for _ in range(BATCH)]


def batches():
    """Batches: arrays with rows first."""
    for _ in range(SAMPLES // BATCH):
        yield tuple(np.stack(column) for column in zip(*(sample() for _ in range(BATCH))))


def teacher(img):
    """Stands for a network: the more light in a tenth of the image, the likelier its class."""
    light = img.reshape(len(img), 784)[:, :780].reshape(len(img), 10, 78).sum(axis=2)
    return np.exp(light - light.max(axis=1, keepdims=True))


def reader(teachers):
    """A reader whose slots are called img and label."""
    return DistillReader(ins=["img", "label"], predicts=["prob"], teachers=teachers)


def main():
    """Read each format once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teachers", help="default: one in this process")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        teachers = arguments.teachers
        if not teachers:
            feeds, fetches = {"img": ((1, 28, 28), "float32")}, {"prob": ((10,), "float32")}
            teachers = stack.enter_context(serve(teacher, feeds, fetches)).endpoint

        with reader(teachers).set_sample_generator(samples) as train_reader:
            count = 0
            for img, label, prob in train_reader():
                assert (img.shape, label.shape, prob.shape) == ((1, 28, 28), (1,), (10,))
                count += 1
        print(f"samples: {count}, each (img, label, prob)")

        with reader(teachers).set_sample_list_generator(sample_lists) as train_reader:
            count = 0
            for batch in train_reader():
                assert len(batch) == BATCH
                for img, label, prob in batch:
                    assert (img.shape, label.shape, prob.shape) == ((1, 28, 28), (1,), (10,))
                count += 1
        print(f"sample lists: {count} of {BATCH} samples, each (img, label, prob)")

        with reader(teachers).set_batch_generator(batches) as train_reader:
            count = 0
            for img, label, prob in train_reader():
                assert (img.shape, label.shape) == ((BATCH, 1, 28, 28), (BATCH, 1))
                assert prob.shape == (BATCH, 10)
                count += 1
        print(f"batches: {count}, each (img, label, prob) with {BATCH} rows")


if __name__ == "__main__":
    main()
