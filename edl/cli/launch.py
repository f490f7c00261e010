"""``edl launch``: Paddle's own launcher, with a registry it can talk to."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import click

from edl.cli.example import example

_GRPC_FORKS = "GRPC_ENABLE_FORK_SUPPORT"


@click.command(
    epilog=example("edl launch --nproc_per_node 2 train.py"),
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run paddle.distributed.launch; everything is passed on to it.

    Paddle's launcher finds its peers through etcd (`--master etcd://HOST:PORT`) with the etcd3
    package, which does not import beside a current protobuf. This mends that, a race in the
    launcher by which it sometimes ended instead of starting failed ranks again (`--elastic_level
    1`), and one by which gRPC aborted some ranks before they began. `edl launch --nproc_per_node 2
    train.py ...` is otherwise `python -m paddle.distributed.launch --nproc_per_node 2 train.py
    ...`.
    """
    from edl._paddle import import_paddle

    _leave_ranks_to_themselves()
    from edl.discovery import _etcd3  # noqa: F401  (importing it is what repairs etcd3)

    if arguments in (("-h",), ("--help",)):  # Paddle's own help follows
        click.echo(click.get_current_context().get_help() + "\n")
    import_paddle("launching")
    _restart_at_once()
    sys.argv = ["paddle.distributed.launch", *arguments]
    runpy.run_module("paddle.distributed.launch", run_name="__main__")


def _leave_ranks_to_themselves() -> None:
    """Let gRPC, by which the launcher talks to etcd, do nothing in the ranks that it forks. It
    starts its threads again in them, which abort a rank if they find their files closed before it
    has become Python. The ranks' own gRPC is as ever: their DataLoaders fork, too.
    """
    if _GRPC_FORKS in os.environ:
        return
    os.environ[_GRPC_FORKS] = "0"
    import grpc

    grpc.insecure_channel("127.0.0.1:0").close()  # when it is first used it reads what is set
    del os.environ[_GRPC_FORKS]


def _restart_at_once() -> None:
    """Let a launcher whose rank has failed know by itself that it is to restart.

    It deletes all heartbeats, and the event of that deletion sets its own status from "failed" to
    "restarting" as well as its peers'. If its ranks are all dead by then, it looks at its status
    right after the deletion; where the event comes later than that, it finds "failed", takes it for
    the end of the job, and leaves. (paddle.distributed.launch of Paddle 3.3.)
    """
    from paddle.distributed.launch.controllers import master

    etcd_master: Any = master.ETCDMaster
    restart_peers = etcd_master.restart_peer

    def restart(self: Any) -> None:
        restart_peers(self)
        self.ctx.status.restart()

    etcd_master.restart_peer = restart
