"""The ``edl`` command: one module per subcommand, imported only when it is used."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Optional

import click

from edl import __version__
from edl.cli.example import example
from edl.errors import EdlError

#: Subcommand to the module that defines ``command``, and its line in the help.
_COMMANDS = {
    "teacher": ("edl.cli.teacher", "Host a teacher model."),
    "register": ("edl.cli.register", "Keep a server in the registry while it is healthy."),
    "ls": ("edl.cli.ls", "Show services, teachers, students and assignments."),
    "top": ("edl.cli.top", "Show who waits for whom, and what to do about it."),
    "dashboard": ("edl.cli.dashboard", "The same as a web page, with the last hour."),
    "balancer": ("edl.cli.balancer", "Assign teachers to students from a process of its own."),
    "targets": ("edl.cli.targets", "Say where figures are, for Prometheus."),
    "export": ("edl.cli.export", "Write a model as Paddle Serving's two directories."),
    "bench": ("edl.cli.bench", "Measure how fast a teacher is."),
    "label": ("edl.cli.label", "Fill a store with labels, ahead of training."),
    "labels": ("edl.cli.labels", "Look after stores of labels."),
    "etcd": ("edl.cli.etcd", "Run an etcd for small clusters and experiments."),
    "launch": ("edl.cli.launch", "Run paddle.distributed.launch, with etcd if need be."),
    "doctor": ("edl.cli.doctor", "Say what works on this machine, and what to do if not."),
    "demo": ("edl.cli.demo", "Run a demonstration on this machine."),
    "completion": ("edl.cli.completion", "Teach a shell to complete edl's commands."),
}


class _LazyGroup(click.Group):
    """Lists subcommands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        if cmd_name not in _COMMANDS:
            return None
        return importlib.import_module(_COMMANDS[cmd_name][0]).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(
    epilog=example(
        "edl etcd --port 2379", "edl teacher --model ./model --etcd 127.0.0.1:2379 --service resnet"
    ),
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="edl")
@click.option("-v", "--verbose", count=True, help="Log more; twice for everything.")
def edl(verbose: int) -> None:
    """Knowledge distillation for PaddlePaddle with elastic teachers."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")


def main() -> None:
    """Entry point: EDL's own errors become one line and exit status 1."""
    try:
        edl(prog_name="edl")
    except EdlError as error:
        click.echo(f"edl: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
