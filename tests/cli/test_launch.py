"""``edl launch``: Paddle's launcher, with etcd."""

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, edl

pytestmark = [pytest.mark.slow]
pytest.importorskip("paddle")

RANK = """
import os, sys, time
from pathlib import Path
rank = os.environ["PADDLE_TRAINER_ID"]
runs = Path(sys.argv[1]) / rank
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
while not all((runs.parent / other).exists() for other in ("0", "1")):
    time.sleep(0.01)  # the launcher ends the others when one has failed
sys.exit(int(sys.argv[2]) if len(runs.read_text()) == 1 else 0)
"""


def launch(directory, program, *options, status=0):
    """Two ranks that end with ``status`` at first, and well when they are started again."""
    script = directory / "rank.py"
    script.write_text(RANK)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *program, *options, "--nproc_per_node", "2",
         "--log_dir", str(directory / "log"), str(script), str(directory), str(status)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip


def runs(directory):
    return [len((directory / rank).read_text()) for rank in ("0", "1")]


def test_arguments_and_exit_status_are_passed_through(tmp_path):
    result = edl("launch", "--help")
    assert result.returncode == 0
    assert "--max_restart" in result.stdout
    assert "edl launch --nproc_per_node 2 train.py" in result.stdout
    result = launch(tmp_path, ("edl.cli.main", "launch"), status=3)
    assert result.returncode == 3
    assert runs(tmp_path) == [1, 1]


def test_with_etcd_failed_ranks_are_started_again_however_late_its_events_come(
    etcd_server, tmp_path
):
    master = ("--master", f"etcd://{etcd_server.endpoint}", "--job_id", tmp_path.name)
    result = launch(
        tmp_path, ("tests.support.late_launcher",), *master, "--elastic_level", "1", status=3
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert min(runs(tmp_path)) >= 2  # a late event makes it start them once more
