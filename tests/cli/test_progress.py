"""Bars of commands that take long: on a terminal, and only there."""

import signal
import sys

import pytest

from edl.store import LabelStore
from tests.store.test_store import added
from tests.support.processes import edl, edl_on_terminal, on_terminal_do, python_teacher


@pytest.fixture
def store(tmp_path):
    with LabelStore(tmp_path / "labels") as store:
        added(store, range(1500))
        store.flush()
    return tmp_path / "labels"


def on_terminal(*arguments):
    with edl_on_terminal(*arguments) as process:
        pass
    return process


@pytest.mark.parametrize(
    ("command", "doing"),
    [
        (["verify"], "verifying"),
        (["compact"], "compacting"),
        (["export", "OUT"], "exporting"),
    ],
)
def test_a_bar_says_how_many_of_all_records(store, tmp_path, command, doing):
    name, *rest = command
    out = [str(tmp_path / "labels.npz") for _ in rest]
    process = on_terminal("labels", name, store, *out)
    assert process.returncode == 0
    assert doing in process.shown
    assert "1,000/1,500 records" in process.shown


def test_what_is_merged_is_counted_through_all_sources(store, tmp_path):
    with LabelStore(tmp_path / "more") as more:
        added(more, range(1500, 2500))
        more.flush()
    process = on_terminal("labels", "merge", tmp_path / "all", store, tmp_path / "more")
    assert "2,000/2,500 records" in process.shown


def test_a_teacher_says_that_it_loads_and_then_nothing_more(tmp_path):
    with edl_on_terminal("teacher", "--python", "tests.support.predictors:Sums") as process:
        assert process.stdout.readline().startswith("teacher ready at ")
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert "loading the model" in process.shown
    assert process.shown.endswith("\x1b[2K")  # the bar is wiped away


def test_measurements_are_counted():
    with python_teacher(verbose=False) as teacher:
        arguments = ("--feed", "img:float32:4", "--batch", "1,2", "--seconds", "0.1")
        process = on_terminal("bench", teacher.endpoint, *arguments, "--clients", "1")
    assert process.returncode == 0
    assert "1/2 measurements" in process.shown


def test_an_error_follows_the_bar(tmp_path):
    process = on_terminal("export", "--model", tmp_path / "none", "--out", tmp_path / "out")
    assert process.returncode == 1
    bar, _, error = process.shown.rpartition("exporting")
    assert bar
    assert "edl: " in error


LOGS = """
import logging
from edl.cli.progress import progress
logging.basicConfig(format="%(message)s")
with progress("working"):
    logging.warning("something is odd")
logging.warning("over")
"""


def test_what_is_logged_meanwhile_is_above_the_bar():
    with on_terminal_do(sys.executable, "-c", LOGS) as process:
        pass
    lines = process.shown.splitlines()
    assert any(line.endswith("\x1b[2Ksomething is odd") for line in lines)  # the bar is wiped away
    assert lines[-1].endswith("\x1b[2Kover")


@pytest.mark.parametrize("forced", ["", "1"])
def test_without_a_terminal_there_is_no_bar(store, monkeypatch, forced):
    monkeypatch.setenv("FORCE_COLOR", forced)
    for name in ("ls", "verify", "compact"):
        result = edl("labels", name, store)
        assert (result.returncode, result.stderr) == (0, "")
