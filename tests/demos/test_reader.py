"""The reader demo."""

import subprocess
import sys

from tests.support.processes import ROOT


def test_the_three_formats_are_read():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "demos/reader/reader.py")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert result.stdout.splitlines()[-3:] == [
        "samples: 64, each (img, label, prob)",
        "sample lists: 4 of 16 samples, each (img, label, prob)",
        "batches: 4, each (img, label, prob) with 16 rows",
    ]
