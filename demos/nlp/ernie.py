"""Fine-tune a checkpoint of PaddleNLP on all labels, and export it for edl teacher.

    python ernie.py --checkpoint ernie-3.0-medium-zh --out sentiment/ernie

The directory holds what ``save_pretrained`` of an ERNIE (or another model for sequences) and of its
tokenizer wrote. ``--epochs 0``: it has been fine-tuned already. Students then need ``--ernie`` with
the same directory, for the ids of its tokenizer.
"""

import argparse

import data
import teacher
from paddle import nn

from edl.serving import export_model


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", required=True, help="the directory")
    add("--out", required=True, help="a directory for the model")
    add("--epochs", type=int, default=2)
    add("--learning_rate", type=float, default=5e-5)
    add("--reviews", type=int, default=0, help="use only so many; 0: all")
    return parser.parse_args()


class Ernie(nn.Layer):
    """A classifier of PaddleNLP with the feeds and the one fetch that teachers have here.

    (input_ids int64 (rows, length), input_mask float32 (rows, length)) -> logits (rows, 2).
    """

    def __init__(self, checkpoint):
        super().__init__()
        from paddlenlp.transformers import AutoModelForSequenceClassification

        self.model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, num_labels=data.CLASSES
        )

    def forward(self, input_ids, input_mask):
        return self.model(input_ids, attention_mask=input_mask)


def main():
    """Fine-tune, test, export."""
    args = parse()
    train_set, test_set = data.load(args.reviews)
    tokenize = data.teacher_tokenizer(train_set, args.checkpoint)
    train_samples, test_samples = (
        teacher.samples(reviews, tokenize) for reviews in (train_set, test_set)
    )
    ernie = Ernie(args.checkpoint)
    teacher.fit(ernie, train_samples, args.epochs, args.learning_rate)
    teacher.report("ERNIE", train_samples, teacher.accuracy(ernie, test_samples))
    export_model(ernie, args.out, teacher.FEEDS, ["logits"])


if __name__ == "__main__":
    main()
