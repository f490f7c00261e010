"""Train a teacher on all labels, and export it for edl teacher.

    python teacher.py --out sentiment

writes ``sentiment/teacher``. With ``--shares`` and ``--seeds`` it also trains controls: teachers of
the same kind that see no more labels than the students they are for, in one model,
``sentiment/controls``, which has an output for each.
"""

import argparse
import random

import data
import models
import numpy as np
import paddle
from paddle.nn import functional

from edl.serving import export_model

FEEDS = {"input_ids": ((data.LENGTH,), "int64"), "input_mask": ((data.LENGTH,), "float32")}


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", required=True, help="a directory for the models")
    add("--shares", type=float, nargs="*", default=[], help="controls for these shares of labels")
    add("--seeds", type=int, default=0, help="... drawn by so many seeds")
    add("--epochs", type=int, default=5, help="of the teacher")
    add("--ernie", help="take the ids of this checkpoint's tokenizer")
    add("--reviews", type=int, default=0, help="use only so many; 0: all")
    return parser.parse_args()


def main():
    """Train, test, export."""
    args = parse()
    train_set, test_set = data.load(args.reviews)
    tokenize = data.teacher_tokenizer(train_set, args.ernie)
    train_samples, test_samples = samples(train_set, tokenize), samples(test_set, tokenize)

    teacher = models.NGrams()
    fit(teacher, train_samples, args.epochs)
    report("teacher", train_samples, accuracy(teacher, test_samples))
    export_model(teacher, f"{args.out}/teacher", FEEDS, ["logits"])

    controls = {}
    for share in args.shares:
        for seed in range(args.seeds):
            control = controls[control_output(share, seed)] = models.NGrams()
            seen = [train_samples[number] for number in data.labelled(train_set, share, seed)]
            fit(control, seen, 2 * args.epochs)
            report(f"control {seed}", seen, accuracy(control, test_samples))
    if controls:
        together = models.Together(list(controls.values()))
        export_model(together, f"{args.out}/controls", FEEDS, list(controls))


def control_output(share, seed):
    """What the output of the control for a student is called."""
    return f"logits_{share * 100:g}_percent_seed_{seed}"


def samples(reviews, tokenize):
    """[(input_ids, input_mask, label)], all int64."""
    return [(*data.for_teacher(tokenize(text)), label) for text, label in reviews]


def fit(teacher, train_samples, epochs, learning_rate=0.02):
    """Train with Adam and a cosine schedule."""
    reader = data.batches(train_samples, length=lambda sample: sample[1].sum())
    steps = epochs * data.count_batches(train_samples)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, steps)
    optimizer = paddle.optimizer.Adam(schedule, parameters=teacher.parameters())
    teacher.train()
    random.seed(0)
    for _ in range(epochs):
        for batch in reader():
            input_ids, input_mask, label = tensors(batch)
            loss = functional.cross_entropy(teacher(input_ids, input_mask), label)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            schedule.step()


def tensors(batch):
    """(input_ids int64, input_mask float32, label int64), rows first, as long as the longest."""
    input_ids, input_mask, label = (np.stack(slot) for slot in zip(*batch))
    longest = input_mask.sum(axis=1).max()
    mask = input_mask[:, :longest].astype("float32")
    return tuple(map(paddle.to_tensor, (input_ids[:, :longest], mask, label)))


@paddle.no_grad()
def accuracy(teacher, test_samples):
    """Share of the reviews that are recognised."""
    teacher.eval()
    right = 0
    for batch in data.cut(test_samples, 500):
        input_ids, input_mask, label = tensors(batch)
        right += int((teacher(input_ids, input_mask).argmax(axis=1) == label).sum())
    return right / len(test_samples)


def report(name, seen, found):
    """One line."""
    print(f"{name}: accuracy {found:.4f} after {len(seen)} labelled reviews", flush=True)


if __name__ == "__main__":
    main()
