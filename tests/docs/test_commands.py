"""Every command in what people read is one that there is. Their files need not be there."""

import importlib.util
import re

import click
import pytest

from edl.cli.main import edl
from tests.docs.pages import ROOT, blocks, commands, pages

_SHELLS = {"bash", "sh", "shell", "console"}


def shell_commands(page):
    return [
        words
        for block in blocks(page)
        if block.language in _SHELLS
        for words in commands(block.code)
    ]


def parse(words):
    """Raises click.UsageError for a command, an option or a value that is not taken."""
    command, rest = edl, [word for word in words if word not in ("-v", "-vv")]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        _, command, rest = command.resolve_command(click.Context(command), rest)
    try:
        command.make_context(command.name, rest)
    except click.exceptions.Exit:  # of --help and --version
        pass
    except click.BadParameter as error:
        if "does not exist" not in error.message:
            raise


@pytest.mark.parametrize("page", pages())
def test_edl_commands_are_taken(page):
    for words in shell_commands(page):
        if words[0] == "edl" and words[1:2] != ["launch"]:  # whose arguments are Paddle's
            try:
                parse(words[1:])
            except click.UsageError as error:
                pytest.fail(f"{' '.join(words)}: {error.message}")


@pytest.mark.parametrize("page", pages())
def test_what_is_run_from_the_repository_is_there(page):
    for words in shell_commands(page):
        script = next((word for word in words if re.match(r"(scripts|benchmarks)/", word)), None)
        assert script is None or (ROOT / script).is_file(), script
        if words[0] == "scripts/demo" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] == "digits" or (ROOT / "demos" / words[1] / "demo.sh").is_file()


def test_wrong_commands_are_found():
    with pytest.raises(click.UsageError, match="No such command"):
        parse(["teach"])
    with pytest.raises(click.UsageError, match="No such option"):
        parse(["teacher", "--modell", "x"])
    with pytest.raises(click.UsageError, match="etcd"):
        parse(["register"])
    parse(["register", "--etcd", "h:1", "--service", "s", "--server", "h:2", "--conf", "nowhere"])


def test_modules_that_are_started_can_be_found():
    modules = {
        words[2]
        for page in pages()
        for words in shell_commands(page)
        if words[0] == "python" and words[1:2] == ["-m"] and words[2].startswith("edl.")
    }
    assert modules
    for module in modules:
        assert importlib.util.find_spec(module) is not None
