"""Prometheus' text format, read for the few metrics that a view needs.

``prometheus_client`` has a parser of all of it; for a thousand lines that takes 10 ms, and this
reads hundreds of pages. A text is a stranger's: lines that are not as they should be are no lines,
and numbers that no counter has are no numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Protocol

#: Metric, or ``metric:kind`` (see ``reader``), to its value.
Values = dict[str, float]

#: No figure of a teacher or a student is beyond this; sums of them stay finite.
_MOST = 1e18

#: By what is looked at one by one; of others the sum is taken.
_KIND = re.compile(r'(?:^|,)(?:outcome)="(ok|refused|unauthorized|failed|draining|busy)"')

_WORDS = re.compile(r"^# last error: ([^\n]{1,300})", re.M)


class Read(Protocol):
    """What ``reader`` makes."""

    def __call__(self, text: str, label: str = "") -> Values:
        """The values in ``text``, of those lines that have this label (``name="value"``)."""


def reader(names: Iterable[str]) -> Read:
    """A function from a text to the values of these metrics, added up over their labels; and by
    their label ``outcome``, where they have it, as ``name:outcome``.
    """
    either = "|".join(map(re.escape, names))
    line = re.compile(
        rf"^({either})(?:\{{([^\n}}]{{0,1000}})\}})?[ \t]+([^\s]{{1,40}})[ \t]*(?:[0-9-]+)?\r?$",
        re.M,
    )

    def read(text: str, label: str = "") -> Values:
        values: Values = {}
        for name, labels, digits in line.findall(text):
            value = _number(digits)
            if math.isfinite(value) and label in labels:
                values[name] = values.get(name, 0.0) + value
                kind = _KIND.search(labels)
                if kind:
                    key = f"{name}:{kind[1]}"
                    values[key] = values.get(key, 0.0) + value
        return values

    return read


def last_error(text: str) -> str:
    """What a teacher said to the last request that it answered with an error."""
    found = _WORDS.search(text)
    return found[1] if found else ""


def _number(digits: str) -> float:
    """NaN for what is none, or beyond what can be."""
    try:
        value = float(digits)
    except ValueError:
        return math.nan
    return value if abs(value) <= _MOST else math.nan
