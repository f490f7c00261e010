"""How a DataLoader around a reader makes batches of what the reader yields: as it would by itself,
but what fails is raised by the student, in the batch's turn, and memory is held until it is handed
over.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Optional

import numpy as np

from edl.distill.tensors import is_tensor
from edl.distill.workers import error_as_bytes, error_from_bytes
from edl.errors import SourceError

#: What Paddle makes tensors of (uint16 is its bfloat16).
_DTYPES = (
    *("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "complex64", "complex128"),
)


class Parcel:
    """Goes before a batch, on its way from Paddle's thread or worker to the student.

    It holds the batch until it has been pickled. A worker puts the memory of a batch's tensors into
    a queue, not the tensors, and Paddle (3.3) does not let that memory live by itself. A thread
    pickles it when it gets to that, and what then is there may be another batch's, or nobody's.
    What else is in the queue's item lives as long. The batch does not travel with its parcel.

    ``error``: why there is no batch.
    """

    def __init__(self, batch: Any = None, error: Optional[BaseException] = None) -> None:
        self._batch = batch
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (None if self.error is None else error_as_bytes(self.error),)


def _arrived(error: Optional[bytes]) -> Parcel:
    return Parcel(error=None if error is None else error_from_bytes(error))


class Collate:
    """The ``collate_fn`` of ``loader``, or the one of Paddle's that it uses, for its own use: it
    returns a parcel and the batch. Raises nothing.
    """

    def __init__(self, loader: Any) -> None:
        module: Any = sys.modules["paddle"].io.dataloader.collate
        ours = module.default_collate_fn if loader.auto_collate_batch else module.default_convert_fn
        self._collate: Callable[[Any], Any] = loader.collate_fn or ours
        self._workers, self._shared = loader.num_workers > 0, loader.use_shared_memory

    def __call__(self, items: Any) -> list[Any]:
        """The parcel of what is made of ``items``, and that itself."""
        try:
            batch = self._collate(items)
            for name, slot in _slots("", batch):
                self._check(name, slot)
        except Exception as error:
            return self.failed(error)
        return [Parcel(batch), batch]

    def failed(self, error: BaseException) -> list[Any]:
        """What is returned instead of a batch that cannot be made."""
        return [Parcel(error=error), np.zeros(1)]  # Paddle's queues want an array

    def _check(self, name: str, slot: Any) -> None:
        dtype = getattr(slot, "dtype", None)
        if isinstance(dtype, np.dtype) and (dtype.name not in _DTYPES or not dtype.isnative):
            raise SourceError(
                f"slot {name} of a batch is an array of dtype {dtype}, of which Paddle makes no "
                "tensor for a DataLoader or places=...; convert it, or let it be a list"
            )
        if self._workers and not slot.size and (self._shared or is_tensor(slot)):
            raise SourceError(  # Paddle raises an error without words, or forgets the shape
                f"slot {name} of a batch has no elements, which a DataLoader's workers do not hand "
                "over: let it be an array, and set use_shared_memory=False"
            )


def unpacked(parcels: Iterable[Any]) -> Iterator[Any]:
    """The batches. Raises the error of one that could not be made."""
    for parcel, batch in parcels:
        if parcel.error is not None:
            raise parcel.error
        yield batch
        del parcel, batch


def _slots(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """All arrays and tensors that are in ``value``, as Paddle looks for them, and where each is."""
    if isinstance(value, np.ndarray) or is_tensor(value):
        yield name or "0", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _slots(f"{name}[{key!r}]", part)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for number, part in enumerate(value):
            yield from _slots(f"{name}[{number}]", part)
