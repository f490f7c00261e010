"""The page of ``edl dashboard`` with a large service: first paint, and what an update costs.

python benchmarks/dashboard.py [--teachers N] [--students N] [--seconds S] [--json PATH]

Teachers and students are played by one process (see ``_played``): entries in a real etcd, and
figures on a port that answers as theirs do. Chromium opens the page without a window. ``first
paint``: from asking for the page until all rows of its tables are there. ``an update``: CPU time of
the process that serves it, all of it, for each second: reading what has changed in the registry,
asking fifty ports, what follows, and telling the page. ``the browser``: the time that its script
takes for an update.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _played import Mood, Played
from rich.console import Console
from rich.table import Table

from edl.discovery import Etcd
from edl.discovery.embedded import EmbeddedEtcd

SERVICE = "resnet_teacher"


def browser(width: int = 1400, height: int = 1500) -> Any:
    """Chromium without a window, and with nothing of its own on the network. Its driver makes it a
    profile, and removes that when it quits.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for switch in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *("disable-dev-shm-usage", "hide-scrollbars", f"window-size={width},{height}"),
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


@contextlib.contextmanager
def played(etcd: str, teachers: int, students: int) -> Iterator[None]:
    """A service that a process of its own plays."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_play, args=(etcd, teachers, students, there), daemon=True)
    process.start()
    here.recv()
    try:
        yield
    finally:
        here.close()
        process.join()


def _play(etcd: str, teachers: int, students: int, until: Any) -> None:
    with Etcd(etcd) as client, Played(client, SERVICE, teachers, students, Mood()):
        until.send("ready")
        with contextlib.suppress(EOFError):
            until.recv()


@contextlib.contextmanager
def dashboard(etcd: str) -> Iterator[tuple[str, int]]:
    """``edl dashboard`` in a process of its own: where, and its process id."""
    command = [sys.executable, "-m", "edl.cli.main", "dashboard", "--etcd", etcd, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1], process.pid
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """Of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure(teachers: int, students: int, seconds: float) -> dict[str, float]:
    """All figures, in milliseconds."""
    rows = "return document.querySelectorAll('tbody tr[data-key]').length"
    with contextlib.ExitStack() as stack:
        etcd = stack.enter_context(EmbeddedEtcd())
        stack.enter_context(played(etcd.endpoint, teachers, students))
        url, pid = stack.enter_context(dashboard(etcd.endpoint))
        page = browser()
        stack.callback(page.quit)
        time.sleep(3)  # it has read the registry
        started = time.monotonic()
        page.get(url)
        while page.execute_script(rows) < teachers + students:
            time.sleep(0.01)
        painted = time.monotonic() - started
        page.execute_script(
            "const drawn = draw; window.spent = []; draw = (fresh) => {"
            " const at = performance.now(); drawn(fresh); document.body.offsetHeight;"
            " window.spent.push(performance.now() - at); };"
        )
        time.sleep(max(5.0, 2.5 * (teachers + students) / 64))  # everybody has been asked twice
        before, drawn = cpu_seconds(pid), len(page.execute_script("return window.spent"))
        started = time.monotonic()
        time.sleep(seconds)
        used = (cpu_seconds(pid) - before) / (time.monotonic() - started)
        spent = sorted(page.execute_script("return window.spent")[drawn:])
        waits = page.execute_script("return state.services[chosen].info.waits")
        assert waits, "the page has no figures"
    return {
        "first paint": 1000 * painted,
        "an update": 1000 * used,
        "the browser": spent[len(spent) // 2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teachers", type=int, default=500)
    parser.add_argument("--students", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    figures = measure(options.teachers, options.students, options.seconds)
    table = Table(title=f"{options.teachers} teachers, {options.students} students")
    table.add_column("what")
    table.add_column("ms", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.0f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
