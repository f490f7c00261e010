"""The suite itself ends, whatever its tests do."""

import os
import subprocess
import sys
from pathlib import Path

OPTIONS = ["--timeout", "1", "--timeout-method", "thread"]
HANGS = """
import os, time

def test_hangs():
    if os.fork() == 0:
        time.sleep(100)
        os._exit(0)
    time.sleep(100)

def test_is_run_all_the_same():
    pass
"""


def test_a_worker_that_hangs_beside_a_forked_process_fails_and_the_others_go_on(tmp_path):
    (tmp_path / "test_two.py").write_text(HANGS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    with open(tmp_path / "said", "w") as said:  # the forked process keeps it open
        ended = subprocess.run(
            [*command, "-n", "1", *OPTIONS, "--rootdir", tmp_path, tmp_path],
            check=False,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "COVERAGE_PROCESS_START": ""},
            stdout=said,
            stderr=said,
            timeout=40,
        )
    assert ended.returncode == 1
    assert "1 failed, 1 passed" in (tmp_path / "said").read_text()
