"""``edl demo digits`` from beginning to end, and interrupted."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from edl.demos import digits
from edl.errors import EdlError, MissingDependencyError
from tests.support.processes import ROOT, alive, descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def start_demo(tmp_path, *arguments):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "120"}
    return subprocess.Popen(
        [sys.executable, "-m", "edl.cli.main", "demo", "digits", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=environment,
        text=True,
    )


def test_the_demo_loses_no_batch_and_distillation_helps(tmp_path):
    demo = start_demo(tmp_path, "--seeds", "1")
    output, _ = demo.communicate(timeout=180)
    assert demo.returncode == 0, output
    scores = {
        name: float(value)
        for name, value in re.findall(r"│ (teacher|student, [a-z ]*?) +│ +(0\.\d+) ", output)
    }
    assert scores["teacher"] > 0.97, output
    assert scores["student, distilled"] > scores["student, labels alone"] + 0.005
    expected, seen, sent, resent, lost = map(
        int, re.findall(r"│ +(\d+) │ +(\d+) │ +(\d+) │ +(\d+) │ +(\d+) │", output)[0]
    )
    assert expected == seen == 30 * 20
    assert sent >= seen
    assert lost == 1
    assert resent >= 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "least", "signum"),
    [
        pytest.param("1.", 0, signal.SIGINT, id="nobody yet"),
        pytest.param("5.", 5, signal.SIGTERM, id="etcd, two teachers with a worker each"),
    ],
)
def test_an_interrupted_demo_leaves_no_process_and_no_file(tmp_path, step, least, signum):
    demo = start_demo(tmp_path)
    for line in demo.stdout:
        if line.startswith(step):
            break
    time.sleep(0.5)
    processes = descendants(demo.pid)
    assert len(processes) >= least
    demo.send_signal(signum)
    rest = demo.communicate(timeout=30)[0]
    assert demo.returncode == 130, rest
    assert "Traceback" not in rest
    assert [pid for pid in processes if alive(pid)] == []
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn_the_demo_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
        digits.load_digits()


def test_a_teacher_that_does_not_come_up_is_quoted(tmp_path):
    with digits.TeacherHost(
        ["--model", str(tmp_path / "no model")], "127.0.0.1:1", tmp_path
    ) as host:
        with pytest.raises(EdlError, match="did not come up:\nedl: no inference model"):
            host.start().wait_until_ready()


def test_a_teacher_that_is_frozen_is_ended_with_the_demo(tmp_path, paddle_model, etcd_server):
    with digits.TeacherHost(["--model", str(paddle_model)], etcd_server.endpoint, tmp_path) as host:
        frozen = host.start()
        frozen.wait_until_ready()
        os.kill(frozen.process.pid, signal.SIGSTOP)
    assert frozen.process.returncode == -signal.SIGKILL


def test_a_batch_that_is_missing_is_an_error():
    stats = {"batches": 99, "tasks_sent": 100, "resent": 0, "lost_teachers": 0}
    with pytest.raises(EdlError, match="99 batches were seen, 100 were expected"):
        digits._print_delivery(Console(quiet=True), 100, stats)
