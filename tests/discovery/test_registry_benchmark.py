"""``benchmarks/registry.py`` at a small size."""

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT


@pytest.mark.slow
def test_it_measures_every_event():
    command = [sys.executable, "benchmarks/registry.py", "--teachers", "20", "--readers", "2"]
    result = subprocess.run(
        [*command, "--seconds", "0.5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "not in" not in result.stdout
    for event in ("all readers come", "steady state", "joins", "leaves", "a tenth"):
        assert event in result.stdout
