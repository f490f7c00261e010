"""What students and teachers say of themselves in the registry, and what students are told.

Rates are in rows per second, or in tokens per second where the teachers of a service say that rows
are sequences; for whoever compares them it is the same.

Anybody may write to a registry. Reading is total: whatever the text is, it means something, and
what makes no sense means nothing was said.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from edl._endpoints import parse_endpoint
from edl.errors import ConfigError

#: Longer values are not read: what EDL writes has a few thousand characters.
MAX_CHARACTERS = 1 << 20

#: No teacher or student has rows per second outside of this. Sums and shares of them stay finite.
_LEAST_RATE, _MOST_RATE = 1e-6, 1e12

#: How far apart two measurements are, as a share of the larger, if it is not by chance.
_NOISE = 0.2

#: What a name or an address of a host may be made of, of whatever length DNS allows.
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")


@dataclass(frozen=True)
class StudentRecord:
    """What a student says of itself.

    ``max_teachers``: its limit, None if it has none. ``want``: rows per second that it could use,
    None if it would use any number, 0 if it wants no teacher now. ``rates``: rows per second of
    teachers as it sees them. ``avoid``: teachers that it cannot use at the moment.
    ``rows_per_second``: what it consumes. ``ways``: how tensors travel to the teachers that it is
    connected to, for people: "tcp", "unix socket", "shared memory", "grpc". ``metrics``: the
    ``host:port`` at which it serves metrics, None if it does not. ``waits``: the share of its time
    that it waits for teachers, 0 to 1; None if that is not measured.
    """

    max_teachers: Optional[int] = None
    want: Optional[float] = None
    rates: Mapping[str, float] = field(default_factory=dict)
    avoid: tuple[str, ...] = ()
    rows_per_second: float = 0.0
    ways: Mapping[str, str] = field(default_factory=dict)
    metrics: Optional[str] = None
    waits: Optional[float] = None

    def to_json(self, **extra: Any) -> str:
        """One line for the registry."""
        return json.dumps({**extra, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> StudentRecord:
        """The inverse. What is missing or wrong has its default: one student's mistake must not
        keep the others from their teachers.
        """
        value = read_object(text)
        most, rates = as_number(value.get("max_teachers")), value.get("rates")
        found = rates.items() if isinstance(rates, dict) else ()
        return cls(
            None if most is None else int(min(max(1, most), 1 << 30)),
            _within(0.0, value.get("want")),
            {teacher: rate for teacher, item in found if (rate := _within(_LEAST_RATE, item))},
            tuple(sorted(_strings(value.get("avoid")))),
            _within(0.0, value.get("rows_per_second")) or 0.0,
            parse_ways(value.get("ways")),
            parse_address(value.get("metrics")),
            _within(0.0, value.get("waits"), 1.0),
        )


def parse_ways(value: Any) -> dict[str, str]:
    """How tensors travel, by teacher, out of ``read_object``; none if that is not said."""
    items = value.items() if isinstance(value, dict) else ()
    return {teacher: way for teacher, way in items if isinstance(way, str)}


def parse_address(value: Any) -> Optional[str]:
    """A ``host:port`` out of ``read_object``; None for anything else: somebody may ask there."""
    if not isinstance(value, str):
        return None
    try:
        host, _ = parse_endpoint(value)
    except ConfigError:
        return None
    return value if _HOST.fullmatch(host) else None


def format_assignment(teachers: frozenset[str]) -> str:
    """The value of a student's assignment."""
    return json.dumps({"teachers": sorted(teachers)})


def parse_assignment(text: str) -> frozenset[str]:
    """The teachers in an assignment; none if it is not one."""
    return _strings(read_object(text).get("teachers"))


def format_rate(rate: float) -> str:
    """The value of a teacher's rate, rows per second."""
    return json.dumps({"rate": float(f"{rate:.2g}")})


def parse_rate(text: str) -> Optional[float]:
    """The rate that a teacher's rate, or its entry, gives; None if it does not."""
    if '"rate"' not in text:  # most entries do not, and reading them takes longer
        return None
    return _within(_LEAST_RATE, read_object(text).get("rate"))


def parse_wanted(text: str) -> Optional[int]:
    """How many teachers a service's balance says are wanted; None if it does not."""
    number = _within(0.0, read_object(text).get("wanted"))
    return None if number is None else int(min(number, 1 << 30))


def differs(before: float, after: float, noise: float = _NOISE) -> bool:
    """Whether two measurements differ by more than noise, a share of the larger."""
    return abs(after - before) > noise * max(before, after)


def read_object(text: str) -> dict[str, Any]:
    """A JSON object of any origin; empty if it is not one. Numbers in it are finite."""
    if len(text) > MAX_CHARACTERS:
        return {}
    try:
        value = json.loads(text, parse_int=_int, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def as_number(value: Any) -> Optional[float]:
    """A number out of ``read_object``; None for anything else, booleans too."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _within(least: float, value: Any, most: float = _MOST_RATE) -> Optional[float]:
    """A number, such as rows per second, out of ``read_object``; None if it is not one, or
    impossible.
    """
    number = as_number(value)
    return number if number is not None and least <= number <= most else None


def _strings(value: Any) -> frozenset[str]:
    """The strings in what should be a list of them."""
    items = value if isinstance(value, list) else ()
    return frozenset(item for item in items if isinstance(item, str))


def _int(digits: str) -> Any:
    # Python has a limit for digits, and an int may be too large for a float.
    return int(digits) if len(digits) < 20 else _finite(digits)


def _finite(text: str) -> Optional[float]:
    number = float(text)
    return number if math.isfinite(number) else None
