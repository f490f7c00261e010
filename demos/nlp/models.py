"""Teachers and students. A teacher takes padded ids and a mask, as ERNIE does; a student, ids."""

import paddle
from data import CHARACTERS, CLASSES, WORDS
from paddle import nn
from paddle.nn import functional

BUCKETS = 1 << 18
LONGEST = 3


class NGrams(nn.Layer):
    """A linear model of hashed n-grams: of one, two and three characters.

    (input_ids int64 (rows, length), input_mask float32 (rows, length)) -> logits (rows, outputs).
    """

    def __init__(self, outputs=CLASSES):
        super().__init__()
        zero = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))
        self.weights = nn.Embedding(BUCKETS, outputs, weight_attr=zero)

    def forward(self, input_ids, input_mask):
        hashes, mask, total, count = input_ids, input_mask, 0, 1
        for size in range(1, LONGEST + 1):
            if size > 1:  # one character more
                hashes = hashes[:, :-1] * 1000003 + input_ids[:, size - 1 :]
                mask = mask[:, :-1] * input_mask[:, size - 1 :]
            total += (self.weights(hashes % BUCKETS) * mask.unsqueeze(-1)).sum(axis=1)
            count += mask.sum(axis=1, keepdim=True)
        return total / count.sqrt()


class Together(nn.Layer):
    """Several NGrams in one program, which answers for each of them by name."""

    def __init__(self, teachers):
        super().__init__()
        self.count = len(teachers)
        self.ngrams = NGrams(CLASSES * self.count)
        weights = [teacher.weights.weight for teacher in teachers]
        self.ngrams.weights.weight.set_value(paddle.concat(weights, axis=1))

    def forward(self, input_ids, input_mask):
        return self.ngrams(input_ids, input_mask).split(self.count, axis=1)


class BOW(nn.Layer):
    """A bag of words: ids int64 (rows, length) -> logits (rows, 2)."""

    def __init__(self, size=32):
        super().__init__()
        self.embedding = embedding(WORDS, size)
        self.fc = nn.Linear(size, CLASSES)

    def forward(self, ids):
        return self.fc(functional.softsign(self.embedding(ids).sum(axis=1)))


class CNN(nn.Layer):
    """A convolution over three characters: ids int64 (rows, length) -> logits (rows, 2)."""

    def __init__(self, size=32):
        super().__init__()
        self.embedding = embedding(CHARACTERS, size)
        self.convolution = nn.Conv1D(size, size, 3, padding=1)
        self.fc = nn.Linear(size, CLASSES)

    def forward(self, ids):
        hidden = self.convolution(self.embedding(ids).transpose([0, 2, 1]))
        return self.fc(functional.adaptive_max_pool1d(functional.relu(hidden), 1).squeeze(-1))


def embedding(entries, size):
    """An embedding whose padding is zero."""
    normal = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, 0.1))
    return nn.Embedding(entries, size, padding_idx=0, weight_attr=normal)


STUDENTS = {"bow": BOW, "cnn": CNN}
