"""Raw images of bytes, and what a network takes: made of them in an exported program, or anywhere.

A pixel takes one byte instead of four, wherever it travels, if it is normalised where it arrives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from edl._paddle import import_paddle
from edl.errors import ConfigError
from edl.serving.wire.conversion import convert
from edl.serving.wire.description import Specs, TensorSpec, parse_specs

_LAYOUTS = ("HWC", "CHW")
_FLOATS = ("float32", "float16", "uint16", "float64")


@dataclass(frozen=True)
class Preprocess:
    """How raw images become what a network takes: ``(image * scale - mean) / std``, channels first.

    ``mean``, ``std``: a number for each channel, or one for all. ``layout``: of the raw images,
    "HWC" (as decoders give them) or "CHW". Called with raw images (rows, height, width, channels),
    or (rows, channels, height, width), uint8, it returns float32 (rows, channels, height, width):
    an array for an array, for a tensor a tensor on its device. All is computed in float32 in the
    order of the formula, so that whoever does it gets the same bits, unless a compiler fuses the
    operations; then they differ in the last one. With one mean and one std and "CHW", rows may have
    any shape. Raises ConfigError for what is no number, a std of 0, and another layout.
    """

    scale: float = 1 / 255
    mean: Union[float, Sequence[float]] = 0.0
    std: Union[float, Sequence[float]] = 1.0
    layout: str = "HWC"

    def __post_init__(self) -> None:
        for name in ("scale", "mean", "std"):
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        if self.layout not in _LAYOUTS:
            raise ConfigError(f"layout must be HWC or CHW, not {self.layout!r}")
        mean, std = self.constants()
        if not std.all():
            raise ConfigError("std must not be 0, by which nothing can be divided")
        if mean.size > 1 and std.size > 1 and mean.size != std.size:
            raise ConfigError(f"mean is of {mean.size} channels, std of {std.size}")

    def constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std as they are computed with: float32, (channels, 1, 1), or () if there is one
        for all.
        """
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return _by_channel(mean), _by_channel(std)

    def __call__(self, images: Any) -> Any:
        """The images, normalised."""
        mean, std = self.constants()
        if isinstance(images, np.ndarray):
            return self.apply(images, mean, std)
        to_tensor = import_paddle("normalising tensors").to_tensor
        place = images.place
        return self.apply(images, to_tensor(mean, place=place), to_tensor(std, place=place))

    def apply(self, images: Any, mean: Any, std: Any) -> Any:
        """The same with ``constants`` that are where the images are."""
        if self.layout == "HWC":  # while a pixel is a byte
            images = images.transpose([0, 3, 1, 2])
        if not isinstance(images, np.ndarray):
            return (images.astype("float32") * self.scale - mean) / std
        values = np.ascontiguousarray(images).astype(np.float32)
        values *= np.float32(self.scale)
        values -= mean
        values /= std
        return values

    def raw(self, spec: TensorSpec) -> TensorSpec:
        """The kind of the raw images, for those that the network takes. Raises ConfigError if there
        are none for these.
        """
        shape = spec.shape
        most = max(array.size for array in self.constants())
        if spec.dtype not in _FLOATS:
            raise ConfigError(f"images become floats, not {spec.dtype}")
        if (most > 1 or self.layout == "HWC") and len(shape) != 3:
            raise ConfigError(f"rows of shape {list(shape)} are not (channels, height, width)")
        if most > 1 and shape[0] not in (-1, most):
            raise ConfigError(f"rows have {shape[0]} channels, mean or std {most}")
        if self.layout == "HWC":
            shape = (*shape[1:], shape[0])
        return TensorSpec(shape, "uint8")


def raw_feeds(feeds: Specs, preprocess: Mapping[str, Preprocess]) -> Specs:
    """The feeds of a teacher that preprocesses, for those that its network takes. Raises
    ConfigError, naming the one that is wrong.
    """
    for name in preprocess:
        if name not in feeds:
            raise ConfigError(
                f"preprocess names {name!r}, which is no feed; these are {', '.join(feeds)}"
            )
    specs = parse_specs({name: feeds[name] for name in preprocess})
    raw = dict(feeds)
    for name, each in preprocess.items():
        try:
            kind = each.raw(specs[name])
        except ConfigError as error:
            raise ConfigError(f"preprocess of {name!r}: {error}") from error
        raw[name] = kind.shape, kind.dtype
    return raw


def preprocessing(layer: Any, feeds: Specs, preprocess: Mapping[str, Preprocess]) -> Any:
    """A layer that takes raw images where ``layer`` takes ``feeds``, in their order."""
    paddle = import_paddle("preprocessing")
    place = next((weight.place for weight in layer.parameters()), None)
    order = [preprocess.get(name) for name in feeds]
    dtypes = ["bfloat16" if dtype == "uint16" else dtype for _, dtype in feeds.values()]

    class Preprocessing(paddle.nn.Layer):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer
            for number, each in enumerate(order):
                for name, array in zip(("mean", "std"), each.constants() if each else ()):
                    tensor = paddle.to_tensor(array, place=place)
                    self.register_buffer(f"{name}_{number}", tensor)

        def forward(self, *given: Any) -> Any:
            return self.layer(*prepared(self, given))

    @paddle.jit.not_to_static
    def prepared(self: Any, given: Sequence[Any]) -> list[Any]:
        return [
            value if each is None else normalised(self, number, each, value).astype(dtype)
            for number, (value, each, dtype) in enumerate(zip(given, order, dtypes))
        ]

    def normalised(self: Any, number: int, each: Preprocess, value: Any) -> Any:
        return each.apply(value, getattr(self, f"mean_{number}"), getattr(self, f"std_{number}"))

    wrapped = Preprocessing()
    wrapped.training = layer.training
    return wrapped


def preprocessed(function: Any, feeds: Specs, preprocess: Mapping[str, Preprocess]) -> Any:
    """A function of arrays by name that takes raw images where ``function`` takes floats."""

    def compute(**arrays: np.ndarray) -> Any:
        for name, each in preprocess.items():
            arrays[name] = convert(each(arrays[name]), feeds[name][1])
        return function(**arrays)

    return compute


def _by_channel(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, 1, 1) if array.size > 1 else array.reshape(())


def _checked(what: str, value: Any) -> Union[float, tuple[float, ...]]:
    """One number, or (for what may have them) one for each channel. Raises ConfigError."""
    try:
        numbers = tuple(float(item) for item in np.atleast_1d(value))
        alone = np.ndim(value) == 0
    except (TypeError, ValueError):
        numbers, alone = (), True
    if not numbers or not all(map(math.isfinite, numbers)) or (what == "scale" and not alone):
        each = "" if what == "scale" else ", or one for each channel"
        raise ConfigError(f"{what} must be a number{each}, not {value!r}")
    return numbers[0] if alone else numbers
