"""What a teacher serves: its model, and feeds and fetches with their shapes and dtypes.

The same description is what the model's prototxt says, what the registry holds for each
teacher, and what a teacher answers when it is asked. Shapes are without the batch dimension;
-1 stands for "any".

Rows can be sequences of different length: then the specs say with what shorter ones are filled up,
so that requests of different length can be computed together. The first size of such a row is its
length, the same for all that are sequences.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

import numpy as np

from edl.errors import ConfigError, WireError
from edl.serving.wire.conversion import convert
from edl.serving.wire.tensor import MAX_DIMENSIONS, STRING, elem_type_of

#: A baidu_std method of our own beside Paddle Serving's: the payload of its answer is the
#: description as JSON. A server without it answers "unknown service", as brpc does.
DESCRIBE_SERVICE, DESCRIBE_METHOD = "edl.TeacherService", "describe"

#: What fingerprints begin with that stand for feeds and fetches only, not for weights.
SPECS_ONLY = "specs:"

#: What ``extra`` says of how many rows a server computes together.
BATCH_ROWS = "batch_rows"

_MAX_FINGERPRINT = 128
_MAX_SIZE = 2**31 - 1  # sizes travel as int32
_DTYPES = (
    *("int64", "float32", "int32", "float64", "int16", "float16", "uint16", "uint8", "int8"),
    *("bool", "str"),
)


#: For each name its row shape (no batch dimension; -1: any size) and dtype, as users write it.
Specs = Mapping[str, tuple[Sequence[int], str]]

#: Names only, or names with shapes and dtypes.
Fetches = Union[Sequence[str], Specs]


@dataclass(frozen=True)
class TensorSpec:
    """One feed or fetch: shape of one row (-1: any size), and numpy dtype name.

    The dtype "uint16" stands for bfloat16, "str" for strings. ``pad``: rows are sequences, and this
    is what short ones are filled up with along their first dimension; None: they are not.
    ``optional``: a feed that a request may leave out.
    Raises ConfigError for a shape that is none, a dtype that cannot travel, and a ``pad`` that is
    not of the dtype, or has no dimension of any size to fill.
    """

    shape: tuple[int, ...]
    dtype: str
    pad: Union[int, float, None] = None
    optional: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        object.__setattr__(self, "dtype", _dtype_name(self.dtype))
        if self.pad is not None:
            _check_pad(self)

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

    def conform(self, array: np.ndarray, convert_dtype: bool = True) -> np.ndarray:
        """``array`` with the dtype and row shape that the teacher expects.

        The dtype is converted where that keeps the values (see ``conversion``). Raises WireError
        where it does not. Rows with the right number of elements are reshaped (a flat 784 to
        1x28x28, as Paddle Serving's client does); other shapes are left for the teacher to refuse.
        Without ``convert_dtype`` nothing but the shape is changed.
        """
        if convert_dtype and array.dtype != np.dtype(self.dtype):
            array = convert(array, self.dtype)
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
    """Feeds and fetches of a teacher by the names that users say (aliases), and its model.

    ``fingerprint``: teachers whose fingerprints are equal have the same model, so one may answer
    for another. Teachers of ours say one that is made from the model's content. The default, for
    those that say none, begins with "specs:" and is made from feeds and fetches: names, shapes and
    dtypes in their order. ``extra``: what else is said, as plain values: a teacher's device and
    precision. Raises ConfigError for a fingerprint that is not printable, or longer than 128.
    """

    feeds: Mapping[str, TensorSpec]
    fetches: Mapping[str, TensorSpec]
    extra: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        fingerprint = self.fingerprint
        if not isinstance(fingerprint, str) or not fingerprint.isprintable():
            raise ConfigError(f"a fingerprint is printable text, not {fingerprint!r}")
        if len(fingerprint) > _MAX_FINGERPRINT:
            raise ConfigError(f"a fingerprint of {len(fingerprint)} characters is too long")
        if not fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint_of(self.feeds, self.fetches))

    @property
    def needed(self) -> dict[str, TensorSpec]:
        """The feeds that every request must have."""
        return {name: spec for name, spec in self.feeds.items() if not spec.optional}

    def to_json(self) -> str:
        """The description as one line of JSON."""
        optional = {name: spec for name, spec in self.feeds.items() if spec.optional}
        # Apart from the others, so that a reader that knows of none feeds only what must be fed.
        more = {"optional_feeds": _specs_to_json(optional)} if optional else {}
        return json.dumps(
            {
                **self.extra,
                "feeds": _specs_to_json(self.needed),
                **more,
                "fetches": _specs_to_json(self.fetches),
                "fingerprint": self.fingerprint,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Description:
        """The inverse of :meth:`to_json`, for text of any origin.

        Raises ConfigError, and nothing else, if ``text`` is something else.
        """
        try:
            value = json.loads(text)
            feeds = _specs_from_json(value.pop("feeds"))
            feeds.update(_specs_from_json(value.pop("optional_feeds", {}), optional=True))
            fetches = _specs_from_json(value.pop("fetches"))
            return cls(feeds, fetches, fingerprint=value.pop("fingerprint", ""), extra=value)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise ConfigError(f"not a teacher's description: {text[:200]!r} ({reason})") from error


def batch_rows(description: Description) -> int:
    """How many rows the server computes together, and may be asked about in one request; 1 if it
    does not say.
    """
    said = description.extra.get(BATCH_ROWS)
    return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else 1


def parse_specs(specs: Specs) -> dict[str, TensorSpec]:
    """By name. Raises ConfigError, naming the one that is wrong."""
    result = {}
    for name, (shape, dtype) in specs.items():
        try:
            result[name] = TensorSpec(tuple(shape), dtype)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{name!r}: {error}") from error
    return result


def with_pads(description: Description, pads: Mapping[str, Union[int, float]]) -> Description:
    """The same, with rows of the feeds and fetches in ``pads`` said to be sequences that are filled
    up with these. Raises ConfigError, naming the one that is wrong.
    """
    for name in pads:
        if name not in description.feeds and name not in description.fetches:
            known = ", ".join(map(repr, (*description.feeds, *description.fetches)))
            raise ConfigError(f"there is no {name!r} to be filled up; there are {known}")

    def padded(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        result = dict(specs)
        for name in specs.keys() & pads.keys():
            try:
                result[name] = replace(specs[name], pad=pads[name])
            except ConfigError as error:
                raise ConfigError(f"{name!r}: {error}") from None
        return result

    return replace(
        description, feeds=padded(description.feeds), fetches=padded(description.fetches)
    )


def fetch_names(fetches: Fetches) -> list[str]:
    """The names. Raises ConfigError if they are not different ones, at least one."""
    if isinstance(fetches, str) or not all(isinstance(name, str) for name in fetches):
        raise ConfigError(f"fetches must be a list of names, not {fetches!r}")
    names = list(fetches)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"fetches must hold different names, at least one: {names!r}")
    return names


def _fingerprint_of(feeds: Mapping[str, TensorSpec], fetches: Mapping[str, TensorSpec]) -> str:
    text = json.dumps([_specs_to_json(feeds), _specs_to_json(fetches)])
    return SPECS_ONLY + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _specs_to_json(specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    return {name: _spec_to_json(spec) for name, spec in specs.items()}


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    value: dict[str, Any] = {"shape": list(spec.shape), "dtype": spec.dtype}
    return value if spec.pad is None else {**value, "pad": spec.pad}


def _specs_from_json(value: Mapping[str, Any], optional: bool = False) -> dict[str, TensorSpec]:
    specs = {}
    for name, item in value.items():
        shape, dtype = item["shape"], item["dtype"]
        if not isinstance(shape, list):
            raise ConfigError(f"the shape of {name!r} is not a list")
        if dtype not in _DTYPES:  # numpy parses more than names: not what strangers say
            raise ConfigError(f"the dtype of {name!r} is not one of {', '.join(_DTYPES)}")
        specs[name] = TensorSpec(tuple(shape), dtype, item.get("pad"), optional)
    return specs


def _check_pad(spec: TensorSpec) -> None:
    if spec.shape[:1] != (-1,):
        raise ConfigError(f"rows of shape {list(spec.shape)} are no sequences of any length")
    kind = np.dtype(spec.dtype)
    wrong = isinstance(spec.pad, bool) or not isinstance(spec.pad, (int, float))
    if not wrong and kind.kind in "iu":
        limits = np.iinfo(kind)
        wrong = not isinstance(spec.pad, int) or not limits.min <= spec.pad <= limits.max
    if wrong or kind.kind not in "iuf" or not math.isfinite(spec.pad or 0):
        raise ConfigError(f"rows of {spec.dtype} cannot be filled up with {spec.pad!r}")


def _checked_shape(sizes: Sequence[int]) -> tuple[int, ...]:
    for size in sizes:
        whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        if not whole or not -1 <= size <= _MAX_SIZE:
            raise ConfigError(f"{size!r} is not a size: it must be 0 to {_MAX_SIZE}, or -1 for any")
    elements = math.prod(max(1, int(size)) for size in sizes)
    if len(sizes) >= MAX_DIMENSIONS or elements > _MAX_SIZE:
        raise ConfigError(f"a row of {len(sizes)} dimensions and {elements} elements cannot travel")
    return tuple(int(size) for size in sizes)


def _dtype_name(dtype: str) -> str:
    """Numpy's name for a dtype that can travel."""
    try:
        known = np.dtype(dtype)
        return "str" if elem_type_of(known) == STRING else known.name
    except (TypeError, WireError) as error:
        raise ConfigError(f"dtype {dtype!r}: {error}") from error
