"""Tensors that travel in a narrower dtype than they have at the teacher.

The protocol stays what it is. A feed says by the dtype of the tensor that is sent how it travels;
the teacher widens it to its own, by which no value changes:

=========  ==================================================================
sent as    for a feed of
=========  ==================================================================
float16    float32, float64
bfloat16   float32, float64
uint8      float16, bfloat16, float32, float64, int16, int32, int64
=========  ==================================================================

An answer is asked for by a fetch name with a suffix, ``logits?dtype=float16``, and has the fetch's
own name, ``logits``. Its values are rounded to nearest; what would become infinite is refused. A
server says in its description that it does both, under the key ``narrow``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edl.errors import ConfigError, WireError
from edl.serving.wire.conversion import convert
from edl.serving.wire.description import Description, TensorSpec

#: Under this key a description says that its server widens feeds and narrows answers.
DESCRIBED = "narrow"
VERSION = 1

_SUFFIX = "dtype="

#: What a feed may be sent as, and an answer come as, by the names that users say; and numpy's.
FEED_DTYPES = {"float16": "float16", "bfloat16": "uint16", "uint8": "uint8"}
ANSWER_DTYPES = {"float16": "float16", "bfloat16": "uint16"}

_WIDE_FLOATS = frozenset({"float32", "float64"})
_WIDER = {
    "float16": _WIDE_FLOATS,
    "uint16": _WIDE_FLOATS,
    "uint8": _WIDE_FLOATS | {"float16", "uint16", "int16", "int32", "int64"},
}


@dataclass(frozen=True)
class Narrow:
    """A fetch that is answered in ``dtype``, "float16" or "bfloat16"."""

    dtype: str

    def __str__(self) -> str:
        """The suffix of a fetch name."""
        return _SUFFIX + self.dtype

    @property
    def numpy_dtype(self) -> str:
        """What it is in numpy, which has bfloat16's bits as uint16."""
        return ANSWER_DTYPES[self.dtype]


def widens(sent: str, dtype: str) -> bool:
    """Whether a tensor of numpy dtype ``sent`` can be widened to one of ``dtype``."""
    return dtype in _WIDER.get(sent, ())


def server_narrows(description: Description) -> bool:
    """Whether the server takes narrower feeds, and answers in a narrower dtype when asked to."""
    said = description.extra.get(DESCRIBED)
    return isinstance(said, int) and not isinstance(said, bool) and said >= VERSION


# --- feeds ----------------------------------------------------------------------------------


def mismatch(spec: TensorSpec, array: np.ndarray) -> str:
    """The same as ``spec.mismatch``, for an array that may be narrower."""
    wrong = spec.mismatch(array)
    if wrong and widens(array.dtype.name, spec.dtype):
        return TensorSpec(spec.shape, array.dtype.name).mismatch(array)
    return wrong


def widened_bytes(spec: TensorSpec, array: np.ndarray) -> int:
    """What an array takes once it is widened; strings as they are."""
    return array.nbytes if spec.dtype == "str" else array.size * np.dtype(spec.dtype).itemsize


def widen(array: np.ndarray, dtype: str) -> np.ndarray:
    """The same values in ``dtype``; ``array`` itself where that is not wider."""
    name = array.dtype.name
    if name == dtype or not widens(name, dtype):
        return array
    if array.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        single = array.astype(np.uint32)
        single <<= 16
        with np.errstate(invalid="ignore"):  # signalling NaN
            return single.view(np.float32).astype(dtype, copy=False)
    return convert(array, dtype)


# --- answers --------------------------------------------------------------------------------


def ask(name: str, dtype: str) -> str:
    """The fetch name by which ``name`` is asked for in ``dtype``."""
    return f"{name}?{Narrow(dtype)}"


def is_asked(fetch: str) -> bool:
    """Whether a fetch name of any origin has the suffix of such an answer."""
    return fetch.rpartition("?")[2].startswith(_SUFFIX) and "?" in fetch


def parse(description: Description, fetch: str) -> tuple[str, Narrow]:
    """The fetch and the dtype that such a name asks for. Raises ConfigError, which names it, for a
    fetch that there is not, or that has no such narrower form.
    """
    name, _, suffix = fetch.rpartition("?")
    dtype = suffix[len(_SUFFIX) :]
    if dtype not in ANSWER_DTYPES:
        raise ConfigError(f"fetch {fetch[:80]!r}: the dtype must be one of {_list(ANSWER_DTYPES)}")
    if name not in description.fetches:
        known = ", ".join(repr(known) for known in description.fetches)
        raise ConfigError(f"unknown fetch {name[:80]!r}; this teacher's fetches: {known}")
    own = description.fetches[name].dtype
    if not widens(ANSWER_DTYPES[dtype], own):
        raise ConfigError(f"fetch {fetch[:80]!r}: {name!r} is {own}, which is not wider")
    return name, Narrow(dtype)


def answer_spec(spec: TensorSpec, form: Narrow) -> TensorSpec:
    """Shape and dtype of a fetch of this kind, as it is answered."""
    return TensorSpec(spec.shape, form.numpy_dtype)


# --- both -----------------------------------------------------------------------------------


def narrowed(array: np.ndarray, dtype: str, first: int = 0) -> np.ndarray:
    """``array`` (rows first) in numpy dtype ``dtype``, floats rounded to nearest.

    Raises WireError for a value that it cannot hold, with that and its row, counted from ``first``.
    """
    try:
        return convert(array, dtype)
    except WireError as error:
        raise WireError(f"row {first + _first_refused(array, dtype)}: {error}") from None


def _first_refused(array: np.ndarray, dtype: str) -> int:
    for row in range(len(array)):
        try:
            convert(array[row : row + 1], dtype)
        except WireError:
            return row
    return 0


def _list(names: dict[str, str]) -> str:
    return ", ".join(names)
