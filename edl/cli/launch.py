"""``edl launch``: Paddle's own launcher, with a registry it can talk to."""

from __future__ import annotations

import runpy
import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run paddle.distributed.launch; everything is passed on to it.

    Paddle's launcher finds its peers through etcd (`--master etcd://HOST:PORT`) with the etcd3
    package, which does not import beside a current protobuf. This mends that and nothing else:
    `edl launch --nproc_per_node 2 train.py ...` is `python -m paddle.distributed.launch
    --nproc_per_node 2 train.py ...`.
    """
    from edl.discovery import _etcd3  # noqa: F401  (importing it is what repairs etcd3)
    from edl.serving._paddle import import_paddle

    import_paddle("launching")
    sys.argv = ["paddle.distributed.launch", *arguments]
    runpy.run_module("paddle.distributed.launch", run_name="__main__")
