"""Processes of a demonstration: what they say goes to a log, and they end with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from edl import _process

_END_WITHIN = 5.0


def start(
    command: Sequence[str], log: Path, extra: Optional[Mapping[str, str]] = None
) -> subprocess.Popen[bytes]:
    """Start one. ``extra``: environment variables beside ours."""
    with log.open("wb") as output:
        return _process.start(
            command, stdout=output, stderr=output, env={**os.environ, **(extra or {})}
        )


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End them, all at once; kill those that do not."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
