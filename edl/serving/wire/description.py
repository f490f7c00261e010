"""What a teacher serves: feeds and fetches with their shapes and dtypes.

The same description is what the model's prototxt says, what the registry holds for each
teacher, and what a teacher answers when it is asked. Shapes are without the batch dimension;
-1 stands for "any".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edl.errors import ConfigError, WireError
from edl.serving.wire.tensor import elem_type_of

#: A baidu_std method of our own beside Paddle Serving's: the payload of its answer is the
#: description as JSON. A server without it answers "unknown service", as brpc does.
DESCRIBE_SERVICE, DESCRIBE_METHOD = "edl.TeacherService", "describe"


@dataclass(frozen=True)
class TensorSpec:
    """One feed or fetch: shape of one row (-1: any size), and numpy dtype name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def has_fixed_size(self) -> bool:
        """Whether all rows take the same number of bytes."""
        return -1 not in self.shape and self.dtype != "str"

    def zeros(self) -> np.ndarray:
        """One row of zeros, if it has a fixed size."""
        return np.zeros((1, *self.shape), self.dtype)

    def mismatch(self, array: np.ndarray) -> str:
        """Why ``array`` (rows first) is not of this kind, or an empty string if it is."""
        strings = self.dtype == "str" and array.dtype.kind in "OUS"
        if array.dtype != np.dtype(self.dtype) and not strings:
            return f"expected dtype {self.dtype}, got {array.dtype}"
        row = array.shape[1:]
        fits = len(row) == len(self.shape) and all(
            want in (-1, have) for want, have in zip(self.shape, row)
        )
        if not array.ndim or not fits:
            wanted = ", ".join(["rows", *("any" if size < 0 else str(size) for size in self.shape)])
            return f"expected shape ({wanted}), got {array.shape}"
        return ""

    def conform(self, array: np.ndarray) -> np.ndarray:
        """``array`` with the row shape and float/integer width that the teacher expects.

        Rows with the right number of elements are reshaped (a flat 784 to 1x28x28, as Paddle
        Serving's client does). A different width of the same kind (float64 for float32, int32
        for int64) is converted. Anything else is returned as it is, for the teacher to refuse.
        """
        wanted = np.dtype(self.dtype)
        if array.dtype != wanted and array.dtype.kind == wanted.kind:
            array = array.astype(wanted)
        row = array.shape[1:]
        if (
            array.ndim
            and row != self.shape
            and -1 not in self.shape
            and math.prod(row) == math.prod(self.shape)
        ):
            array = array.reshape(array.shape[0], *self.shape)
        return array


@dataclass(frozen=True)
class Description:
    """Feeds and fetches of a teacher by the names that users say (aliases)."""

    feeds: Mapping[str, TensorSpec]
    fetches: Mapping[str, TensorSpec]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The description as one line of JSON."""
        return json.dumps(
            {
                **self.extra,
                "feeds": _specs_to_json(self.feeds),
                "fetches": _specs_to_json(self.fetches),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Description:
        """The inverse of :meth:`to_json`. Raises ConfigError if ``text`` is something else."""
        try:
            value = json.loads(text)
            extra = {key: item for key, item in value.items() if key not in ("feeds", "fetches")}
            return cls(_specs_from_json(value["feeds"]), _specs_from_json(value["fetches"]), extra)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"not a teacher's description: {text[:200]!r}") from error


def _specs_to_json(specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    return {name: {"shape": list(spec.shape), "dtype": spec.dtype} for name, spec in specs.items()}


def _specs_from_json(value: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, item in value.items():
        try:
            elem_type_of(np.dtype(item["dtype"]))
        except WireError as error:
            raise ValueError(str(error)) from error
        specs[str(name)] = TensorSpec(tuple(int(size) for size in item["shape"]), item["dtype"])
    return specs
