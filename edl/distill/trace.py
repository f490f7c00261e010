"""A timeline of what the reader did, for https://ui.perfetto.dev or chrome://tracing.

Source of the format: "Trace Event Format" (Google). The file is a JSON array that is written as
things happen; viewers accept one whose end is missing, so a killed program leaves a useful trace.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Optional, Union

from edl.errors import ConfigError


class Trace:
    """Appends events to a file. Times are ``time.monotonic()`` seconds. Safe to share. Raises
    ConfigError if the file cannot be written.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self._lock = threading.Lock()
        try:
            self._file = open(path, "w", buffering=1 << 16)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise ConfigError(f"cannot write the trace {path}: {error.strerror}") from error
        self._file.write("[")
        self._origin = time.monotonic()
        self._pid = os.getpid()
        self._tracks: dict[str, int] = {}
        self._first = True

    def span(self, track: str, name: str, start: float, end: float, **details: Any) -> None:
        """Something that took from ``start`` to ``end``, in the row called ``track``."""
        self._write(
            {
                **{"ph": "X", "name": name, "ts": self._micros(start)},
                **{"dur": max(0.0, (end - start) * 1e6), "args": details},
            },
            track,
        )

    def counter(self, name: str, at: float, **values: float) -> None:
        """A value over time."""
        self._write({"ph": "C", "name": name, "ts": self._micros(at), "args": values}, name)

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            if not self._file.closed:
                self._file.write("\n]\n")
                self._file.close()

    def _micros(self, seconds: float) -> float:
        return (seconds - self._origin) * 1e6

    def _write(self, event: dict[str, Any], track: str) -> None:
        with self._lock:
            if self._file.closed:
                return
            if track not in self._tracks:
                self._tracks[track] = len(self._tracks) + 1
                name = {"ph": "M", "name": "thread_name", "args": {"name": track}}
                self._append({**name, "pid": self._pid, "tid": self._tracks[track]})
            self._append({**event, "pid": self._pid, "tid": self._tracks[track]})

    def _append(self, event: dict[str, Any]) -> None:
        self._file.write(("" if self._first else ",") + "\n" + json.dumps(event))
        self._first = False


def trace_path(argument: Union[str, Path, None]) -> Optional[Path]:
    """Where to write: the argument, else $EDL_DISTILL_TRACE; ``{pid}`` becomes the process id."""
    path = argument or os.environ.get("EDL_DISTILL_TRACE")
    return Path(str(path).replace("{pid}", str(os.getpid()))) if path else None
