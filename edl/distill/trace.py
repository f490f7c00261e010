"""A timeline of what the reader did, for https://ui.perfetto.dev or chrome://tracing.

Source of the format: "Trace Event Format" (Google). The file is a JSON array that is written as
things happen; viewers accept one whose end is missing, so a killed program leaves a useful trace.
What is on it, see ``timeline``.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from edl.errors import ConfigError

#: Above any process id of Linux: the numbers of groups that are no process of this machine.
_FIRST_GROUP = 1 << 22

#: Viewers order the rows of a group by number; a track has so many, so that its rows are together.
_MOST_LANES = 10_000

_NOTHING: Mapping[str, Any] = {}


class Span(NamedTuple):
    """Something that took from ``start`` to ``end``, by ``time.monotonic``."""

    name: str
    start: float
    end: float
    details: Mapping[str, Any] = _NOTHING


class Flow(NamedTuple):
    """Arrows between spans: those of the same ``name`` and ``number`` are joined in the order of
    their times. ``step``: "s" for the first, "t" for more, "f" for the last.
    """

    name: str
    number: int
    step: str


class Trace:
    """Appends events to a file. Times are ``time.monotonic()`` seconds. Safe to share. Raises
    ConfigError if the file cannot be written.

    A track is a row of the timeline; tracks of the same ``group`` are shown together.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self._lock = threading.Lock()
        try:
            self._file = open(path, "w", buffering=1 << 16)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise ConfigError(f"cannot write the trace {path}: {error.strerror}") from error
        self._file.write("[")
        self._origin = time.monotonic()
        self._groups: dict[str, int] = {}
        self._lanes: dict[tuple[str, str], list[_Lane]] = {}
        self._first = True

    def span(
        self,
        track: str,
        name: str,
        start: float,
        end: float,
        *,
        group: str = "",
        parts: Iterable[Span] = (),
        flow: Optional[Flow] = None,
        **details: Any,
    ) -> None:
        """Something that took from ``start`` to ``end``, and its ``parts``, which lie within it. If
        the track has another one meanwhile, it gets a second row. ``flow``: arrows that pass its
        start.
        """
        with self._lock:
            if self._file.closed:
                return
            place = self._lane(group, track, start, end).place
            self._append(self._span(Span(name, start, end, details)) + place)
            if flow is not None:  # before the parts, or it would be the first one's
                self._append(self._arrow(flow, start) + place)
            for part in parts:
                self._append(self._span(part) + place)

    def arrow(self, track: str, flow: Flow, at: float, *, group: str = "") -> None:
        """An arrow from or to the span that this track has, in its first row, at that time."""
        with self._lock:
            if not self._file.closed:
                place = self._first_lane(group, track).place
                self._append(self._arrow(flow, at) + place)

    def counter(self, name: str, at: float, **values: float) -> None:
        """A value over time."""
        with self._lock:
            if not self._file.closed:
                place = self._first_lane("", name).place
                ts, args = self._nanos(at) / 1000, json.dumps(values)
                self._append(
                    f'{{"ph": "C", "name": {_quoted(name)}, "ts": {ts}, "args": {args}{place}'
                )

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            if not self._file.closed:
                self._file.write("\n]\n")
                self._file.close()

    # An event is text up to its place, which ends it: there are many, and json takes its time.

    def _nanos(self, seconds: float) -> int:
        """Whole ones, so that what lies within something else does so after rounding, too."""
        return round((seconds - self._origin) * 1e9)

    def _span(self, span: Span) -> str:
        start, end = self._nanos(span.start), self._nanos(span.end)
        times = f'"ts": {start / 1000}, "dur": {max(0, end - start) / 1000}'
        args = json.dumps(span.details) if span.details else "{}"
        return f'{{"ph": "X", "name": {_quoted(span.name)}, {times}, "args": {args}'

    def _arrow(self, flow: Flow, at: float) -> str:
        name = f'"name": {_quoted(flow.name)}, "cat": "flow", "id": {flow.number}'
        return f'{{"ph": "{flow.step}", {name}, "bp": "e", "ts": {self._nanos(at) / 1000}'

    def _name(self, kind: str, name: str) -> str:
        return f'{{"ph": "M", "name": "{kind}", "args": {{"name": {_quoted(name)}}}'

    def _lane(self, group: str, track: str, start: float, end: float) -> _Lane:
        """The first row of the track where nothing ends later than ``start``. (What is written was
        over by then, so a row has no two at the same time.)
        """
        lane = self._first_lane(group, track)
        lanes = self._lanes[group, track]
        lane = next((lane for lane in lanes if lane.end <= start), None) or self._new_lane(
            group, track
        )
        lane.end = end
        return lane

    def _first_lane(self, group: str, track: str) -> _Lane:
        lanes = self._lanes.setdefault((group, track), [])
        return lanes[0] if lanes else self._new_lane(group, track)

    def _new_lane(self, group: str, track: str) -> _Lane:
        if group not in self._groups:
            self._groups[group] = _FIRST_GROUP + len(self._groups) if group else os.getpid()
            place = _Lane(self._groups[group], 0).place
            self._append(self._name("process_name", group or "student") + place)
        lanes = self._lanes[group, track]
        number = _MOST_LANES * list(self._lanes).index((group, track)) + len(lanes) + 1
        lane = _Lane(self._groups[group], number)
        lanes.append(lane)
        name = f"{track} ({len(lanes)})" if len(lanes) > 1 else track
        self._append(self._name("thread_name", name) + lane.place)
        return lane

    def _append(self, event: str) -> None:
        self._file.write(("\n" if self._first else ",\n") + event)
        self._first = False


class _Lane:
    """One row: its ``place``, which ends an event, and when the last span on it ended."""

    __slots__ = ("end", "place")

    def __init__(self, group: int, number: int) -> None:
        self.place = f', "pid": {group}, "tid": {number}}}'
        self.end = float("-inf")


@functools.lru_cache(maxsize=256)
def _quoted(name: str) -> str:
    return json.dumps(name)


def trace_path(argument: Union[str, Path, None]) -> Optional[Path]:
    """Where to write: the argument, else $EDL_DISTILL_TRACE; ``{pid}`` becomes the process id."""
    path = argument or os.environ.get("EDL_DISTILL_TRACE")
    return Path(str(path).replace("{pid}", str(os.getpid()))) if path else None
