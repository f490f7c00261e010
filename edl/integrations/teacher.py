"""A teacher that is somewhere else, in the place of one that is a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edl._paddle import import_paddle
from edl.distill.settings import check_names
from edl.errors import ConfigError, SourceError

paddle = import_paddle("RemoteTeacher")


class RemoteTeacher(paddle.nn.Layer):  # type: ignore[name-defined]
    """A layer that answers with the soft labels of the batch that the student is at, whatever it is
    called with::

        teacher = RemoteTeacher(["logits"])
        for img, label in teacher.batches(reader):
            assert teacher(img)[0].shape[0] == img.shape[0]

    ``predicts``: the predictions of the reader, in its order. Each has a sublayer of its name,
    whose output it is, for those who look at outputs by hooks. It has no weights, and nothing to
    train. Raises ConfigError if ``predicts`` is no list of different names.
    """

    def __init__(self, predicts: Sequence[str]) -> None:
        super().__init__()
        self.names = [name for name in check_names("predicts", predicts) if name is not None]
        self._held: list[Any] = []
        for name in self.names:
            self.add_sublayer(name, paddle.nn.Identity())

    def batches(self, reader: Iterable[Any]) -> Iterator[Any]:
        """The reader's batches without their predictions, which the teacher holds until the next
        one. Raises SourceError for a batch that has none.
        """
        for batch in reader:
            slots, predictions = self._split(batch)
            self.hold(*predictions)
            yield slots

    def hold(self, *predictions: Any) -> None:
        """What to answer with from now on: an array or tensor for each of ``predicts``, rows first.
        Raises ConfigError if there are more or fewer.
        """
        if len(predictions) != len(self.names):
            raise ConfigError(
                f"{len(predictions)} predictions were given for {', '.join(self.names)}"
            )
        self._held = [
            value.detach() if isinstance(value, paddle.Tensor) else paddle.to_tensor(value)
            for value in predictions
        ]

    def forward(self, *inputs: Any, **_: Any) -> list[Any]:
        """The predictions of the batch, one tensor for each of ``predicts``, without gradients.

        Raises ConfigError if there are none, or if they are those of another batch: of other rows
        than the first of ``inputs``.
        """
        if not self._held:
            raise ConfigError(
                "this teacher has been told no predictions: iterate over its batches(reader)"
            )
        held = self._held[0].shape[0]
        if inputs and inputs[0].shape[0] != held:
            raise ConfigError(
                f"the batch has {inputs[0].shape[0]} rows, but the teacher's predictions have "
                f"{held}: they are of another batch"
            )
        return [answer(value) for answer, value in zip(self.children(), self._held)]

    def _split(self, batch: Any) -> tuple[Any, Sequence[Any]]:
        """A batch's slots, and its predictions."""
        count = len(self.names)
        if isinstance(batch, dict) and set(self.names) <= set(batch):
            slots = {name: slot for name, slot in batch.items() if name not in self.names}
            return slots, [batch[name] for name in self.names]
        if isinstance(batch, (tuple, list)) and len(batch) > count:
            return batch[:-count], batch[-count:]
        raise SourceError(
            f"a batch of type {type(batch).__name__} with {len(batch)} slots does not have "
            f"{', '.join(self.names)} behind its own"
        )
