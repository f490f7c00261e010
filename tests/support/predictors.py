"""Predictors that cost nothing, for tests of everything around them.

Named on the command line as ``--python tests.support.predictors:NAME``.
"""

import os
import signal
import time
from dataclasses import replace

import numpy as np

from edl.errors import BadRequest
from edl.serving import Description, TensorSpec

DELAY = float(os.environ.get("EDL_TEST_DELAY", "0"))


class Sums:
    """prob: for each row its sum over ``img`` (any shape), twice, and a mark of the teacher."""

    description = Description(
        {"img": TensorSpec((-1,), "float32")}, {"prob": TensorSpec((2,), "float32")}
    )

    def run(self, feeds, fetches):
        time.sleep(DELAY)
        total = feeds["img"].reshape(len(feeds["img"]), -1).sum(axis=1)
        return {"prob": np.stack([total, 2 * total], axis=1)}


class Triple:
    """prob: for each row of ``img`` its sum, once, twice and three times."""

    description = Description(
        {"img": TensorSpec((-1,), "float32")},
        {"prob": TensorSpec((3,), "float32")},
        fingerprint="triple",
    )

    def run(self, feeds, fetches):
        total = feeds["img"].sum(axis=1, keepdims=True)
        return {"prob": total * np.arange(1, 4, dtype="float32")}


class Images(Sums):
    """The same for images of three dimensions."""

    description = Description(
        {"img": TensorSpec((-1, -1, -1), "float32")}, {"prob": TensorSpec((2,), "float32")}
    )


class Fragile(Sums):
    """Raises for a negative sum, dies for an infinite one, answers with too few rows for NaN."""

    def run(self, feeds, fetches):
        outputs = super().run(feeds, fetches)
        total = outputs["prob"][:, 0]
        if np.isinf(total).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (total < 0).any():
            raise ValueError("negative input")
        if np.isnan(total).any():
            return {"prob": outputs["prob"][:-1]}
        return outputs


class FragileModel(Fragile):
    """The same of a model that can be told from others, so that its labels may be stored."""

    description = replace(Fragile.description, fingerprint="fragile")


class Picky(Sums):
    """Refuses a negative sum."""

    def run(self, feeds, fetches):
        outputs = super().run(feeds, fetches)
        if (outputs["prob"] < 0).any():
            raise BadRequest(f"'img' holds {outputs['prob'].min():g}")
        return outputs


class Hollow(Sums):
    """Answers, but does not compute."""

    description = Description(
        {"img": TensorSpec((4,), "float32")}, {"prob": TensorSpec((2,), "float32")}
    )
    warmed_up = False

    def run(self, feeds, fetches):
        if self.warmed_up:
            raise RuntimeError("hollow")
        self.warmed_up = True
        return super().run(feeds, fetches)


class Slow(Sums):
    """Takes a while to load."""

    def __init__(self):
        time.sleep(1.5)


class Broken(Sums):
    """Cannot be made."""

    def __init__(self):
        raise RuntimeError("no such weights")


class Echo:
    """Every dtype that can travel, there and back."""

    _KINDS = ("int64", "float32", "int32", "float64", "int16", "float16", "uint8", "int8", "bool")
    description = Description(
        {f"in_{kind}": TensorSpec((-1,), kind) for kind in _KINDS},
        {f"out_{kind}": TensorSpec((-1,), kind) for kind in _KINDS},
    )

    def run(self, feeds, fetches):
        return {name: feeds[name.replace("out_", "in_")] for name in fetches}


class Sequences:
    """twice: each token twice, and again for each of two channels. seen: tokens of the row as it
    was computed, and how many of them the mask leaves out.
    """

    description = Description(
        {
            "ids": TensorSpec((-1,), "int64", pad=7),
            "mask": TensorSpec((-1,), "int64", pad=0, optional=True),
        },
        {
            "twice": TensorSpec((-1, 2), "float32", pad=0.0),
            "seen": TensorSpec((2,), "int64"),
        },
    )

    def run(self, feeds, fetches):
        time.sleep(DELAY)
        ids = feeds["ids"]
        mask = feeds.get("mask", np.ones_like(ids))
        twice = np.repeat(2.0 * ids[:, :, None], 2, axis=2).astype("f4")
        seen = np.stack([(ids == 7).sum(1), (mask == 0).sum(1)], axis=1)
        return {"twice": twice, "seen": seen}


class Tokens:
    """logits: (rows, tokens, classes) for ids (rows, tokens), always the same for an id."""

    classes = int(os.environ.get("EDL_TEST_CLASSES", "1000"))
    description = Description(
        {"ids": TensorSpec((-1,), "int64")}, {"logits": TensorSpec((-1, classes), "float32")}
    )

    def __init__(self):
        generator = np.random.default_rng(0)
        self._table = generator.standard_normal((100, self.classes), np.float32) * 3

    def run(self, feeds, fetches):
        time.sleep(DELAY)
        return {"logits": self._table[feeds["ids"]]}


class Texts(Tokens):
    """The same of rows of different length."""

    description = Description(
        {"ids": TensorSpec((-1,), "int64", pad=0)},
        {"logits": TensorSpec((-1, Tokens.classes), "float32", pad=0.0)},
        fingerprint="texts",
    )

    @classmethod
    def logits(cls, ids):
        """What a teacher of any process says."""
        return cls()._table[ids]


class Encoder:
    """logits (rows, tokens, 11) and pooled (rows, 8) of a small Transformer of Paddle, always with
    the same weights, in which no token sees where the mask is 0.
    """

    classes = 11
    description = Description(
        {
            "ids": TensorSpec((-1,), "int64", pad=0),
            "mask": TensorSpec((-1,), "int64", pad=0),
        },
        {
            "logits": TensorSpec((-1, classes), "float32", pad=0.0),
            "pooled": TensorSpec((8,), "float32"),
        },
        fingerprint="encoder",
    )

    def __init__(self):
        import paddle

        self._paddle = paddle
        generator = np.random.default_rng(0)
        self._layers = [
            paddle.nn.Embedding(50, 8),
            paddle.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0),
            paddle.nn.Linear(8, self.classes),
        ]
        for layer in self._layers:
            layer.eval()
            for weight in layer.parameters():
                weight.set_value(generator.standard_normal(weight.shape).astype("f4"))

    def run(self, feeds, fetches):
        time.sleep(DELAY)
        paddle = self._paddle
        embed, encode, head = self._layers
        with paddle.no_grad():
            mask = paddle.to_tensor(feeds["mask"]).astype("float32")
            hidden = encode(
                embed(paddle.to_tensor(feeds["ids"])), (mask[:, None, None, :] - 1) * 1e9
            )
            outputs = {
                "logits": head(hidden),
                "pooled": (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True),
            }
        return {name: outputs[name].numpy() for name in fetches}
