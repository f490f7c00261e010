"""Everything at work on one machine: ``edl demo cluster``.

etcd, three teachers, two students that train, Prometheus where it is installed, and the dashboard.
The students take turns in being slow and in a hurry, so that there is something to see: while both
hurry they wait for their teachers, while both are slow the teachers have little to do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import click

from edl._paddle import import_paddle
from edl._process import stop_event
from edl.demos import processes
from edl.demos.cluster_teacher import MODEL
from edl.demos.digits import Mixtures, TeacherHost, load_digits, make_teacher, train
from edl.discovery.embedded import EmbeddedEtcd, free_port
from edl.errors import EdlError
from edl.serving import export_model

TEACHERS, STUDENTS = 3, 2

_EDL = (sys.executable, "-m", "edl.cli.main")
_ALERTS = Path(__file__).parents[2] / "deploy/prometheus/alerts.yml"
_REPLACE_EVERY = 60.0


def run(port: int, seconds: Optional[float], work_dir: Optional[Path]) -> None:
    """Bring all of it up, print where the page is, and end it after so many seconds, or when this
    process is told to.
    """
    warnings.filterwarnings("ignore", module="paddle")
    import_paddle("this demo")
    logging.getLogger("edl").addHandler(logging.NullHandler())
    stop = stop_event()
    deadline = None if seconds is None else time.monotonic() + seconds

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    with contextlib.suppress(_Stopped), contextlib.ExitStack() as stack:
        if work_dir is None:
            work_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edl-demo-")))
        work_dir.mkdir(parents=True, exist_ok=True)
        etcd = stack.enter_context(EmbeddedEtcd(work_dir / "etcd"))
        click.echo(stack.enter_context(_dashboard(etcd.endpoint, port, work_dir)))
        click.echo(f"etcd at {etcd.endpoint}: edl top --etcd {etcd.endpoint}")
        click.echo("training a teacher; Ctrl-C ends everything")
        os.environ[MODEL] = str(_export_teacher(work_dir, check))
        model = ["--python", "edl.demos.cluster_teacher:teacher"]
        host = stack.enter_context(TeacherHost(model, etcd.endpoint, work_dir))
        teachers = [host.start() for _ in range(TEACHERS)]
        for number in range(STUDENTS):
            stack.enter_context(_student(etcd.endpoint, number, work_dir))
        click.echo(f"started {TEACHERS} teachers and {STUDENTS} students")
        click.echo(stack.enter_context(_prometheus(etcd.endpoint, work_dir)))
        while not stop.wait(_until(deadline)):
            if deadline is not None and time.monotonic() >= deadline:
                break
            click.echo("killed a teacher, and started another one")
            teachers.pop(0).process.kill()
            teachers.append(host.start())
    click.echo("everything that was started has been stopped")


class _Stopped(Exception):
    """The process was told to end before everything was up."""


def _until(deadline: Optional[float]) -> float:
    """Seconds until something is to be done."""
    if deadline is None:
        return _REPLACE_EVERY
    return max(0.0, min(_REPLACE_EVERY, deadline - time.monotonic()))


def _export_teacher(work_dir: Path, on_batch: Callable[[], None]) -> Path:
    """The directory of a small model that knows digits well enough."""
    import paddle

    data = load_digits()
    paddle.seed(0)
    teacher = make_teacher()
    train(teacher, Mixtures(data, len(data.images), seed=0), 5, 5e-3, on_batch)
    model_dir = work_dir / "teacher_model"
    export_model(teacher, model_dir, {"img": ((1, 8, 8), "float32")}, ["logits"])
    on_batch()
    return model_dir


class _Process:
    """A process of the demo, from now until ``with`` ends."""

    def __init__(
        self, command: Sequence[str], log: Path, extra: Optional[Mapping[str, str]] = None
    ) -> None:
        self._process = processes.start(command, log, extra)

    def wait_for(self, start: str, log: Path, timeout: float = 30.0) -> str:
        """The line that begins so, once it is there. Raises EdlError with its last words."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in log.read_text().splitlines():
                if line.startswith(start):
                    return line
            time.sleep(0.05)
        raise EdlError(log.read_text()[-2000:].strip().replace("edl: ", "", 1) or "it said nothing")

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        processes.end([self._process])


def _student(etcd: str, number: int, work_dir: Path) -> _Process:
    command = [sys.executable, "-m", "edl.demos.cluster_student", etcd, str(number)]
    log = work_dir / f"student-{number}.log"
    return _Process(command, log, {"EDL_METRICS_PORT": "0", "OMP_NUM_THREADS": "1"})


@contextlib.contextmanager
def _dashboard(etcd: str, port: int, work_dir: Path) -> Iterator[str]:
    """The page, and what it says of where it is. Raises EdlError with its last words."""
    log = work_dir / "dashboard.log"
    command = [*_EDL, "dashboard", "--etcd", etcd, "--port", str(port)]
    with _Process(command, log) as process:
        yield process.wait_for("dashboard at ", log)


@contextlib.contextmanager
def _prometheus(etcd: str, work_dir: Path) -> Iterator[str]:
    """Prometheus, if it is installed, which finds everybody's figures by ``edl targets``; where it
    is, or why it is not.
    """
    program = shutil.which("prometheus")
    if program is None:
        yield "Prometheus is not installed (apt-get install prometheus): going on without"
        return
    found_at, port = free_port(), free_port()
    config = work_dir / "prometheus.json"
    config.write_text(json.dumps(_scrape(found_at)))  # JSON is YAML, which it reads
    targets = [*_EDL, "targets", "--etcd", etcd, "--port", str(found_at)]
    scraping = [
        program,
        f"--config.file={config}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={work_dir / 'prometheus'}",
    ]
    with (
        _Process(targets, work_dir / "targets.log"),
        _Process(scraping, work_dir / "prometheus.log"),
    ):
        yield f"Prometheus at http://127.0.0.1:{port}/"


def _scrape(targets: int) -> dict[str, Any]:
    """Prometheus' configuration: as in deploy/prometheus, with these ports, and its alerts if this
    runs in a clone of the repository.
    """
    jobs = [
        {
            "job_name": f"edl-{role}",
            "honor_labels": role == "students",
            "http_sd_configs": [
                {"url": f"http://127.0.0.1:{targets}/{role}", "refresh_interval": "5s"}
            ],
        }
        for role in ("teachers", "students")
    ]
    return {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [str(_ALERTS)] if _ALERTS.is_file() else [],
        "scrape_configs": jobs,
    }
