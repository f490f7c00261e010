"""Sparse labels: what is asked for in place of whole logits, and in which tensors it is answered.

The request is a fetch name with a suffix, ``logits?top_k=64&temperature=2&samples=16&target``, so
that the protocol stays what it is. The answer has a tensor for each part, ``logits.values`` and so
on. In the table, k is ``top_k``, m is ``samples``, and ``...`` are the dimensions between the
rows and the classes (none for images, the tokens of a sequence).

=============  ==================  =========  ======================================================
part           shape               dtype      what it holds
=============  ==================  =========  ======================================================
``values``     (rows, ..., k)      float16    the k largest logits, divided by the temperature,
                                              largest first; equal ones by their ids
``indices``    (rows, ..., k)      int32 (*)  the ids of their classes
``logsumexp``  (rows, ...)         float32    log of the sum of exp(logits / temperature) over all
                                              classes
``samples``    (rows, ..., m)      int32 (*)  ids of other classes, drawn with replacement in
                                              proportion to their probabilities
``target``     (rows, ...)         float32    the logit of the id that was fed, divided by the
                                              temperature; 0 for an id that is no class, as -100
=============  ==================  =========  ======================================================

(*) On the wire ids are narrower where the classes fit, see ``narrow_ids``. Drawing needs a seed for
each row, and ``target`` ids: they travel as the feeds ``labels.seed`` (rows,) int64 and
``labels.target`` (rows, ...) int64.

A program that was exported with sparse labels has fetches of its own for the parts, such as
``logits.values?top_k=64&temperature=2``; whoever hosts it, it is asked for these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from edl.errors import ConfigError, WireError
from edl.serving.wire.description import Description, TensorSpec

VALUES, INDICES, LOGSUMEXP = "values", "indices", "logsumexp"
SAMPLES, TARGET = "samples", "target"

SEED_FEED, TARGET_FEED = "labels.seed", "labels.target"

#: Under this key a description says that its server makes labels of any floating-point fetch.
DESCRIBED = "labels"
VERSION = 1

MAX_TOP_K = 1 << 16
MAX_SAMPLES = 1 << 16
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
MAX_CLASSES = (1 << 31) - 1

#: A whole number, and a decimal one, of a length that is quick to read.
_WHOLE = re.compile(r"[0-9]{1,10}")
_DECIMAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")

_FLOATS = ("float32", "float16", "uint16", "float64")


@dataclass(frozen=True)
class LabelForm:
    """What is wanted of each row's (or token's) logits; see the module. Raises ConfigError for
    numbers that cannot be.

    ``top_k``: how many of the largest. ``temperature``: what all logits are divided by first.
    ``samples``: how many ids to draw from the rest. ``target``: the logit of an id that is fed.
    """

    top_k: int
    temperature: float = 1.0
    samples: int = 0
    target: bool = False

    def __post_init__(self) -> None:
        _check_whole("top_k", self.top_k, 1, MAX_TOP_K)
        _check_whole("samples", self.samples, 0, MAX_SAMPLES)
        temperature = self.temperature
        number = isinstance(temperature, (int, float, np.floating, np.integer))
        if isinstance(temperature, bool) or not number:
            raise ConfigError(f"temperature must be a number, not {temperature!r}")
        if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:  # NaN is in no range
            raise ConfigError(
                f"temperature must be from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, not "
                f"{temperature!r}"
            )
        object.__setattr__(self, "top_k", int(self.top_k))
        object.__setattr__(self, "samples", int(self.samples))
        object.__setattr__(self, "temperature", float(temperature))
        object.__setattr__(self, "target", bool(self.target))

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the answer, in their order."""
        optional = ((SAMPLES, self.samples > 0), (TARGET, self.target))
        return (VALUES, INDICES, LOGSUMEXP, *(part for part, wanted in optional if wanted))

    @property
    def feeds(self) -> tuple[str, ...]:
        """The feeds that it needs beside the model's own."""
        needed = ((SEED_FEED, self.samples > 0), (TARGET_FEED, self.target))
        return tuple(feed for feed, wanted in needed if wanted)

    def __str__(self) -> str:
        """The suffix of a fetch name; what is as usual is left out."""
        text = f"top_k={self.top_k}"
        if self.temperature != 1.0:
            whole = self.temperature.is_integer()
            text += f"&temperature={int(self.temperature) if whole else repr(self.temperature)}"
        if self.samples:
            text += f"&samples={self.samples}"
        return f"{text}&target" if self.target else text

    @classmethod
    def parse(cls, text: str) -> LabelForm:
        """The inverse of ``str``, for text of any origin. Raises ConfigError."""
        said: dict[str, Any] = {}
        for item in text.split("&", 5):
            key, _, value = item.partition("=")
            if key in said:
                raise ConfigError(f"{key!r} is said twice")
            said[key] = _value(key, value, item)
        if "top_k" not in said:
            raise ConfigError("top_k is missing, as in logits?top_k=64")
        return cls(**said)

    def bytes_per_position(self, classes: int) -> int:
        """Bytes that it takes on the wire for each row, or token, without the tensors' heads."""
        wide = id_bytes(classes)
        return self.top_k * (2 + wide) + 4 + self.samples * wide + (4 if self.target else 0)


def _value(key: str, value: str, item: str) -> Any:
    """What a key's text says. Raises ConfigError."""
    if key in ("top_k", "samples") and _WHOLE.fullmatch(value):
        return int(value)
    if key == "temperature" and _DECIMAL.fullmatch(value):
        return float(value)
    if item == "target":
        return True
    raise ConfigError(
        f"{item[:40]!r} is none of top_k=N, temperature=T, samples=N and target, joined by &"
    )


def _check_whole(what: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise ConfigError(f"{what} must be a whole number, not {value!r}")
    if not least <= value <= most:
        raise ConfigError(f"{what} must be from {least} to {most}, not {value}")


# --- names ----------------------------------------------------------------------------------


def column(name: str, part: str) -> str:
    """What one part of the labels of a fetch is called."""
    return f"{name}.{part}"


def ask(name: str, form: LabelForm) -> str:
    """The fetch name by which labels of ``name`` are asked for."""
    return f"{name}?{form}"


def split(fetch: str) -> tuple[str, Optional[LabelForm]]:
    """The fetch and the form that a name of any origin asks for; no form if it has no suffix.
    Raises ConfigError, which names it, for a suffix that is none.
    """
    name, mark, suffix = fetch.rpartition("?")
    if not mark:
        return fetch, None
    try:
        return name, LabelForm.parse(suffix)
    except ConfigError as error:
        raise ConfigError(f"fetch {fetch[:80]!r}: {error}") from None


def resolve(description: Description, fetch: str) -> tuple[str, Optional[LabelForm]]:
    """What a name of any origin asks of a model: one of its fetches, whole or in some form. Raises
    ConfigError, which names it, if it is neither.
    """
    name, form = (fetch, None) if fetch in description.fetches else split(fetch)
    if name not in description.fetches:
        known = ", ".join(repr(known) for known in description.fetches)
        raise ConfigError(f"unknown fetch {name[:80]!r}; this teacher's fetches: {known}")
    if form is not None:
        part_specs(name, description.fetches[name], form)
    return name, form


# --- what servers say -----------------------------------------------------------------------


def server_makes_labels(description: Description) -> bool:
    """Whether the server makes labels of its fetches when it is asked to."""
    said = description.extra.get(DESCRIBED)
    return isinstance(said, int) and not isinstance(said, bool) and said >= VERSION


def program_makes_labels(description: Description, name: str) -> Optional[LabelForm]:
    """The form in which the model's own program makes labels of ``name``, if it does."""
    for fetch in description.fetches:
        if not fetch.startswith(f"{column(name, VALUES)}?"):
            continue
        try:
            form = LabelForm.parse(fetch.rpartition("?")[2])
        except ConfigError:
            continue
        if all(f"{column(name, part)}?{form}" in description.fetches for part in form.parts):
            return form
    return None


def part_specs(name: str, spec: TensorSpec, form: LabelForm) -> dict[str, TensorSpec]:
    """Shape and dtype of each part, as users see it, of a fetch of this kind.

    Raises ConfigError, which names the fetch, if it is nothing that has such labels.
    """
    if spec.dtype not in _FLOATS or not spec.shape:
        raise ConfigError(
            f"{name!r} is {spec.dtype} of row shape {list(spec.shape)}; sparse labels are made of "
            "floating-point logits whose last dimension is the classes"
        )
    *between, classes = spec.shape
    check_classes(name, classes, form)
    shapes = {
        VALUES: ([*between, form.top_k], "float16"),
        INDICES: ([*between, form.top_k], "int32"),
        LOGSUMEXP: (between, "float32"),
        SAMPLES: ([*between, form.samples], "int32"),
        TARGET: (between, "float32"),
    }
    pad = None if spec.pad is None else 0
    return {part: TensorSpec(tuple(shapes[part][0]), shapes[part][1], pad) for part in form.parts}


def feed_specs(spec: TensorSpec, form: LabelForm) -> dict[str, TensorSpec]:
    """Shape and dtype of the feeds that a form needs for a fetch of this kind."""
    no_class = None if spec.pad is None else -100
    kinds = {
        SEED_FEED: TensorSpec((), "int64"),
        TARGET_FEED: TensorSpec(spec.shape[:-1], "int64", no_class),
    }
    return {feed: kinds[feed] for feed in form.feeds}


def check_classes(name: str, classes: int, form: LabelForm) -> None:
    """Raises ConfigError if ``classes`` (-1: not known) are too few for a form."""
    if 0 <= classes < form.top_k:
        raise ConfigError(f"top_k={form.top_k} is more than the {classes} classes of {name!r}")


# --- ids on the wire ------------------------------------------------------------------------


def id_bytes(classes: int) -> int:
    """Bytes of one id on the wire."""
    return 1 if classes <= 1 << 8 else 2 if classes <= 1 << 16 else 3 if classes <= 1 << 24 else 4


def narrow_ids(ids: np.ndarray, classes: int) -> np.ndarray:
    """Ids below ``classes`` (int32) as they travel: uint8, and where a byte is too little with a
    last dimension of 2, 3 or 4 for the bytes of each id, the lowest first.
    """
    size = id_bytes(classes)
    if size == 1:
        return ids.astype(np.uint8)
    octets = np.ascontiguousarray(ids, "<i4").view(np.uint8).reshape(*ids.shape, 4)
    return np.ascontiguousarray(octets[..., :size])


def widen_ids(array: np.ndarray, dimensions: int) -> np.ndarray:
    """The inverse: int32 of so many dimensions, from an array of any origin; one of int32 is taken
    as it is. Raises WireError.
    """
    size = array.shape[-1] if array.ndim == dimensions + 1 else 1
    if array.dtype == np.uint8 and 2 <= size <= 4:
        octets = np.zeros((*array.shape[:-1], 4), np.uint8)
        octets[..., :size] = array
        return octets.view("<i4").reshape(array.shape[:-1]).astype(np.int32, copy=False)
    if array.ndim != dimensions or array.dtype not in (np.uint8, np.int32):
        raise WireError(f"{array.dtype} of shape {array.shape} holds no ids of {dimensions} dims")
    return array.astype(np.int32, copy=False)


def with_plain_ids(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An answer in which ids are int32 as they are for users, for those who read it themselves."""
    plain = dict(arrays)
    for name in arrays:
        fetch, _, part = name.rpartition(".")
        values = arrays.get(column(fetch, VALUES))
        if part in (INDICES, SAMPLES) and values is not None and values.dtype == np.float16:
            plain[name] = widen_ids(arrays[name], values.ndim)
    return plain


def as_parts(answer: Mapping[str, np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """The parts of an answer of any origin as users see them, ids as int32. ``classes``: how many
    there are; -1 if that is not known.

    Raises WireError for ids that are none.
    """
    parts = dict(answer)
    for part in (INDICES, SAMPLES):
        if part in parts:
            ids = parts[part] = widen_ids(parts[part], parts[VALUES].ndim)
            limit = MAX_CLASSES if classes < 0 else classes
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < limit:
                raise WireError(f"{part} has ids from {ids.min()} to {ids.max()} of {limit}")
    return parts


def check_range(values: np.ndarray, logsumexp: np.ndarray) -> None:
    """Raises WireError where the largest logit is finite, and beyond float16 all the same. (Others
    become minus infinity there: they are so far below that their probability is zero.)
    """
    largest = values[..., :1]
    beyond = np.isinf(largest[..., 0]) & np.isfinite(logsumexp) if largest.size else np.zeros(0)
    if beyond.any():
        raise WireError(
            f"logits around {int(logsumexp[beyond][0])} are beyond float16 (65504), in "
            "which sparse labels travel: let the model subtract a constant from them, ask for a "
            "higher temperature, or for whole logits"
        )
