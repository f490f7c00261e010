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
IMAGES, BATCH = 320, 32
# A network without batch normalisation: that magnifies the last digit, in which an exported
# model differs from the layer it was, beyond all measure where a channel is constant.
STUDENT = "squeezenet1_1"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What it said, and its directory."""
    work = tmp_path_factory.mktemp("resnet")
    small = {"STUDENT": STUDENT, "TEACHER": NETWORK, "TEACHER_EPOCHS": "1", "EPOCHS": "1"}
    result = subprocess.run(
        [DEMO / "demo.sh", "--teachers", "2", "--train-images", str(IMAGES)],
        cwd=work, env={**ENVIRONMENT, **small, "WORK": str(work), "PATH": PATH},
        capture_output=True, text=True, timeout=390, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, work


def test_the_whole_demo(demo):
    output, _ = demo
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


def test_all_modes_see_the_same_batches_and_learn_from_the_same_teacher(demo):
    _, work = demo
    pure, online, simulated, real, stored = (
        losses(work / "paper" / run)
        for run in (
            "pure-0-0-0-0", "online-0-0-0-0", "service-2-0-0-0", "service-0-1-0-0",
            "service-0-0-1-0",
        )
    )  # fmt: skip
    assert len(pure) == IMAGES // BATCH
    assert pure.keys() == online.keys() == simulated.keys() == real.keys()
    # What was recorded is what the teacher says in the student's process.
    assert stored == simulated, "to the bit"
    for service in (simulated, real):
        np.testing.assert_allclose(list(service.values()), list(online.values()), rtol=1e-3)
    assert real[0, BATCH] != pytest.approx(pure[0, BATCH], rel=1e-2)
