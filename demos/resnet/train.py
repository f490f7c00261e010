"""Train a student, alone or distilled from a teacher.

    python train.py --mode pure                                       # no teacher
    python train.py --mode online --teacher-weights t.pdparams        # teacher in this process
    python train.py --mode service --teachers etcd://127.0.0.1:2379/resnet_teacher
    python -m paddle.distributed.launch --nproc_per_node 2 train.py ...

Everything but the teacher is the same in the three modes. What distillation as a service takes is
marked with <-- distillation.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import data
import models
import numpy as np
import paddle
import paddle.distributed as dist
from paddle.nn import functional

from edl.distill import DistillReader  # <-- distillation
from edl.distill.losses import decoupled_distillation, distillation  # <-- distillation


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--mode", choices=("pure", "online", "service"), default="pure")
    add("--student", default="resnet18", help="any of paddle.vision.models, or ResNet50_vd")
    add("--teacher", default="resnet50", help="the teacher's network, for --mode online")
    add("--teacher-weights", help="its parameters: a file of paddle.save(net.state_dict(), FILE)")
    add("--teachers", help="etcd://HOST:PORT[,...]/SERVICE, or HOST:PORT[,...], for --mode service")
    add("--data", choices=("digits", "cifar10", "cifar100", "folder"), default="digits")
    add("--data-path", help="the CIFAR archive, or the folder with train/ and val/")
    add("--image-size", type=int, default=32)
    add("--epochs", type=int, default=10)
    add("--warmup-epochs", type=float, default=1.0)
    add("--batch-size", type=int, default=32, help="of each process")
    add("--lr", type=float, default=0.05, help="for a batch of 32 on one process; it is scaled")
    add("--weight-decay", type=float, default=1e-4)
    add("--loss", choices=("kd", "dkd"), default="kd", help="plain or decoupled distillation")
    add("--temperature", type=float, default=4.0)
    add("--soft-weight", type=float, default=0.9, help="of the teacher; the labels have the rest")
    add("--amp", action="store_true", help="mixed precision")
    add("--workers", type=int, default=0, help="of the DataLoader")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("output"))
    add("--save-every", type=int, default=0, help="steps between checkpoints; 0: every epoch")
    add("--resume", action="store_true", help="go on from the checkpoint in --output, if any")
    add("--stop-after", type=int, default=0, help="end after so many steps, as if killed")
    arguments = parser.parse_args()
    if arguments.mode == "service" and not arguments.teachers:
        parser.error("--mode service needs --teachers")
    return arguments


def main():
    """Train."""
    args = parse()
    if dist.get_world_size() > 1:
        dist.init_parallel_env()
    for seed in (random.seed, np.random.seed, paddle.seed):
        seed(args.seed + dist.get_rank())

    train_set, test_set, classes = data.load(args.data, args.data_path, args.image_size)
    train_set.seed = args.seed
    sampler = paddle.io.DistributedBatchSampler(
        train_set, args.batch_size, shuffle=True, drop_last=True
    )
    loader = paddle.io.DataLoader(train_set, batch_sampler=sampler, num_workers=args.workers)
    steps = len(loader)

    student = models.build(args.student, classes)
    schedule, optimizer = make_optimizer(args, student, steps)
    scaler = paddle.amp.GradScaler(enable=args.amp and paddle.is_compiled_with_cuda())
    state = {"epoch": 0, "step": 0, "reader": None}

    reader = loader
    if args.mode == "service":
        reader = DistillReader(  # <-- distillation: wrap the loader, and batches bring soft labels
            ["image", "label"], ["logits"], source=loader, teachers=args.teachers
        )
    if args.resume:
        load(args, student, optimizer, schedule, scaler, reader, state)
    net = paddle.DataParallel(student) if dist.get_world_size() > 1 else student
    teacher = online_teacher(args, classes) if args.mode == "online" else None
    log = Log(args)

    done = 0
    for epoch in range(state["epoch"], args.epochs):
        train_set.epoch = epoch
        sampler.set_epoch(epoch)
        net.train()
        started, images = time.time(), 0
        skip = state["step"] if args.mode != "service" else 0  # the reader skips by itself
        batches = iter(reader) if not skip else rest_of(loader, sampler, skip)
        for batch in batches:
            image, label = batch[0], batch[1]
            with paddle.amp.auto_cast(enable=args.amp):
                logits = net(image)
            loss = functional.cross_entropy(logits.astype("float32"), label)
            if args.mode != "pure":
                with paddle.no_grad():
                    soft = (
                        batch[2] if args.mode == "service" else teacher(image)
                    )  # <-- distillation
                soft_loss = (
                    decoupled_distillation(logits, soft, label, temperature=args.temperature)
                    if args.loss == "dkd"
                    else distillation(logits, soft, args.temperature)
                )
                loss = args.soft_weight * soft_loss + (1 - args.soft_weight) * loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()
            schedule.step()

            state["step"] += 1
            images += len(image)
            done += 1
            log.step(epoch, state["step"], float(loss), schedule.get_lr())
            if args.save_every and state["step"] % args.save_every == 0:
                save(args, student, optimizer, schedule, scaler, reader, state)
            if args.stop_after and done >= args.stop_after:
                os._exit(9)
        state["epoch"], state["step"] = epoch + 1, 0
        save(args, student, optimizer, schedule, scaler, reader, state)
        if dist.get_rank() == 0:
            paddle.save(student.state_dict(), str(args.output / "student.pdparams"))
        top1, top5 = evaluate(student, test_set, args)
        log.epoch(epoch, images / (time.time() - started), top1, top5)
    if args.mode == "service":
        reader.close()


def make_optimizer(args, student, steps):
    """Momentum with a cosine schedule after a linear warm-up, both by steps."""
    peak = args.lr * args.batch_size * dist.get_world_size() / 32
    warmup = int(args.warmup_epochs * steps)
    cosine = paddle.optimizer.lr.CosineAnnealingDecay(peak, max(1, args.epochs * steps - warmup))
    schedule = paddle.optimizer.lr.LinearWarmup(cosine, warmup, 0.0, peak) if warmup else cosine
    optimizer = paddle.optimizer.Momentum(
        schedule, 0.9, student.parameters(), weight_decay=args.weight_decay
    )
    return schedule, optimizer


def online_teacher(args, classes):
    """The teacher in this process: what distillation costs without a service."""
    teacher = models.build(args.teacher, classes)
    if args.teacher_weights:
        teacher.set_state_dict(paddle.load(args.teacher_weights))
    teacher.eval()
    return teacher


def rest_of(loader, sampler, skip):
    """The batches of this epoch that are left, without loading those before."""
    left = list(sampler)[skip:]
    return iter(
        paddle.io.DataLoader(loader.dataset, batch_sampler=left, num_workers=loader.num_workers)
    )


def save(args, student, optimizer, schedule, scaler, reader, state):
    """Everything that a restarted process needs; the file is whole or not there."""
    state["reader"] = reader.state_dict() if args.mode == "service" else None  # <-- distillation
    checkpoint = {
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "scaler": scaler.state_dict(),
        "random": paddle.get_rng_state(),
        "state": json.dumps(state),
    }
    path = checkpoint_path(args)
    path.parent.mkdir(parents=True, exist_ok=True)
    paddle.save(checkpoint, f"{path}.new")
    os.replace(f"{path}.new", path)


def load(args, student, optimizer, schedule, scaler, reader, state):
    """Go on where a checkpoint was taken."""
    path = checkpoint_path(args)
    if not path.exists():
        return
    checkpoint = paddle.load(str(path))
    student.set_state_dict(checkpoint["student"])
    optimizer.set_state_dict(checkpoint["optimizer"])
    schedule.set_state_dict(checkpoint["schedule"])
    scaler.load_state_dict(checkpoint["scaler"])
    paddle.set_rng_state(checkpoint["random"])
    state.update(json.loads(checkpoint["state"]))
    if args.mode == "service":
        reader.load_state_dict(state["reader"])  # <-- distillation
    print(f"resumed at epoch {state['epoch']}, step {state['step']}", flush=True)


def checkpoint_path(args):
    """Each rank has its own: its reader is at its own place."""
    return args.output / f"checkpoint-{dist.get_rank()}.pdckpt"


@paddle.no_grad()
def evaluate(student, test_set, args):
    """Top-1 and top-5 on the test set."""
    student.eval()
    right = np.zeros(2)
    for image, label in paddle.io.DataLoader(test_set, batch_size=args.batch_size):
        logits = student(image)
        for index, k in enumerate((1, 5)):
            right[index] += float(paddle.metric.accuracy(logits, label, k=k)) * len(label)
    return right / len(test_set)


class Log:
    """Prints, keeps every loss in ``losses-RANK.jsonl``, and VisualDL's curves if it is there."""

    def __init__(self, args):
        args.output.mkdir(parents=True, exist_ok=True)
        self.file = (args.output / f"losses-{dist.get_rank()}.jsonl").open("a")
        self.every, self.rank, self.visual = 20, dist.get_rank(), None
        if self.rank == 0:
            try:
                from visualdl import LogWriter

                self.visual = LogWriter(str(args.output / "visualdl"))
            except ImportError:
                pass

    def step(self, epoch, step, loss, lr):
        """One training step."""
        print(json.dumps({"epoch": epoch, "step": step, "loss": loss}), file=self.file, flush=True)
        if step % self.every == 0 and self.rank == 0:
            print(f"epoch {epoch}, step {step}: loss {loss:.4f}, lr {lr:.4f}", flush=True)
            if self.visual:
                self.visual.add_scalar("loss", loss, step)

    def epoch(self, epoch, speed, top1, top5):
        """One epoch."""
        if self.rank == 0:
            print(f"epoch {epoch}: {speed:.0f} images/s, top-1 {top1:.4f}, top-5 {top5:.4f}",
                  flush=True)  # fmt: skip
            if self.visual:
                self.visual.add_scalar("top-1", top1, epoch)


if __name__ == "__main__":
    main()
