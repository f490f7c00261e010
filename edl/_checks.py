"""Checks of numbers that a user gives, before anything is done with them."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Optional

from edl.errors import ConfigError


def check_positive(name: str, value: object, least: Optional[float] = None) -> None:
    """Raises ConfigError unless ``value`` is a finite number above 0; or, if ``least`` is given
    (which may be 0), of at least that.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)  # numpy's too
    try:
        found = float(value) if number else math.nan  # type: ignore[arg-type]
    except OverflowError:  # an integer that no float can hold
        found = math.inf
    if math.isfinite(found) and (found > 0 if least is None else found >= least):
        return
    wanted = "above 0" if least is None else f"of at least {least:g}"
    raise ConfigError(f"{name} must be a finite number {wanted}, not {value!r}")


def check_count(name: str, value: object, least: int = 1) -> int:
    """``value``, if it is a whole number of at least ``least``. Raises ConfigError."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)
