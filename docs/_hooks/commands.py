"""Writes docs/reference/commands.md: every command with every option, as the code has them.

python docs/_hooks/commands.py
"""

import sys
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/commands.md"

_HEAD = """\
<!-- Written by docs/_hooks/commands.py: change the commands' own help, and run it again. -->

# Commands

`edl COMMAND --help` says the same in a terminal. Errors are one line on standard error and exit
status 1; a wrong option is exit status 2. Commands that serve run until Ctrl-C or SIGTERM. Those
that take long have a bar on standard error, if that is a terminal. Etcd's user and certificates
come from [the environment](environment.md).
"""


def page():
    """The whole page."""
    from edl.cli.main import edl

    return "\n".join([_HEAD, *_sections(edl, "edl")])


def _sections(command, name):
    """A command and those below it."""
    yield _section(command, name)
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for below in command.list_commands(context):
            yield from _sections(command.get_command(context, below), f"{name} {below}")


def _section(command, name):
    options = [item for item in command.params if isinstance(item, click.Option)]
    parts = [
        f"## `{name}`",
        _text(command.help),
        f"```text\n{_usage(command, name, options)}\n```",
    ]
    if options:
        rows = [f"| {_names(item)} | {_default(item)} | {_meaning(item)} |" for item in options]
        parts.append("\n".join(["| option | default | meaning |", "|---|---|---|", *rows]))
    lines = (command.epilog or "").replace("\b", "").strip().splitlines()
    if lines:
        example = "\n".join(line[2:] for line in lines[1:])
        parts.append(f"{lines[0]}\n\n```bash\n{example}\n```")
    return "\n\n".join(parts) + "\n"


def _usage(command, name, options):
    arguments = [_argument(item) for item in command.params if isinstance(item, click.Argument)]
    below = ["COMMAND"] if isinstance(command, click.Group) else []
    return " ".join([name, *(["[OPTIONS]"] if options else []), *arguments, *below])


def _argument(argument):
    if argument.metavar:
        return argument.metavar
    if isinstance(argument.type, click.Choice):
        return "|".join(argument.type.choices)
    name = argument.name.upper()
    return name if argument.nargs == 1 else f"{name}..."


def _names(option):
    names = ", ".join([*option.opts, *option.secondary_opts])
    return f"`{names}{_value(option)}`".replace("|", r"\|")


def _value(option):
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return f" {option.metavar}"
    if isinstance(option.type, click.Choice):
        return f" {'|'.join(option.type.choices)}"
    return f" {option.type.name.upper().replace(' RANGE', '')}"


def _default(option):
    if option.required:
        return "required"
    if option.show_default:
        return f"`{option.default}`"
    return _said_default(option)[1]


def _meaning(option):
    text = _text(_said_default(option)[0])
    if option.multiple and "several times" not in text:
        text += " May be given several times."
    if option.envvar and option.envvar not in text:
        text += f" Environment: `{option.envvar}`."
    return text.replace("|", r"\|")


def _said_default(option):
    """An option's help without the default that it names in words, and that."""
    text, _, default = (option.help or "").partition("[default: ")
    return text.strip(), default.rstrip("]")


def _text(text):
    """Help as paragraphs of one line each."""
    paragraphs = (text or "").replace("\b", "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page())
