"""The command line: quick, light, and clear."""

import os
import shlex
import shutil
import subprocess
import sys

import click
import pytest

from edl import __version__
from edl.cli.main import edl as edl_command
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


def commands(group, *names):
    """Every command and what is typed for it; the group's own first."""
    yield names, group
    if isinstance(group, click.Group):
        for name in group.list_commands(click.Context(group)):
            yield from commands(group.get_command(click.Context(group), name), *names, name)


@pytest.fixture
def files_of_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("serving_client_conf.prototxt", "net.pdparams"):
        (tmp_path / name).touch()


@pytest.mark.parametrize("typed", list(commands(edl_command)), ids=lambda typed: " ".join(typed[0]))
def test_every_command_s_help_shows_an_example_that_can_be_typed(typed, files_of_examples):
    names, command = typed
    text = command.get_help(click.Context(command, info_name=" ".join(("edl", *names))))
    example = text.partition("Example:\n")[2].replace("\\\n", " ")
    assert example.strip(), f"{names} shows no example"
    for line in example.strip().splitlines():
        words = shlex.split(line.partition(">")[0])
        assert words[: len(names) + 1] == ["edl", *names]
        group = edl_command
        while isinstance(group, click.Group):
            words = words[1:]
            group = group.get_command(click.Context(group), words[0])
        group.make_context(words[0], words[1:])  # raises if it cannot be parsed


def completed(tmp_path, line):
    """What bash offers for a line, with the completion that edl prints for it."""
    (tmp_path / "edl").write_text(f'#!/bin/sh\nexec {sys.executable} -m edl.cli.main "$@"\n')
    (tmp_path / "edl").chmod(0o755)
    words = line.split(" ")
    script = (
        'eval "$(edl completion bash)"\n'
        f"COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}\n"
        '_edl_completion edl\necho "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    return result.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_and_options(tmp_path):
    assert completed(tmp_path, "edl be") == ["bench"]
    assert completed(tmp_path, "edl bench --cl") == ["--clients"]


@pytest.mark.parametrize(("shell", "word"), [("zsh", "compdef"), ("fish", "complete")])
def test_other_shells_have_theirs(shell, word):
    result = run("-m", "edl.cli.main", "completion", shell)
    assert result.returncode == 0
    assert word in result.stdout
    assert "_EDL_COMPLETE" in result.stdout
