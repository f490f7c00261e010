"""The command line: quick, light, and clear."""

import os
import subprocess
import sys

import pytest

from edl import __version__
from tests.support.processes import ROOT

HEAVY = {"numpy", "paddle", "grpc", "etcd3", "rich", "google.protobuf", "asyncio"}


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys, edl.cli.main as m\n"
        f"sys.argv = ['edl', *{arguments!r}]\n"
        "try: m.main()\nexcept SystemExit: pass\n"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    assert run("-c", code).stdout.endswith("heavy: []\n")


@pytest.mark.parametrize("command", ["teacher", "etcd", "demo"])
def test_the_help_of_a_command_needs_no_paddle(command):
    result = run("-X", "importtime", "-m", "edl.cli.main", command, "--help")
    assert result.returncode == 0
    assert "Usage" in result.stdout
    assert "| paddle" not in result.stderr


def test_the_help_lists_every_command():
    out = run("-m", "edl.cli.main", "--help").stdout
    assert all(name in out for name in ("teacher", "etcd", "demo"))


def test_the_version_is_the_packages():
    assert __version__ in run("-m", "edl.cli.main", "--version").stdout


def test_an_unknown_command_is_a_usage_error():
    result = run("-m", "edl.cli.main", "teach")
    assert result.returncode == 2
    assert "No such command 'teach'" in result.stderr


def test_edls_own_errors_are_one_line():
    result = run("-m", "edl.cli.main", "teacher", "--model", "/nowhere")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("edl: ")


def test_a_shell_completes_the_commands():
    code = "import sys, edl.cli.main as m; sys.argv = ['edl']; m.edl(prog_name='edl')"
    words = {"_EDL_COMPLETE": "bash_complete", "COMP_WORDS": "edl te", "COMP_CWORD": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **words},
        check=False,
    )
    assert result.stdout == "plain,teacher\n"
