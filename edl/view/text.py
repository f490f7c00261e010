"""Texts and numbers of strangers, for people to read."""

from __future__ import annotations

import math
import time
from typing import Any, Optional

from edl.discovery.records import as_number

_LONGEST = 1000


def plain(text: str, longest: int = _LONGEST) -> str:
    """What a terminal or a page shows and does not obey, in a length that can be read."""
    if len(text) <= longest and text.isprintable():  # nearly all
        return text
    shown = text if len(text) <= longest else text[:longest] + "..."
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in shown)


def number(value: Any) -> str:
    """A number for people; nothing if it is not one."""
    known = as_number(value)
    return "" if known is None else f"{known:,.0f}" if abs(known) < 1e15 else f"{known:.1e}"


def percent(share: Optional[float]) -> str:
    """A share from 0 to 1 as "31 %"; nothing if it is not known."""
    if share is None:
        return ""
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def duration(seconds: Optional[float]) -> str:
    """A short time for people, as "2.4 ms"; nothing if it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def age(since: Any, now: Optional[float] = None) -> str:
    """How long ago that was, in the largest unit; nothing if it is not a time."""
    started = as_number(since)
    if started is None:
        return ""
    seconds = max(0, int((time.time() if now is None else now) - started))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
