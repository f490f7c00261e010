"""Train a student that tells praise from complaint, alone and distilled from a teacher.

    python teacher.py --out sentiment
    edl teacher --model sentiment/teacher --port 9292 &
    python train.py --student bow --shares 0.02 --fixed_teacher 127.0.0.1:9292

Alone it learns from those reviews that have a label; distilled, from all of them. What distillation
takes is marked <-- distillation.
"""

import argparse
import json
import random
from pathlib import Path

import data
import models
import numpy as np
import paddle
from paddle.nn import functional
from teacher import control_output

from edl.distill import DistillReader  # <-- distillation
from edl.distill.losses import distillation  # <-- distillation


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--student", choices=models.STUDENTS, default="bow")
    add("--shares", type=float, nargs="+", default=[0.05], help="of the reviews that are labelled")
    add("--seed", type=int, default=0, help="draws those that are, the parameters and the order")
    add("--fixed_teacher", help="HOST:PORT[,...]")
    add("--etcd", help="HOST:PORT of the etcd in which teachers register, instead")
    add("--service", default="sentiment_teacher", help="... and as what")
    add("--control_service", help="distil from the controls that are registered as this, too")
    add("--ernie", help="the checkpoint from which ernie.py made the teacher")
    add("--epochs", type=int, default=2, help="over all reviews")
    add("--learning_rate", type=float, default=0.01)
    add("--s_weight", type=float, default=0.5, help="of the labels; the teacher has the rest")
    add("--T", type=float, default=2.0, help="temperature: softens both sides")
    add("--reviews", type=int, default=0, help="use only so many; 0: all")
    add("--output", type=Path, help="append the results to this file, as JSON lines")
    args = parser.parse_args()
    if args.control_service and not args.etcd:
        parser.error("--control_service needs --etcd")
    return args


def main():
    """All shares, in all the ways for which there are teachers."""
    args = parse()
    train_set, test_set = data.load(args.reviews)
    samples, test_samples = encode(args, train_set, test_set)
    for share in args.shares:
        seen = set(data.labelled(train_set, share, args.seed).tolist())
        known = [sample for number, sample in enumerate(samples) if number in seen]
        epochs = round(args.epochs / share**0.5)  # the fewer they are, the more often
        student = train(args, batches(known), epochs, data.count_batches(known))
        report(args, share, "alone", accuracy(student, test_samples))

        everything = [
            sample if number in seen else (*sample[:-1], data.UNLABELLED)
            for number, sample in enumerate(samples)
        ]
        for way, service, output in teachers(args, share):  # <-- distillation
            with distilled(args, batches(everything), service, output) as reader:
                student = train(args, reader, args.epochs, data.count_batches(everything))
            report(args, share, way, accuracy(student, test_samples))


def encode(args, train_set, test_set):
    """Samples for training, (input_ids, input_mask, ids_student, label), and for testing,
    (ids_student, label): the teacher's ids are padded, the student's are lists of any length.
    """
    characters = data.character_tokenizer(train_set)
    teacher_ids = data.teacher_tokenizer(train_set, args.ernie)

    def student_ids(text):
        return data.words(characters(text)) if args.student == "bow" else characters(text)

    return (
        [
            (*data.for_teacher(teacher_ids(text)), student_ids(text), label)
            for text, label in train_set
        ],
        [(student_ids(text), label) for text, label in test_set],
    )


def teachers(args, share):
    """[(way, service, output)] of those that a student with this share of labels may ask."""
    found = []
    if share < 1 and (args.etcd or args.fixed_teacher):
        found.append(("distilled", args.service, "logits"))
    if share < 1 and args.control_service:
        found.append(("control", args.control_service, control_output(share, args.seed)))
    return found


def distilled(args, reader, service, output):
    """The same batches, with what the teacher says of each: <-- distillation."""
    distill_reader = DistillReader(
        ins=["input_ids", "input_mask", "ids_student", "label"], predicts=[output]
    )
    distill_reader.set_sample_list_generator(reader)
    if args.fixed_teacher:
        distill_reader.set_fixed_teacher(args.fixed_teacher)
    else:
        distill_reader.set_dynamic_teacher(args.etcd, service, require_max_teacher=4)
    return distill_reader


def batches(samples):
    """A reader creator of shuffled lists of samples."""
    return data.batches(samples, length=lambda sample: len(sample[2]))


def train(args, reader, epochs, batches_per_epoch):
    """A new student, trained with Adam and a cosine schedule."""
    paddle.seed(args.seed)
    random.seed(args.seed)
    student = models.STUDENTS[args.student]()
    steps = epochs * batches_per_epoch
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(args.learning_rate, steps)
    optimizer = paddle.optimizer.Adam(schedule, parameters=student.parameters())
    student.train()
    for _ in range(epochs):
        for samples in reader():
            _, _, ids, label, *soft_label = zip(*samples)
            logits = student(paddle.to_tensor(data.pad(ids)))
            loss = criterion(args, logits, paddle.to_tensor(label), *soft_label)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            schedule.step()
    return student


def criterion(args, logits, label, soft_label=None):
    """The labels' cross entropy, of those that have one; with a teacher, its soft labels' too."""
    hard = functional.cross_entropy(
        logits, label, ignore_index=data.UNLABELLED, reduction="sum"
    ) / len(label)
    if soft_label is None:
        return hard
    soft = distillation(logits, paddle.to_tensor(np.stack(soft_label)), args.T)  # <-- distillation
    return args.s_weight * hard + (1 - args.s_weight) * soft


@paddle.no_grad()
def accuracy(student, test_samples):
    """Share of the reviews that are recognised."""
    student.eval()
    right = 0
    for batch in data.cut(test_samples, 500):
        ids, label = zip(*batch)
        guess = student(paddle.to_tensor(data.pad(ids))).argmax(axis=1)
        right += int((guess == paddle.to_tensor(label)).sum())
    return right / len(test_samples)


def report(args, share, way, found):
    """One line on the terminal, and one in a file."""
    result = {"student": args.student, "seed": args.seed, "share": share, "way": way}
    result["accuracy"] = round(found, 5)
    print(
        "{student}, seed {seed}, {share:.0%} labelled, {way}: {accuracy:.4f}".format(**result),
        flush=True,
    )
    if args.output:
        with args.output.open("a") as file:
            print(json.dumps(result), file=file)


if __name__ == "__main__":
    main()
