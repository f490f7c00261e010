"""What peers.py aims at, as ratios of what was measured. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

from _peers.lines import (
    INFER,
    LOOP,
    MEMCPY,
    ORIGINAL,
    OVER_TCP,
    RAY,
    SAME_HOST,
    SUBMIT,
    TCP,
    UNIX,
    asked,
    in_flight,
    reader,
    students,
)


class Sample(NamedTuple):
    """One turn: batches (or requests) per second, and the student's CPU seconds for each."""

    rate: float
    cpu: float


#: By group and line, the turns of all rounds.
Results = Mapping[str, Mapping[str, Sequence[Sample]]]


@dataclass(frozen=True)
class Aim:
    """A ratio in one group of lines. ``of``: one round's samples of ``line`` and ``beside``."""

    group: str
    what: str
    line: str
    beside: Optional[str]
    of: Callable[[Sample, Sample], float]
    limit: float
    at_most: bool = False


class Outcome(NamedTuple):
    """``value``: the median of the rounds' ratios; None where something was not measured."""

    aim: Aim
    value: Optional[float]
    spread: float
    met: Optional[bool]


def times(ours: Sample, theirs: Sample) -> float:
    """How many times the other's time ours takes."""
    return theirs.rate / ours.rate


def rates(ours: Sample, theirs: Sample) -> float:
    """Our rate as a multiple of the other's."""
    return ours.rate / theirs.rate


def cpu_microseconds(ours: Sample, _: Sample) -> float:
    return ours.cpu * 1e6


def aims(crowd: int) -> list[Aim]:
    """All of them. ``crowd``: how many students there are where there are several."""
    big, small, row = "3x224x224", "1x28x28", "row"
    here, tcp = reader(1, SAME_HOST), reader(1, OVER_TCP)
    found = [
        Aim(big, "time of a memcpy", here, MEMCPY, times, 2.5, at_most=True),
        Aim(big, "Ray's rate", here, in_flight(RAY, 4), rates, 2.5),
        Aim(big, "rate of a bare round trip", tcp, TCP, rates, 0.95),
    ]
    for line in (here, tcp):
        found += [
            Aim(small, "Ray's rate", line, in_flight(RAY, 4), rates, 4.0),
            Aim(small, "the original's rate", line, ORIGINAL, rates, 5.0),
            Aim(small, "us of CPU a batch", line, None, cpu_microseconds, 100.0, at_most=True),
        ]
    for way, bare in ((SAME_HOST, UNIX), (OVER_TCP, TCP)):
        one, many = asked(INFER, way), in_flight(asked(SUBMIT, way), 32)
        found += [
            Aim(row, "time of a bare round trip", one, bare, times, 3.0, at_most=True),
            Aim(row, "rate of bare round trips", many, bare, rates, 0.8),
        ]
    found.append(Aim("sentences", "rate of the loop", students(crowd), LOOP, rates, 0.9))
    for number in (1, crowd):
        found.append(Aim("ResNet-18", "rate of the loop", students(number), LOOP, rates, 0.98))
    return found


def judge(aim: Aim, results: Results) -> Outcome:
    """Whether it is met by what was measured: each round by itself, then the median."""
    lines = results.get(aim.group, {})
    ours, theirs = lines.get(aim.line, ()), lines.get(aim.beside or aim.line, ())
    if not ours or not theirs:
        return Outcome(aim, None, 0.0, None)
    values = [aim.of(*pair) for pair in zip(ours, theirs)]
    middle = statistics.median(values)
    met = middle <= aim.limit if aim.at_most else middle >= aim.limit
    return Outcome(aim, middle, spread(values), met)


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)
