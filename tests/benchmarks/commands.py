"""Benchmarks as they are run: a process of their own."""

import json
import os
import subprocess
import sys

from tests.support.processes import ROOT


def benchmark(name, path, *arguments):
    """What ``benchmarks/NAME.py ARGUMENTS --json PATH`` prints, and writes."""
    result = run(name, *arguments, "--json", path)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(path.read_text())


def run(name, *arguments, timeout=240, **environment):
    return subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
