"""What a process takes of its machine, from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Footprint(NamedTuple):
    """``memory``: bytes, with a part of what is shared; ``cpu``: seconds since the start."""

    memory: int
    threads: int
    files: int
    cpu: float


def footprint(pid: int) -> Footprint:
    """Of one process, without its children."""
    process = Path(f"/proc/{pid}")
    (kilobytes,) = (
        int(line.split()[1])
        for line in (process / "smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return Footprint(
        memory=kilobytes << 10,
        threads=int(fields[17]),
        files=len(list((process / "fd").iterdir())),
        cpu=(int(fields[11]) + int(fields[12])) / _TICKS,
    )


def children(pid: int) -> list[int]:
    """The process's own, not theirs."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
