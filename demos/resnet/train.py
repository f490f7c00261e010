"""Train a student, alone or distilled from a teacher.

    python train.py --mode pure                                       # no teacher
    python train.py --mode online --teacher-weights t.pdparams        # teacher in this process
    python train.py --mode service --teachers etcd://127.0.0.1:2379/resnet_teacher
    python train.py --mode service --teachers ... --store labels --views 10   # asked for once
    python -m paddle.distributed.launch --nproc_per_node 2 train.py ...

Everything but the teacher is the same in the three modes. What distillation as a service takes is
marked with <-- distillation.
"""

import argparse
import time
from pathlib import Path

import data
import models
import paddle
import paddle.distributed as dist
from log import Log
from paddle.nn import functional

from edl.distill import DistillReader  # <-- distillation
from edl.distill.losses import decoupled_distillation, distillation  # <-- distillation
from edl.elastic import ElasticBatchSampler, ElasticTraining


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--mode", choices=("pure", "online", "service"), default="pure")
    add("--student", default="resnet18", help="any of paddle.vision.models, or ResNet50_vd")
    add("--teacher", default="resnet50", help="the teacher's network, for --mode online")
    add("--teacher-weights", help="its parameters: a file of paddle.save(net.state_dict(), FILE)")
    add("--teachers", help="etcd://HOST:PORT[,...]/SERVICE, or HOST:PORT[,...], for --mode service")
    add("--store", type=Path, help="a directory of labels: what it has is asked of no teacher")
    add("--views", type=int, default=0, help="augmented views of an image; 0: one for each epoch")
    add("--data", choices=("digits", "cifar10", "cifar100", "folder"), default="digits")
    add("--data-path", help="the CIFAR archive, or the folder with train/ and val/")
    add("--train-images", type=int, default=0, help="use only so many; 0: all")
    add("--image-size", type=int, default=32)
    add("--epochs", type=int, default=10)
    add("--warmup-epochs", type=float, default=1.0)
    add("--batch-size", type=int, default=32, help="of each process")
    add("--lr", type=float, default=0.05, help="for a batch of 32 on one process; it is scaled")
    add("--weight-decay", type=float, default=1e-4)
    add("--loss", choices=("kd", "dkd"), default="kd", help="plain or decoupled distillation")
    add("--temperature", type=float, default=1.0, help="softens both; 1: as the teacher says")
    add("--soft-weight", type=float, default=0.9, help="of the teacher; the labels have the rest")
    add("--amp", action="store_true", help="mixed precision")
    add("--workers", type=int, default=0, help="of the DataLoader")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("output"), help="the same for all ranks")
    add("--save-every", type=int, default=0, help="steps between checkpoints; 0: every epoch")
    add("--log-every", type=int, default=20, help="steps between lines")
    add("--resume", action="store_true", help="go on from the checkpoint in --output, if any")
    args = parser.parse_args()
    if args.mode == "service" and not (args.teachers or args.store):
        parser.error("--mode service needs --teachers, or a --store")
    if args.views < 0:
        parser.error("--views is a number of views, or 0")
    if args.data != "digits" and not args.data_path:
        parser.error(f"--data {args.data} needs --data-path")
    return args


def main():
    """Train."""
    args = parse()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if ranks > 1:
        dist.init_parallel_env()

    train_set, test_set, classes = data.load(args.data, args.data_path, args.image_size, args.seed)
    normalise = data.normalisation(args.data)
    samples = min(args.train_images or len(train_set), len(train_set))
    batches = ElasticBatchSampler(range(samples), args.batch_size, seed=args.seed)
    loader = paddle.io.DataLoader(train_set, batch_sampler=batches, num_workers=args.workers)
    reader = loader
    if args.mode == "service":
        reader = DistillReader(  # <-- distillation: wrap the loader, and batches bring soft labels
            ["image", "label"], ["logits"], loader, args.teachers, store=args.store
        )

    paddle.seed(args.seed + rank)
    student = models.build(args.student, classes)
    teacher = online_teacher(args, classes) if args.mode == "online" else None
    paddle.seed(args.seed + rank)  # again, so that all modes draw the same random numbers
    schedule, optimizer = make_optimizer(args, student, len(batches), ranks)
    scaler = paddle.amp.GradScaler(enable=args.amp and paddle.is_compiled_with_cuda())
    parts = {"student": student, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    training = ElasticTraining(
        args.output / "checkpoints", batches, reader if args.mode == "service" else None, **parts
    )
    if args.resume and training.resume():
        print(f"resumed in epoch {training.epoch} after {training.seen} samples", flush=True)
        if training.resharded:  # the schedule counts steps, which are of another size now
            schedule.step(training.steps_done)
    net = paddle.DataParallel(student) if ranks > 1 else student

    log = Log(args.output, rank, args.log_every, samples)
    for epoch in training.epochs(args.epochs):
        train_set.epoch = epoch % args.views if args.views else epoch
        started, before = time.time(), training.seen
        net.train()
        for raw, label, *soft_labels in reader:
            image = normalise(raw)  # here, on the student's device; teachers do it on theirs
            with amp(args):
                logits = net(image)
                if args.mode == "online":
                    with paddle.no_grad():
                        soft_labels.append(teacher(image))
            loss = criterion(args, logits, label, *soft_labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()
            schedule.step()

            training.step()
            log.step(epoch, training.seen, loss, schedule.get_lr())
            if args.save_every and schedule.last_epoch % args.save_every == 0:
                log.flush()
                training.save()
        speed = (training.seen - before) / (time.time() - started)
        log.epoch(epoch, speed, *evaluate(student, test_set, normalise, args))
    if rank == 0:
        paddle.save(student.state_dict(), str(args.output / "student.pdparams"))
    if args.mode == "service":
        reader.close()  # <-- distillation


def criterion(args, logits, label, soft_labels=None):
    """The labels' cross entropy; with a teacher, its soft labels' too."""
    hard = functional.cross_entropy(logits.astype("float32"), label)
    if soft_labels is None:
        return hard
    if args.loss == "dkd":  # <-- distillation
        soft = decoupled_distillation(logits, soft_labels, label, temperature=args.temperature)
    else:
        soft = distillation(logits, soft_labels, args.temperature)
    return args.soft_weight * soft + (1 - args.soft_weight) * hard


def amp(args):
    """Mixed precision: float16 on GPUs, bfloat16 on CPUs, which compute no float16."""
    half = "float16" if paddle.is_compiled_with_cuda() else "bfloat16"
    return paddle.amp.auto_cast(enable=args.amp, dtype=half)


def make_optimizer(args, student, steps, ranks):
    """Momentum with a cosine schedule after a linear warm-up, both by steps."""
    peak = args.lr * args.batch_size * ranks / 32
    warmup = int(args.warmup_epochs * steps)
    cosine = paddle.optimizer.lr.CosineAnnealingDecay(peak, max(1, args.epochs * steps - warmup))
    schedule = paddle.optimizer.lr.LinearWarmup(cosine, warmup, 0.0, peak) if warmup else cosine
    optimizer = paddle.optimizer.Momentum(
        schedule, 0.9, student.parameters(), weight_decay=args.weight_decay
    )
    return schedule, optimizer


def online_teacher(args, classes):
    """The teacher in this process: what distillation costs without a service."""
    teacher = models.load(args.teacher, classes, args.teacher_weights)
    teacher.eval()
    return teacher


@paddle.no_grad()
def evaluate(student, test_set, normalise, args):
    """Top-1 and top-5 on the test set: a share for each rank, with rank 0's running averages."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if ranks > 1:
        for buffer in student.buffers():
            dist.broadcast(buffer, src=0)
    student.eval()
    share = paddle.io.Subset(test_set, range(rank, len(test_set), ranks))
    right = paddle.zeros([2])
    for image, label in paddle.io.DataLoader(
        share, batch_size=args.batch_size, num_workers=args.workers
    ):
        logits = student(normalise(image))
        hits = (logits.topk(min(5, logits.shape[1]))[1] == label).astype("float32")
        right += paddle.stack([hits[:, 0].sum(), hits.sum()])
    if ranks > 1:
        dist.all_reduce(right)
    return (right / len(test_set)).tolist()


if __name__ == "__main__":
    main()
