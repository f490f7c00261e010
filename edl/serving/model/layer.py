"""A ``paddle.nn.Layer`` as a teacher has it: in evaluation mode, and as a function of arrays."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

from edl.errors import ModelError


def is_layer(value: Any) -> bool:
    """Whether ``value`` is a ``paddle.nn.Layer``; does not import Paddle."""
    paddle = sys.modules.get("paddle")
    return paddle is not None and isinstance(value, paddle.nn.Layer)


@contextlib.contextmanager
def evaluating(layer: Any) -> Iterator[None]:
    """Evaluation mode; afterwards each sublayer is in its own again (frozen ones stay frozen)."""
    modes = [(each, each.training) for each in layer.sublayers(include_self=True)]
    layer.eval()
    try:
        yield
    finally:
        if modes[0][1]:
            layer.train()
        for each, training in modes:
            each.training = training


def layer_function(
    layer: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> Callable[..., tuple[Any, ...]]:
    """What computes ``layer`` without gradients, where its parameters are.

    The function takes an array for each feed by its name; they are the arguments of ``forward`` in
    the order of ``feeds``. It returns the tensors that ``forward`` returns (see ``in_order``).
    bfloat16 is returned as float32, which holds the same values. It raises ModelError if the layer
    or a part of it is in training mode.
    """
    paddle = sys.modules["paddle"]

    def compute(**arrays: Any) -> tuple[Any, ...]:
        check_evaluating(layer)
        with paddle.no_grad():
            place = place_of(layer)
            values = layer(*(paddle.to_tensor(arrays[feed], place=place) for feed in feeds))
        tensors = filter(paddle.is_tensor, paddle.utils.flatten(in_order(values, fetches)))
        return tuple(
            value.astype("float32") if value.dtype == paddle.bfloat16 else value
            for value in tensors
        )

    return compute


def in_order(outputs: Any, fetches: Sequence[str]) -> Any:
    """What ``forward`` returns, in the order of ``fetches``. A dict that has them all is taken by
    name, one that has none of them in its own order, and anything else is in order as it is. Raises
    ModelError for a dict that has some of them only.
    """
    if not isinstance(outputs, Mapping):
        return outputs
    missing = [name for name in fetches if name not in outputs]
    if missing and len(missing) < len(fetches):
        raise ModelError(
            f"the layer returns a dict of {', '.join(map(str, outputs))}, without "
            f"{', '.join(missing)}: name the fetches as it does"
        )
    return [outputs[name] for name in (outputs if missing else fetches)]


def check_evaluating(layer: Any) -> None:
    """Raises ModelError if it, or a part of it, is in training mode."""
    for part in layer.sublayers(include_self=True):
        if part.training:
            raise ModelError(
                f"{type(part).__name__} was put into training mode while it is served; train a "
                "copy of it"
            )


def place_of(layer: Any) -> Any:
    """The device of its first parameter or buffer; None, Paddle's current one, if it has none."""
    weights = itertools.chain(layer.parameters(), layer.buffers())
    return next((weight.place for weight in weights), None)
