"""What students say of themselves in the registry, and what they are told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Optional


@dataclass(frozen=True)
class StudentRecord:
    """What a student says of itself.

    ``max_teachers``: its limit, None if it has none. ``want``: rows per second that it could use,
    None if it would use any number. ``rates``: rows per second of teachers as it sees them.
    ``avoid``: teachers that it cannot use at the moment. ``rows_per_second``: what it consumes.
    """

    max_teachers: Optional[int] = None
    want: Optional[float] = None
    rates: Mapping[str, float] = field(default_factory=dict)
    avoid: tuple[str, ...] = ()
    rows_per_second: float = 0.0

    def to_json(self, **extra: Any) -> str:
        """One line for the registry."""
        return json.dumps({**extra, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> StudentRecord:
        """The inverse. What is missing or wrong has its default: one student's mistake must not
        keep the others from their teachers.
        """
        try:
            value = json.loads(text)
            rates = {str(key): float(item) for key, item in dict(value.get("rates", {})).items()}
            most, want = value.get("max_teachers"), value.get("want")
            return cls(
                max(1, int(most)) if most is not None else None,
                max(0.0, float(want)) if want is not None else None,
                {teacher: rate for teacher, rate in rates.items() if 0 < rate < math.inf},
                tuple(str(item) for item in value.get("avoid", ())),
                float(value.get("rows_per_second", 0.0)),
            )
        except (ValueError, TypeError, AttributeError, OverflowError):
            return cls()


def format_assignment(teachers: frozenset[str]) -> str:
    """The value of a student's assignment."""
    return json.dumps({"teachers": sorted(teachers)})


def parse_assignment(text: str) -> frozenset[str]:
    """The teachers in an assignment; none if it is not one."""
    try:
        return frozenset(str(teacher) for teacher in json.loads(text)["teachers"])
    except (ValueError, TypeError, KeyError):
        return frozenset()
