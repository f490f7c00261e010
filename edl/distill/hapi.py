"""The reader where ``paddle.Model`` takes data.

``Model.fit``, ``evaluate`` and ``predict`` put whatever is a ``Dataset`` into a DataLoader with a
batch sampler, which no IterableDataset can have. Anything else that can be iterated they take as it
is, so a reader is handed to them as :class:`Batches`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any, Callable

from edl.errors import ConfigError


class Batches:
    """A reader's batches as ``paddle.Model`` takes them: the network's inputs, then the labels."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __iter__(self) -> Iterator[Any]:
        """One epoch. A dict's slots come in its own order, predictions last: Paddle would take them
        in the order of their names.
        """
        for batch in self._reader:
            yield list(batch.values()) if isinstance(batch, dict) else batch

    def __len__(self) -> int:
        return len(self._reader)


def tend_models(kind: type, form: Callable[[Any], str]) -> None:
    """Let ``paddle.Model`` take what is of ``kind`` as train_data, eval_data and test_data.

    ``form``: whether one yields samples, sample lists or batches. Anything but batches raises
    ConfigError.
    """
    model: Any = sys.modules["paddle"].Model

    def batches(value: Any) -> Any:
        if not isinstance(value, kind):
            return value
        if form(value) not in ("", "batch"):  # one without a source has its own words for it
            raise ConfigError(
                f"paddle.Model takes batches, but this reader yields one {form(value)} at a time: "
                "use set_batch_generator or set_loader"
            )
        return Batches(value)

    def taking(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            named = {name: batches(value) for name, value in kwargs.items()}
            return method(self, *map(batches, args), **named)

        return call

    for name in ("fit", "evaluate", "predict"):
        setattr(model, name, taking(getattr(model, name)))
