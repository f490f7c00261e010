"""``edl demo cluster``, page included."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.support.processes import ROOT, alive, descendants, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: What the environment may say of teachers that are not the demonstration's.
ELSEWHERE = {"EDL_TEACHER_CA": "/etc/edl/ca.pem", "EDL_TLS_CERT": "/etc/edl/teacher.pem"}


def test_the_page_shows_everybody_at_work_and_ctrl_c_leaves_nothing(chromium, tmp_path):
    """Three teachers and two students at work on the page, and on Ctrl-C nobody is left."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), **ELSEWHERE}
    demo = subprocess.Popen(
        [sys.executable, "-m", "edl.cli.main", "demo", "cluster", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        page = demo.stdout.readline().removeprefix("dashboard at ").strip()
        eventually(lambda: _is_at_work(page), 200)
        chromium.get(page)
        rows = "return [...document.querySelectorAll('tbody tr[data-key]')].length"
        eventually(lambda: chromium.execute_script(rows) == 5, 60)
        links = chromium.find_elements("css selector", "#map path.link")
        advice = chromium.find_element("id", "advice-list").text
        assert links
        assert "%" in advice
        chromium.get("about:blank")
        said = [demo.stdout.readline() for _ in range(4)]
        if shutil.which("prometheus"):
            address = said[-1].removeprefix("Prometheus at ").strip()
            eventually(lambda: _up(address) == {"edl-teachers": 3, "edl-students": 2}, 60)
        processes = descendants(demo.pid)
        assert len(processes) >= 2 + 3 * 2 + 2, "etcd, the page, teachers with a worker, students"
        demo.send_signal(signal.SIGINT)
        rest = demo.communicate(timeout=60)[0]
        assert demo.returncode == 0, rest
        assert rest.endswith("everything that was started has been stopped\n")
        assert [pid for pid in processes if alive(pid)] == []
        assert list(tmp_path.iterdir()) == []
    finally:
        demo.kill()
        demo.communicate()


def test_it_starts_nobody_once_it_is_told_to_end(tmp_path):
    demo = subprocess.Popen(
        [sys.executable, "-m", "edl.cli.main", "demo", "cluster", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with demo:
        next(line for line in demo.stdout if line.startswith("training a teacher"))
        demo.send_signal(signal.SIGINT)
        assert demo.communicate(timeout=60)[0] == "everything that was started has been stopped\n"
    assert demo.returncode == 0
    assert list(tmp_path.iterdir()) == []


def _up(prometheus):
    """How many Prometheus gets figures of, by job."""
    with urllib.request.urlopen(
        f"{prometheus}api/v1/query?query=sum+by+(job)(up)", timeout=30
    ) as answer:
        found = json.load(answer)["data"]["result"]
    return {one["metric"]["job"]: int(one["value"][1]) for one in found}


def _is_at_work(page):
    """Whether all are there, and say what they do."""
    with urllib.request.urlopen(f"{page}events", timeout=30) as events:
        line = next(line for line in events if line.startswith(b"data: "))
    service = json.loads(line[6:])["services"].get("digits_teacher", {})
    teachers, students = (service.get(kind, {}) for kind in ("teachers", "students"))
    return (
        len(teachers) == 3
        and len(students) == 2
        and all(teacher.get("busy", 0) > 0.05 for teacher in teachers.values())
        and all("waits" in student and student["rows"] > 100 for student in students.values())
        and all(student["teachers"] and student["connected"] for student in students.values())
    )
