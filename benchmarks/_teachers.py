"""``edl teacher`` in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from edl import _process

ROOT = Path(__file__).parents[1]


@contextmanager
def teachers(
    number: int, arguments: Sequence[str], environment: Optional[Mapping[str, str]] = None
) -> Iterator[list[str]]:
    """So many of them, which start side by side; their endpoints, once all are ready.

    Predictors of this directory can be named in ``--python``.
    """
    processes = [
        _process.start(
            [sys.executable, "-m", "edl.cli.main", "teacher", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/benchmarks", **(environment or {})},
        )
        for _ in range(number)
    ]
    try:
        endpoints = []
        for process in processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("teacher ready at "):
                raise SystemExit(f"a teacher did not start: {line!r}")
            endpoints.append(line.split()[-1])
        yield endpoints
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=20)
