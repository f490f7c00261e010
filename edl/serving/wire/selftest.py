"""Whether replicas of a language model compute the same: labels of fixed tokens, in a description.

Equal weights are not all that labels depend on: a broken kernel, a library of another version or a
dtype that overflows make other labels of them. So each teacher publishes what it computes for the
same few tokens, and readers compare.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from edl.serving.wire.description import Description

#: Under this key a description holds it.
DESCRIBED = "self_test"

TOKENS = 16
POSITIONS = 4
CLASSES = 4

#: How much logarithms of probabilities may differ. Of a logit between 32 and 64 bfloat16 rounds up
#: to 0.125 away; what is broken is off by more than one.
TOLERANCE = 0.5

_MOST, _LARGEST = 64, 1 << 31


@dataclass(frozen=True, order=True)
class SelfTest:
    """For each of some tokens the ids of the most probable next ones, the most probable first, and
    the logarithms of their probabilities.
    """

    ids: tuple[tuple[int, ...], ...]
    logs: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        logs = [[round(value, 4) for value in row] for row in self.logs]
        return {"ids": [list(row) for row in self.ids], "logs": logs}


def fixed_tokens(classes: int) -> np.ndarray:
    """The tokens that all teachers of a vocabulary compute: (1, TOKENS) int64."""
    return (np.arange(TOKENS, dtype=np.int64) * 7919 + 11)[None, :] % classes


def said(description: Description) -> Optional[SelfTest]:
    """What a description of any origin holds; None if that is no self-test."""
    value = description.extra.get(DESCRIBED)
    if not isinstance(value, Mapping):
        return None
    ids, logs = _table(value.get("ids"), int), _table(value.get("logs"), float)
    if ids is None or logs is None or list(map(len, ids)) != list(map(len, logs)):
        return None
    return SelfTest(ids, logs)


@functools.lru_cache(maxsize=1024)
def difference(ours: SelfTest, others: SelfTest) -> str:
    """In what two disagree beyond the tolerance; empty if they agree.

    A class that one has among its most probable ones and the other has not is compared with the
    least probable that the other has.
    """
    if len(ours.ids) != len(others.ids):
        return f"it was tested on {len(others.ids)} tokens, not {len(ours.ids)}"
    for place in range(len(ours.ids)):
        mine = dict(zip(ours.ids[place], ours.logs[place]))
        its = dict(zip(others.ids[place], others.logs[place]))
        if not mine or not its:
            continue
        for one, two in ((mine, its), (its, mine)):
            floor = min(two.values())
            for name, value in one.items():
                gap = abs(value - two[name]) if name in two else value - floor
                if gap > TOLERANCE:
                    return (
                        f"of the fixed tokens, number {place} is followed by class {name} with a "
                        f"log-probability of {its.get(name, 'less')} here and of "
                        f"{mine.get(name, 'less')} elsewhere"
                    )
    return ""


def typical(tests: Collection[SelfTest]) -> Optional[SelfTest]:
    """The one that most others agree with; the same whatever their order. None of none."""
    counts = Counter(tests)

    def support(test: SelfTest) -> tuple[int, SelfTest]:
        agreeing = (count for other, count in counts.items() if not difference(test, other))
        return -sum(agreeing), test

    return min(counts, key=support, default=None)


def _table(value: Any, kind: type) -> Optional[tuple[tuple[Any, ...], ...]]:
    """A short list of short lists of finite numbers; None if it is something else."""
    if not isinstance(value, list) or len(value) > _MOST:
        return None
    for row in value:
        if not isinstance(row, list) or len(row) > _MOST:
            return None
        if not all(_is_number(each, kind) for each in row):
            return None
    return tuple(map(tuple, value))


def _is_number(value: Any, kind: type) -> bool:
    if type(value) not in (int, kind):  # bool is neither
        return False
    return -_LARGEST < value < _LARGEST  # NaN is not
