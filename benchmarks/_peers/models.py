"""The models behind the teachers of peers.py: such that do nothing, and real ones to be exported.

``edl teacher --python _peers.models:images`` hosts the first of them.

    python -m _peers.models resnet18 DIRECTORY
    python -m _peers.models sentences DIRECTORY
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np

from _peers.work import NOTHING, WORDS
from edl.serving import Description, TensorSpec, export_model


class NoModel:
    """Answers at once, with what peers.py can tell right from wrong by."""

    def __init__(self, name: str) -> None:
        self._work = NOTHING[name]
        feed = TensorSpec(self._work.shape[1:], self._work.dtype)
        fetches = {name: TensorSpec(*kind) for name, kind in self._work.kinds.items()}
        self.description = Description({self._work.feed: feed}, fetches)

    def run(self, feeds: dict[str, np.ndarray], fetches: list[str]) -> dict[str, np.ndarray]:
        answer = dict(zip(self._work.fetches, self._work.answer(feeds[self._work.feed])))
        return {name: answer[name] for name in fetches}


images = partial(NoModel, "3x224x224")
digits = partial(NoModel, "1x28x28")
tokens = partial(NoModel, "8x2048")
row = partial(NoModel, "row")


def export(name: str, directory: str) -> None:
    """Write a model of Paddle with random weights."""
    import paddle

    paddle.seed(0)

    class Sentences(paddle.nn.Layer):
        """Convolutions over words; what a row is filled up with (0) changes nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = paddle.nn.Embedding(WORDS, 256)
            self.convolve = paddle.nn.Conv1D(256, 256, 3, padding=1)
            self.head = paddle.nn.Linear(256, 16)

        def forward(self, ids):  # type: ignore[no-untyped-def]
            there = (ids > 0).astype("float32").unsqueeze(1)
            words = self.embed(ids).transpose([0, 2, 1]) * there
            found = paddle.nn.functional.relu(self.convolve(words)) * there
            return self.head(found.max(axis=2))

    if name == "resnet18":
        network = paddle.vision.models.resnet18()
        export_model(network, directory, {"img": ((3, 224, 224), "float32")}, ["logits"])
    else:
        export_model(Sentences(), directory, {"ids": ((-1,), "int64")}, ["logits"])


if __name__ == "__main__":
    export(*sys.argv[1:])
