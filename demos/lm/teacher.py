"""Train a tokenizer and the teacher, and save them for edl teacher --causal-lm.

python teacher.py --out work/teacher
"""

import argparse
from pathlib import Path

import data
import models
import paddle
from train import fit, perplexity

BATCH = 4  # blocks


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="a directory for both")
    add("--classes", type=int, default=2500, help="tokens of the vocabulary")
    add("--steps", type=int, default=2048)
    add("--learning_rate", type=float, default=4e-3)
    add("--reviews", type=int, default=0, help="use only so many; 0: all")
    return parser.parse_args()


def main():
    """Unless it has been done before. The tokenizer is there first, the perplexity last."""
    args = parse()
    done = args.out / "perplexity.json"
    if done.is_file():
        print(f"teacher: in {args.out}, with a perplexity of {done.read_text()}", flush=True)
        return
    train_reviews, test_reviews = data.load(args.reviews)
    data.train_tokenizer(train_reviews, args.classes).save_pretrained(str(args.out))
    tokenizer, classes = models.vocabulary(args.out)
    train_set, test_set = (data.blocks(tokenizer, each) for each in (train_reviews, test_reviews))

    paddle.seed(0)
    teacher = models.qwen3(classes, **models.TEACHER)
    batches = data.loader(train_set, args.steps, BATCH, seed=0)
    for step, loss in enumerate(fit(teacher, batches, args.steps, args.learning_rate), start=1):
        if step % 512 == 0:
            print(f"teacher: step {step} of {args.steps}, loss {loss:.2f}", flush=True)
    teacher.save_pretrained(str(args.out))
    found = perplexity(teacher, test_set)
    print(f"teacher: a perplexity of {found:.1f}", flush=True)
    done.write_text(f"{found:.1f}")


if __name__ == "__main__":
    main()
