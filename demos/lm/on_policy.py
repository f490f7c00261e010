"""Let a student write, and learn from what the teacher would have written: on-policy distillation.

    python train.py --teacher work/teacher --ways 8+8 --fixed_teacher ... --save work/student
    python on_policy.py --teacher work/teacher --student work/student --fixed_teacher ...

There is no loader to wrap: which texts the teacher is asked about, the student decides in each
step. Source: Agarwal et al., "On-Policy Distillation of Language Models" (GKD), ICLR 2024.
"""

import argparse

import data
import models
import paddle
from train import perplexity

from edl.distill import TeacherPool
from edl.distill.losses import sparse_distillation

BATCH = 8  # texts
PROMPT = 16  # tokens of a review, of which the student goes on with
NEW = 32  # tokens
TESTS = 8  # batches


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--teacher", required=True, help="its directory, for its tokenizer")
    add("--student", required=True, help="a directory that train.py saved one in")
    add("--fixed_teacher", help="HOST:PORT[,...]")
    add("--etcd", help="HOST:PORT of the etcd in which teachers register, instead")
    add("--service", default="qwen3", help="... and as what")
    add("--steps", type=int, default=64)
    add("--seed", type=int, default=0)
    add("--learning_rate", type=float, default=1e-3)
    add("--divergence", choices=("reverse_kl", "jsd", "forward_kl"), default="reverse_kl")
    add("--top_k", type=int, default=64, help="classes of each token; the rest are one more")
    add("--reviews", type=int, default=0, help="use only so many; 0: all")
    add("--save", help="a directory for the student")
    args = parser.parse_args()
    if not (args.fixed_teacher or args.etcd):
        parser.error("name teachers with --fixed_teacher, or --etcd")
    return args


def main():
    """Train, and test before and after it."""
    args = parse()
    paddle.seed(args.seed)
    tokenizer, _ = models.vocabulary(args.teacher)
    train_set, test_set = (data.blocks(tokenizer, reviews) for reviews in data.load(args.reviews))
    student = models.load(args.student)
    teachers = args.fixed_teacher or f"etcd://{args.etcd}/{args.service}"
    optimizer = paddle.optimizer.AdamW(
        args.learning_rate,
        parameters=student.parameters(),
        grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0),
    )
    with TeacherPool(["logits"], teachers, top_k=args.top_k, tokenizer=args.teacher) as teacher:
        report(args, "before", student, teacher, test_set)
        for batch in data.loader(train_set, args.steps, BATCH, args.seed):
            loss = divergence(args, student, teacher, batch["input_ids"][:, :PROMPT])
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
        report(args, "after", student, teacher, test_set)
    if args.save:
        student.save_pretrained(args.save)
        tokenizer.save_pretrained(args.save)


def divergence(args, student, teacher, prompts):
    """Of student and teacher, on what the student makes of these int64 (BATCH, PROMPT)."""
    texts = write(student, prompts)[:, :-1]
    labels = teacher.infer({"input_ids": texts})
    parts = (labels[f"logits.{part}"] for part in ("values", "indices", "logsumexp"))
    written = paddle.arange(texts.shape[1]) >= PROMPT - 1  # positions whose next token is its own
    return sparse_distillation(
        models.logits_of(student, texts),
        *parts,
        divergence=args.divergence,
        mask=written.expand(texts.shape),
    )


@paddle.no_grad()
def write(student, prompts):
    """The prompts, and NEW tokens after each, drawn as the student says."""
    student.eval()
    texts = prompts
    for _ in range(NEW):
        logits = models.logits_of(student, texts)[:, -1]
        token = paddle.multinomial(paddle.nn.functional.softmax(logits))
        texts = paddle.concat([texts, token], axis=1)
    student.train()
    return texts


def report(args, when, student, teacher, test_set):
    """On reviews, and on texts of the student's own, from prompts that nobody was trained on."""
    found = perplexity(student, test_set)
    tests = data.loader(test_set, TESTS, BATCH, seed=1)
    with paddle.no_grad():
        own = [
            float(divergence(args, student, teacher, batch["input_ids"][:, :PROMPT]))
            for batch in tests
        ]
    print(
        f"{when}: perplexity {found:.1f}, {args.divergence} on its own texts "
        f"{sum(own) / len(own):.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
