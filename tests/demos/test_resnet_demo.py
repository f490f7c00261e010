"""``scripts/demo resnet`` at a small size, with benchmarks/paper.py, the original's table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.resnet import DEMO, ENVIRONMENT, NETWORK, losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
pytest.importorskip("paddle")

# The interpreter that runs the tests, and its ``edl``.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_the_whole_demo(tmp_path):
    small = {"STUDENT": NETWORK, "TEACHER": NETWORK, "TEACHER_EPOCHS": "1", "EPOCHS": "1"}
    result = subprocess.run(
        [DEMO / "demo.sh", "--teachers", "2", "--train-images", "320"],
        cwd=tmp_path, env={**ENVIRONMENT, **small, "WORK": str(tmp_path), "PATH": PATH},
        capture_output=True, text=True, timeout=390, check=False,
    )  # fmt: skip
    output = result.stdout
    assert result.returncode == 0, output + result.stderr
    assert output.count("teacher ready at") == 3
    assert "killed rank 1" in output
    assert re.search(r"resumed in epoch \d after \d+ samples", output)
    assert re.search(r"epoch 0: \d+ images/s, top-1 [\d.]+", output)
    rows = {}
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        if len(cells) == 10:
            rows[cells[0], cells[1]] = cells[2:]
    assert list(rows) == [
        ("pure", "none"),
        ("online", "the student's"),
        ("service", "2 simulated remote"),
        ("service", "1 real, this CPU"),
        ("service", "none: a label store"),
    ]
    for cells in rows.values():
        assert 0 < float(cells[2]) <= 100, "of one seed, so without a deviation"
    assert float(rows["pure", "none"][-2]) == 1
    # What was recorded is what the teacher says in the student's process.
    online, service, stored = (
        losses(tmp_path / "paper" / run)
        for run in ("online-0-0-0-0", "service-2-0-0-0", "service-0-0-1-0")
    )
    assert stored == service, "to the bit"
    assert online.keys() == service.keys()
    np.testing.assert_allclose(list(online.values())[:8], list(service.values())[:8], rtol=1e-3)
