"""Train a student language model, alone and distilled from a teacher that is served.

    python teacher.py --out work/teacher
    edl teacher --causal-lm work/teacher --port 9292 &
    python train.py --teacher work/teacher --ways alone 8+8 --fixed_teacher 127.0.0.1:9292

Each way has the same blocks of text in the same order, and the same steps. What distillation takes
is marked <-- distillation.
"""

import argparse
import json
import math
import re
from pathlib import Path

import data
import models
import numpy as np
import paddle
from paddle.nn import functional

from edl.distill import DistillReader  # <-- distillation
from edl.distill.losses import distillation, sparse_distillation  # <-- distillation

BATCH = 4  # blocks


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--teacher", required=True, help="its directory, for its tokenizer")
    add("--ways", nargs="+", type=way_of, default=["alone", "8+8"], help="alone; full: whole "
        "logits; K: the K largest of each token; K+M: and M drawn from the others")  # fmt: skip
    add("--fixed_teacher", help="HOST:PORT[,...]")
    add("--etcd", help="HOST:PORT of the etcd in which teachers register, instead")
    add("--service", default="qwen3", help="... and as what")
    add("--steps", type=int, default=512)
    add("--seed", type=int, default=0, help="draws the blocks, their order and the parameters")
    add("--learning_rate", type=float, default=4e-3)
    add("--reviews", type=int, default=0, help="use only so many; 0: all")
    add("--losses", type=Path, help="append the loss of each step to this file, as JSON lines")
    add("--results", type=Path, help="append the results to this file, as JSON lines")
    add("--save", help="a directory for the last student")
    args = parser.parse_args()
    if set(args.ways) != {"alone"} and not (args.fixed_teacher or args.etcd):
        parser.error("to distil, name teachers with --fixed_teacher, or --etcd")
    return args


def way_of(text):
    """One of ``--ways``."""
    if not re.fullmatch(r"alone|full|\d+(\+\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of alone, full, K and K+M")
    return text


def main():
    """All ways, one after the other."""
    args = parse()
    tokenizer, classes = models.vocabulary(args.teacher)
    train_set, test_set = (data.blocks(tokenizer, reviews) for reviews in data.load(args.reviews))
    for way in args.ways:
        paddle.seed(args.seed)
        student = models.qwen3(classes, **models.STUDENT)
        loader = data.loader(train_set, args.steps, BATCH, args.seed)
        if way == "alone":
            train(args, student, loader, way)
        else:
            with distilled(args, loader, way) as reader:  # <-- distillation
                train(args, student, reader, way)
                tell_losses(reader.stats())
        report(args, way, perplexity(student, test_set))
    if args.save:
        student.save_pretrained(args.save)
        tokenizer.save_pretrained(args.save)


def distilled(args, loader, way):
    """The same batches, with what the teacher says of each token: <-- distillation."""
    return DistillReader(
        ["input_ids"],
        ["logits"],
        loader,
        args.fixed_teacher or f"etcd://{args.etcd}/{args.service}",
        tokenizer=args.teacher,
        **form_of(way),
    )


def form_of(way):
    """What a DistillReader is to ask for: <-- distillation."""
    if way == "full":
        return {}
    top_k, _, samples = way.partition("+")
    return {"top_k": int(top_k), "samples": int(samples or 0)}


def train(args, student, batches, way):
    """One student, whose losses are noted."""
    for loss in fit(student, batches, args.steps, args.learning_rate):
        note(args.losses, seed=args.seed, way=way, loss=loss)


def fit(model, batches, steps, learning_rate):
    """Train with AdamW and a learning rate that rises and falls. Yields the loss of each step."""
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, steps)
    schedule = paddle.optimizer.lr.LinearWarmup(schedule, 20, 0.0, learning_rate)
    clip = paddle.nn.ClipGradByGlobalNorm(1.0)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=model.parameters(), grad_clip=clip)
    model.train()
    for batch in batches:
        logits = models.logits_of(model, batch["input_ids"])
        loss = criterion(logits, batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()
        yield float(loss)


def criterion(logits, batch):
    """How far the student is from the teacher; without one, from the text."""
    if "logits" in batch:  # <-- distillation
        return distillation(logits, batch["logits"], temperature=1.0)
    if "logits.values" in batch:  # <-- distillation
        parts = ("values", "indices", "logsumexp", "samples")
        return sparse_distillation(logits, *(batch.get(f"logits.{part}") for part in parts))
    return functional.cross_entropy(logits, batch["labels"])


@paddle.no_grad()
def perplexity(model, blocks):
    """Of blocks that nobody was trained on: as if so many tokens were equally likely."""
    model.eval()
    total = 0.0
    for part in np.array_split(blocks, math.ceil(len(blocks) / 50)):
        ids = paddle.to_tensor(part)
        logits = models.logits_of(model, ids[:, :-1])
        total += float(functional.cross_entropy(logits, ids[:, 1:], reduction="sum"))
    return math.exp(total / blocks[:, 1:].size)


def report(args, way, found):
    """One line on the terminal, and one in a file."""
    print(f"seed {args.seed}, {way}: perplexity {found:.1f}", flush=True)
    note(args.results, seed=args.seed, way=way, perplexity=found)


def tell_losses(stats):
    """Which the losses of the training do not show."""
    if stats["lost_teachers"]:
        lost, again = stats["lost_teachers"], stats["resent"]
        print(f"teachers lost: {lost}, batches that others were asked for: {again}", flush=True)


def note(file, **values):
    """Append a line, if there is a file for it."""
    if file:
        with file.open("a") as lines:
            print(json.dumps(values), file=lines)


if __name__ == "__main__":
    main()
