"""The forms in which a source yields data, and how predictions are added to each.

==============  ===============================  ==============================================
form            the source yields                the student gets
==============  ===============================  ==============================================
sample          one sample: a tuple of slots     the sample's slots, then its predictions
sample list     a list of samples                a list of such samples
batch           a tuple, list or dict of slots   the same with the predictions appended (tuple,
                with rows first                  list) or added by name (dict)
==============  ===============================  ==============================================

A slot is a numpy array, a Paddle tensor, or anything numpy takes. What the source yielded is passed
on as the same objects; arrays for the teacher are views of it (samples have to be stacked).
Predictions are numpy arrays, or tensors where a batch's slots are tensors, unless the reader is
told which (see ``tensors``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from edl.distill.tensors import convert_predictions, is_tensor, nbytes_of
from edl.errors import SourceError


@dataclass
class SampleBatch:
    """Samples that are sent to a teacher together."""

    samples: list[tuple]
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    epoch: int = 0
    spared = 0

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    @property
    def nbytes(self) -> int:
        """Roughly what they hold: the first sample's size times their number."""
        if not self.samples:
            return 0
        return len(self.samples) * sum(nbytes_of(slot) for slot in self.samples[0])

    def has(self, name: str) -> bool:
        """See Columns."""
        return True

    def column(self, index: int, name: str, start: int, stop: int) -> np.ndarray:
        """Slot ``index`` of samples ``start:stop``, stacked. Raises SourceError."""
        try:
            return np.stack([as_array(sample[index]) for sample in self.samples[start:stop]])
        except IndexError:
            shortest = min(len(sample) for sample in self.samples)
            raise SourceError(
                f"slot {index} ({name!r}) is missing: a sample has {shortest} slots"
            ) from None
        except ValueError as error:
            raise SourceError(f"slot {index} ({name!r}) cannot be stacked: {error}") from error

    def with_predictions(self, as_tensors: Optional[bool] = None) -> list[tuple]:
        """Every sample with its own rows of the predictions."""
        columns = convert_predictions(self.predictions, (), as_tensors).values()
        return [
            (*sample, *(column[row] for column in columns))
            for row, sample in enumerate(self.samples)
        ]


@dataclass
class ArrayBatch:
    """A batch of slots with rows first; ``value`` is what the source yielded."""

    value: Any
    rows: int
    nbytes: int
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    epoch: int = 0
    _arrays: dict[int, np.ndarray] = field(default_factory=dict)
    spared = 0

    def has(self, name: str) -> bool:
        """See Columns."""
        return True

    def column(self, index: int, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop`` of a slot, without a copy. Raises SourceError."""
        array = self._arrays.get(index)
        if array is None:
            try:
                array = as_array(_slot(self.value, index, name))
            except ValueError as error:  # such as lists that numpy cannot make an array of
                raise SourceError(
                    f"slot {index} ({name!r}) is no array: {error}. Rows that differ in length "
                    "cannot be sent: pad them in the source to the longest, and name their mask, "
                    "or lengths, with lengths="
                ) from error
            if not array.ndim or len(array) != self.rows:
                raise SourceError(
                    f"slot {index} ({name!r}) has shape {array.shape}, but the batch has "
                    f"{self.rows} rows"
                )
            self._arrays[index] = array
        return array if stop - start == self.rows else array[start:stop]

    def with_predictions(self, as_tensors: Optional[bool] = None) -> Any:
        """The batch as it came, followed by the predictions."""
        value = self.value
        slots = value.values() if isinstance(value, dict) else _slots(value)
        predictions = convert_predictions(self.predictions, slots, as_tensors)
        if isinstance(value, dict):
            clash = value.keys() & predictions.keys()
            if clash:
                raise SourceError(f"the batch already has {', '.join(sorted(clash))}")
            return {**value, **predictions}
        if isinstance(value, list):
            return [*value, *predictions.values()]
        return (*_slots(value), *predictions.values())


def read_samples(samples: Iterable[Any], rows: int, epoch: int = 0) -> Iterator[SampleBatch]:
    """Samples, ``rows`` at a time."""
    iterator = iter(samples)
    while True:
        group = [_sample(sample) for sample in itertools.islice(iterator, rows)]
        if not group:
            return
        yield SampleBatch(group, epoch=epoch)


def read_sample_lists(lists: Iterable[Any], epoch: int = 0) -> Iterator[SampleBatch]:
    """Lists of samples, one list at a time. Raises SourceError for anything else."""
    for item in lists:
        if not isinstance(item, (list, tuple)):
            raise SourceError(
                f"a sample list generator must yield lists of samples, not {type(item).__name__}"
            )
        yield SampleBatch([_sample(sample) for sample in item], epoch=epoch)


def read_batches(
    batches: Iterable[Any], names: Sequence[Optional[str]], epoch: int = 0
) -> Iterator[ArrayBatch]:
    """Batches of slots. Raises SourceError for one whose rows cannot be counted."""
    for value in batches:
        yield ArrayBatch(value, _count_rows(value, names), _batch_nbytes(value), epoch=epoch)


def _sample(value: Any) -> tuple:
    if isinstance(value, (tuple, list)):
        return tuple(value)
    return (value,)


def _slots(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _slot(value: Any, index: int, name: str) -> Any:
    if isinstance(value, dict):
        if name not in value:
            raise SourceError(f"the batch has no {name!r}; it has {', '.join(map(str, value))}")
        return value[name]
    slots = _slots(value)
    if index >= len(slots):
        raise SourceError(f"slot {index} ({name!r}) is missing: the batch has {len(slots)} slots")
    return slots[index]


def _count_rows(value: Any, names: Sequence[Optional[str]]) -> int:
    """Rows of the first slot that has a name."""
    for index, name in enumerate(names):
        if name is None or (isinstance(value, dict) and name not in value):
            continue
        slot = _slot(value, index, name)
        if isinstance(
            slot, (list, tuple)
        ):  # rows may be ragged, if the teacher does not feed on them
            return len(slot)
        shape = getattr(slot, "shape", None)
        if shape is None:
            shape = np.shape(slot)
        if len(shape):
            return int(shape[0])
        raise SourceError(f"slot {index} ({name!r}) has no rows: its shape is ()")
    raise SourceError(f"none of {list(names)} is in a batch of type {type(value).__name__}")


def _batch_nbytes(value: Any) -> int:
    slots = value.values() if isinstance(value, dict) else _slots(value)
    return sum(nbytes_of(slot) for slot in slots)


def as_array(value: Any) -> np.ndarray:
    """``value`` as a numpy array: itself, a view of a CPU tensor's memory, or a conversion."""
    if isinstance(value, np.ndarray):
        return value
    if is_tensor(value):
        return _tensor_memory(value)
    return np.asarray(value)


def _tensor_memory(tensor: Any) -> np.ndarray:
    if tensor.place.is_cpu_place():
        try:
            return np.from_dlpack(tensor.detach())
        except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
            pass  # a dtype (bfloat16) or a Paddle for which numpy cannot share the memory
    return tensor.numpy()


def join_parts(
    parts: Sequence[dict[str, np.ndarray]], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The predictions of a whole batch from those of its tasks, rows in order."""
    if len(parts) == 1:
        arrays = {name: parts[0][name] for name in names}
        return {n: a if a.flags.aligned else a.copy() for n, a in arrays.items()}
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
