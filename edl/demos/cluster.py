"""Everything at work on one machine: ``edl demo cluster``.

etcd, three teachers, two students that train, Prometheus where it is installed, and the dashboard.
The students take turns in being slow and in a hurry, so that there is something to see: while both
hurry they wait for their teachers, while both are slow the teachers have little to do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any, Optional

import click
import numpy as np

from edl._paddle import import_paddle
from edl._process import stop_event
from edl.demos.digits import Mixtures, TeacherHost, load_digits, make_student, make_teacher, train
from edl.discovery import Etcd
from edl.discovery.embedded import EmbeddedEtcd, die_with_parent, free_port
from edl.errors import EdlError
from edl.serving import export_model
from edl.view.web import Dashboard, Listen

SERVICE = "digits_teacher"
TEACHERS, STUDENTS = 3, 2

_END_WITHIN = 5.0
_RULES = Path(__file__).parents[2] / "deploy" / "prometheus"


def run(port: int, seconds: Optional[float], work_dir: Optional[Path]) -> None:
    """Bring all of it up, print where the page is, and end it after so many seconds, or when this
    process is told to.
    """
    paddle = import_paddle("this demo")
    warnings.filterwarnings("ignore", module="paddle")
    logging.getLogger("edl").addHandler(logging.NullHandler())
    stop = stop_event()
    with contextlib.ExitStack() as stack:
        if work_dir is None:
            work_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edl-demo-")))
        work_dir.mkdir(parents=True, exist_ok=True)
        etcd = stack.enter_context(EmbeddedEtcd(work_dir / "etcd"))
        client = stack.enter_context(Etcd(etcd.endpoint))
        dashboard = stack.enter_context(Dashboard(client, Listen(port=port)))
        click.echo(f"dashboard at {dashboard.url}")
        click.echo("It is empty at first: a teacher is trained. Ctrl-C ends everything.")
        model_dir = _teacher_model(paddle, work_dir)
        host = stack.enter_context(TeacherHost(model_dir, etcd.endpoint, work_dir))
        for _ in range(TEACHERS):
            host.start()
        for number in range(STUDENTS):
            stack.enter_context(_Student(number, etcd.endpoint, work_dir))
        prometheus = stack.enter_context(_Prometheus(etcd.endpoint, work_dir))
        click.echo(f"{TEACHERS} teachers and {STUDENTS} students are starting; {prometheus.said}")
        stop.wait(seconds)
    click.echo("everything that was started has been stopped")


def _teacher_model(paddle: Any, work_dir: Path) -> Path:
    data = load_digits()
    paddle.seed(0)
    teacher = make_teacher()
    train(teacher, Mixtures(data, len(data.images), seed=0), epochs=5, learning_rate=5e-3)
    model_dir = work_dir / "teacher_model"
    export_model(teacher, model_dir, {"img": ((1, 8, 8), "float32")}, ["logits"])
    return model_dir
