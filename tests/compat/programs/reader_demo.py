"""A program in the shape of the original's reader demo: three formats, two epochs each."""

import sys

import numpy as np

from paddle_edl.distill.distill_reader import DistillReader

EPOCHS, BATCHES, ROWS = 2, 6, 8
generator = np.random.default_rng(0)


def image():
    return generator.random((1, 28, 28), dtype=np.float32)


def label():
    return generator.integers(0, 10, (1,))


def samples():
    for _ in range(BATCHES * ROWS):
        yield image(), label()


def sample_lists():
    for _ in range(BATCHES):
        yield [(image(), label()) for _ in range(ROWS)]


def batches():
    for _ in range(BATCHES):
        yield np.stack([image() for _ in range(ROWS)]), np.stack([label() for _ in range(ROWS)])


def reader(teachers):
    dr = DistillReader(ins=["img", "label"], predicts=["prediction"])
    dr.set_teacher_batch_size(4)
    dr.set_fixed_teacher(teachers)
    return dr


def show(form, teachers):
    dr = reader(teachers)
    if form == "sample":
        train_reader = dr.set_sample_generator(samples)
        for _ in range(EPOCHS):
            for img, lab, prediction in train_reader():
                yield img[None], lab[None], prediction[None]
    elif form == "sample_list":
        train_reader = dr.set_sample_list_generator(sample_lists)
        for _ in range(EPOCHS):
            for batch in train_reader():
                yield tuple(np.stack(column) for column in zip(*batch))
    else:
        train_reader = dr.set_batch_generator(batches)
        for _ in range(EPOCHS):
            yield from train_reader()


if __name__ == "__main__":
    for form in ("sample", "sample_list", "batch"):
        rows = 0
        for img, lab, prediction in show(form, sys.argv[1]):
            assert img.shape[1:] == (1, 28, 28)
            assert lab.shape[1:] == (1,)
            assert prediction.shape == (len(img), 2)
            np.testing.assert_allclose(prediction[:, 0], img.sum(axis=(1, 2, 3)), rtol=1e-4)
            rows += len(img)
        print(f"{form} rows: {rows}")
