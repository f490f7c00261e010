"""How fast teachers label text, and in how many bytes: no student is trained.

python speed.py --teacher work/teacher --ways full 8+8 --fixed_teacher 127.0.0.1:9292
"""

import time

import data
import models
from train import BATCH, distilled, form_of, note, parse

from edl.serving.wire.labels import LabelForm


def main():
    """The options are train.py's."""
    args = parse()
    tokenizer, classes = models.vocabulary(args.teacher)
    reviews, _ = data.load(args.reviews)
    blocks = data.blocks(tokenizer, reviews)
    for way in args.ways:
        with distilled(args, data.loader(blocks, args.steps, BATCH, args.seed), way) as reader:
            batches = iter(reader)
            next(batches)  # teachers are found, and connected to
            started = time.perf_counter()
            count = sum(1 for _ in batches)
        rate = count * BATCH * data.LENGTH / (time.perf_counter() - started)
        size = bytes_per_token(way, classes)
        print(f"{way}: {size} bytes per token, {rate:,.0f} tokens/s", flush=True)
        note(args.results, way=way, bytes_per_token=size, tokens_per_second=rate)


def bytes_per_token(way, classes):
    """Of the labels on the wire."""
    form = form_of(way)
    return LabelForm(**form).bytes_per_position(classes) if form else 4 * classes


if __name__ == "__main__":
    main()
