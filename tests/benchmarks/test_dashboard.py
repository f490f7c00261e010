"""``benchmarks/dashboard.py`` at a small size."""

import os
import shutil

import pytest

from tests.benchmarks.commands import benchmark


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") or os.environ.get("CI")),
    reason="chromium is not installed: scripts/system-packages",
)
def test_it_measures_the_first_paint_and_an_update(tmp_path):
    size = ["--teachers", 5, "--students", 2, "--seconds", 2]
    _, found = benchmark("dashboard", tmp_path / "json", *size)
    assert list(found) == ["first paint", "an update", "the browser"]
    assert found["first paint"] > 0
