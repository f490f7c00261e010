"""Arrays as the text that numpy prints for them, which Paddle Serving's pipelines exchange.

``array([[0.25, 1.  ]], dtype=float32)`` (``repr``), ``[[0.25 1.  ]]`` (``str``) and nested lists
are understood. Nothing is evaluated.
"""

from __future__ import annotations

import re
import sys

import numpy as np

from edl.errors import WireError

_DTYPE = re.compile(r"dtype=([a-z]+[0-9]*)")
_SHAPE = re.compile(r"shape=\(([0-9, ]*)\)")
_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16"),
        *("float16", "float32", "float64"),
    )
}


def format_array(array: np.ndarray) -> str:
    """``array``'s repr, whole and with as many digits as it takes to read the same values back."""
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return repr(array)


def parse_array(text: str) -> np.ndarray:
    """The array that ``text`` shows. Without a dtype in it: int64, float64 or bool.

    Raises WireError if it is not the text of an array of numbers.
    """
    start, end = text.find("["), text.rfind("]") + 1
    if start < 0 or end <= start:
        raise WireError(f"not an array: {text[:80]!r}")
    body, suffix = text[start:end], text[end:]
    tokens = body.replace("[", " ").replace("]", " ").replace(",", " ").split()
    try:
        flat = _numbers(tokens)
        named = _DTYPE.search(suffix)
        if named is not None:
            flat = flat.astype(_DTYPES[named[1]])
        return flat.reshape(_shape(body, suffix, len(tokens)))
    except (ValueError, KeyError, OverflowError) as error:
        raise WireError(f"not an array of numbers: {text[:80]!r} ({error})") from None


def _numbers(tokens: list[str]) -> np.ndarray:
    if tokens and all(token in ("True", "False") for token in tokens):
        return np.fromiter((token == "True" for token in tokens), bool, len(tokens))
    try:
        return np.fromiter(map(int, tokens), np.int64, len(tokens))
    except (ValueError, OverflowError):
        return np.fromiter(map(float, tokens), np.float64, len(tokens))


def _shape(body: str, suffix: str, count: int) -> tuple[int, ...]:
    """Sizes from the brackets: how many open at each depth. Raises ValueError if they do not fit
    one another.
    """
    if not count:
        shown = _SHAPE.search(suffix)
        return tuple(int(size) for size in shown[1].split(",") if size.strip()) if shown else (0,)
    opened: list[int] = []
    depth = 0
    for bracket in re.findall(r"[\[\]]", body):
        if bracket == "[":
            if depth == len(opened):
                opened.append(0)
            opened[depth] += 1
            depth += 1
        else:
            depth -= 1
        if depth < 0:
            raise ValueError("brackets do not match")
    sizes = [*opened[1:], count]
    if depth or opened[0] != 1 or any(inner % outer for outer, inner in zip(opened, sizes)):
        raise ValueError("rows differ in length, or brackets do not match")
    return tuple(inner // outer for outer, inner in zip(opened, sizes))
