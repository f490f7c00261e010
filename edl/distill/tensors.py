"""Predictions as tensors or arrays, as the student wants them, and batches on its device."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import numpy as np

from edl._paddle import import_paddle
from edl.errors import ConfigError

#: What ``return_tensors`` may say, as Paddle's tokenizers say it, and whether that is tensors.
_KINDS = {None: None, "np": False, "pd": True}


def as_tensors(return_tensors: Optional[str], places: Any) -> Optional[bool]:
    """Whether predictions become tensors before a batch goes to its place; None: where the batch's
    slots are tensors. Raises ConfigError for something else, or for arrays on a device.
    """
    if return_tensors not in _KINDS:
        raise ConfigError(f'return_tensors must be "pd", "np" or None, not {return_tensors!r}')
    if places is None:
        return _KINDS[return_tensors]
    if return_tensors == "np":
        raise ConfigError('arrays have no places: leave out return_tensors="np", or places')
    return False  # whoever copies them there makes tensors of them


def convert_predictions(
    predictions: dict[str, np.ndarray], slots: Iterable[Any], wanted: Optional[bool]
) -> dict[str, Any]:
    """``predictions``, as tensors if they are wanted (see ``as_tensors``); strings stay arrays."""
    if wanted is None:
        wanted = any(is_tensor(slot) for slot in slots)
    if not wanted:
        return predictions
    to_tensor = import_paddle("return_tensors").to_tensor
    return {
        name: array if array.dtype == object else to_tensor(array)
        for name, array in predictions.items()
    }


def on_device(reader: Any, places: Any) -> Iterator[Any]:
    """One epoch of ``reader`` with every array and tensor at ``places``. Paddle's DataLoader copies
    the next batches there while the student computes; to a GPU from pinned memory, on a stream of
    its own.
    """
    paddle = import_paddle("places")
    return iter(paddle.io.DataLoader(reader, batch_size=None, places=places))


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a Paddle tensor; does not import Paddle."""
    paddle = sys.modules.get("paddle")
    return paddle is not None and isinstance(value, getattr(paddle, "Tensor", ()))


def nbytes_of(value: Any) -> int:
    """Bytes of an array or a tensor; of anything else, roughly."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_tensor(value):
        return int(value.size) * int(value.element_size())
    return sys.getsizeof(value)
