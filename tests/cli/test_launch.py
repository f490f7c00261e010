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


#: A launcher's process: threads that each of 20 has that it forks while it talks to etcd.
FORKS = """
import os, sys, time
from edl.cli.launch import _leave_ranks_to_themselves
if sys.argv[2] == "mended":
    _leave_ranks_to_themselves()
from edl.discovery import _etcd3
import etcd3
host, port = sys.argv[1].split(":")
client = etcd3.client(host=host, port=int(port))
client.watch_prefix("/job")
counts = []
for number in range(20):
    client.put("/job/forks", str(number))
    pid = os.fork()
    if not pid:
        time.sleep(0.01)
        os._exit(len(os.listdir("/proc/self/task")))
    counts.append(os.waitpid(pid, 0)[1] >> 8)
print(max(counts), os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
"""


@pytest.mark.parametrize("how", ["mended", "as ever"])
def test_no_thread_of_the_launcher_runs_in_a_rank(etcd_server, how):
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("GRPC_EN")}
    result = subprocess.run(
        [sys.executable, "-c", FORKS, etcd_server.endpoint, how],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    threads, setting = result.stdout.split()
    assert (int(threads) == 1) == (how == "mended")
    assert setting == "None"  # for the ranks, which may fork


def test_with_etcd_failed_ranks_are_started_again_however_late_its_events_come(
    etcd_server, tmp_path
):
    master = ("--master", f"etcd://{etcd_server.endpoint}", "--job_id", tmp_path.name)
    result = launch(
        tmp_path, ("tests.support.late_launcher",), *master, "--elastic_level", "1", status=3
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert min(runs(tmp_path)) >= 2  # a late event makes it start them once more
