"""Options that several commands have."""

from __future__ import annotations

from typing import Any, Callable

import click

protocol_option = click.option(
    "--protocol",
    type=click.Choice(["baidu_std", "pipeline"]),
    default="baidu_std",
    show_default=True,
    help="What it speaks: brpc (edl teacher, Paddle Serving in C++), or a Python pipeline's gRPC.",
)
form_option = click.option(
    "--form",
    type=click.Choice(["tensors", "key_value"]),
    default="tensors",
    show_default=True,
    help="How arrays travel to a pipeline.",
)


def sparse_label_options(where: str) -> Callable[[Any], Any]:
    """``--top-k``, ``--temperature`` and ``--samples``; ``where`` sparse labels come in."""
    options = (
        click.option(
            "--top-k",
            type=click.IntRange(1),
            help=f"Sparse labels {where}: so many of the largest logits.",
        ),
        click.option(
            "--temperature",
            type=float,
            default=1.0,
            show_default=True,
            help="What logits are divided by for sparse labels.",
        ),
        click.option(
            "--samples",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Class ids drawn from the rest for sparse labels.",
        ),
    )

    def decorate(command: Any) -> Any:
        for option in reversed(options):  # as if they were written one above the other
            command = option(command)
        return command

    return decorate


def feed_option(metavar: str, meaning: str) -> Callable[[Any], Any]:
    """``--feed``, any number of times, for an argument ``feeds``."""
    return click.option("--feed", "feeds", multiple=True, metavar=metavar, help=meaning)


def feed_spec(feed: str) -> tuple[str, tuple[list[int], str]]:
    """Name, row shape and dtype in ``NAME:DTYPE:SHAPE``. Raises UsageError if it is not that."""
    try:
        name, dtype, shape = feed.split(":")
        return name, ([int(size) for size in shape.split(",") if size.strip()], dtype)
    except ValueError:
        raise click.UsageError(f"--feed {feed!r} is not NAME:DTYPE:SHAPE") from None
