"""``edl top`` and ``edl dashboard`` as commands. How a terminal is redrawn: see ``test_ls``."""

import io
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace

from rich.console import Console

from edl.discovery import Registration
from edl.discovery.embedded import free_port
from edl.view.snapshot import Snapshot
from edl.view.terminal import screen
from tests.support.processes import ROOT, edl
from tests.view.situations import service as situation
from tests.view.situations import with_teacher


def start(*arguments, **options):
    command = [sys.executable, "-m", "edl.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, **options)


def test_top_once_shows_what_a_real_teacher_does(etcd_server, etcd, service, sums_teacher):
    entry = '{"protocol": "baidu_std", "device": "cpu"}'
    teacher = Registration(etcd, service, sums_teacher.endpoint, entry)
    teacher.start()
    shown = edl("top", "--etcd", etcd_server.endpoint, "--service", service, "--once")
    teacher.stop()
    assert shown.returncode == 0, shown.stderr
    assert "1 teachers, 0 students, teachers busy 0 %" in shown.stdout
    assert "No student works with this teacher." in shown.stdout
    assert sums_teacher.endpoint in shown.stdout
    assert "\x1b" not in shown.stdout


def test_top_without_etcd_says_so():
    shown = edl("top", "--etcd", f"127.0.0.1:{free_port()}", "--once")
    assert shown.returncode == 1
    assert "does not answer" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_where_not_all_fit_those_in_trouble_are_shown_and_the_others_counted():
    crowd = with_teacher(situation(500, 100, waits=0.31), errors=0.05, words="out of memory")
    first, *others = crowd.teachers
    crowd = replace(crowd, teachers=(*others, first))
    console = Console(width=200, height=50, record=True, file=io.StringIO())
    console.print(screen(Snapshot(0.0, (crowd,)), 50))
    shown = console.export_text()
    assert len(shown.splitlines()) <= 50
    assert f"Teacher {first.endpoint} fails 5 % of its requests: out of memory." in shown
    assert shown.count(first.endpoint) > 1
    assert re.search(r"and \d{3} more\n", shown)


def test_the_dashboard_runs_until_it_is_told_to_end(etcd_server):
    for signum in (signal.SIGTERM, signal.SIGINT):
        with start(
            "dashboard", "--etcd", etcd_server.endpoint, "--port", 0,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            url = process.stdout.readline().removeprefix("dashboard at ").strip()
            with urllib.request.urlopen(f"{url}events", timeout=20) as events:
                assert events.readline() == b"event: full\n"
                process.send_signal(signum)
                assert process.wait(20) == 0
            assert process.stderr.read() == ""
