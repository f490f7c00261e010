"""A program in the shape of the original's NLP example: text for ERNIE as the teacher (padded ids,
and a mask of integers), and ragged ids for the student, in the reader's three formats.
"""

import sys

import numpy as np

from paddle_edl.distill.distill_reader import DistillReader

EPOCHS, BATCHES, ROWS, LONGEST = 2, 5, 6, 12
generator = np.random.default_rng(0)


def sample():
    """Ids, positions, sentence ids and mask, each (LONGEST, 1) int64; the text's ids; a label."""
    length = int(generator.integers(3, LONGEST))
    ids = generator.integers(1, 50, length)
    mask = (np.arange(LONGEST) < length).astype("int64").reshape(LONGEST, 1)
    src_ids = np.zeros((LONGEST, 1), "int64")
    src_ids[:length, 0] = ids
    pos_ids = np.arange(LONGEST).reshape(LONGEST, 1)
    return src_ids, pos_ids, np.zeros_like(src_ids), mask, ids.tolist(), length % 2


def samples():
    for _ in range(BATCHES * ROWS):
        yield sample()


def sample_lists():
    for _ in range(BATCHES):
        yield [sample() for _ in range(ROWS)]


def batches():
    for _ in range(BATCHES):
        columns = list(zip(*(sample() for _ in range(ROWS))))
        yield [np.stack(column) for column in columns[:4]] + [list(c) for c in columns[4:]]


def rows_of(form, dr):
    """Samples, each with its logits, whatever the format."""
    for _ in range(EPOCHS):
        if form == "sample":
            yield from dr()
        elif form == "sample_list":
            for batch in dr():
                yield from batch
        else:
            for batch in dr():
                yield from zip(*batch)


def show(form, teacher):
    keys = ["src_ids", "pos_ids", "sent_ids", "input_mask", "ids_student", "labels"]
    dr = DistillReader(keys, predicts=["logits"])
    dr.set_teacher_batch_size(4)
    dr.set_fixed_teacher(teacher)
    if form == "sample":
        dr.set_sample_generator(samples)
    elif form == "sample_list":
        dr.set_sample_list_generator(sample_lists)
    else:
        dr.set_batch_generator(batches)
    return rows_of(form, dr)


if __name__ == "__main__":
    for form in ("sample", "sample_list", "batch"):
        rows = 0
        for src_ids, pos_ids, _, mask, ids, lab, logits in show(form, sys.argv[1]):
            length = len(ids)
            assert lab == length % 2
            assert mask.dtype == np.int64
            assert mask.sum() == length
            assert src_ids[:length, 0].tolist() == ids
            np.testing.assert_allclose(logits, [sum(ids), pos_ids[:length].sum()], rtol=1e-5)
            rows += 1
        print(f"{form} rows: {rows}")
