"""Options that several commands have."""

from __future__ import annotations

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
