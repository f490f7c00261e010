"""``edl completion``: what a shell needs to complete edl's commands and options."""

from __future__ import annotations

import click

from edl.cli.example import example


@click.command(epilog=example("edl completion bash >> ~/.bashrc"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print what teaches a shell to complete edl's commands and options.

    For fish, write it to ~/.config/fish/completions/edl.fish.
    """
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None, shell
    root = click.get_current_context().find_root().command
    click.echo(completion(root, {}, "edl", "_EDL_COMPLETE").source())
