"""``edl etcd``: an etcd for small clusters and experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from edl._process import stop_event
from edl.cli.example import example


@click.command(epilog=example("edl etcd --data-dir ./etcd"))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=2379,
    show_default=True,
    help="Port for clients; 0: a free one.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to keep data. Without it, a temporary directory that is removed at the end.",
)
def command(host: str, port: int, data_dir: Optional[Path]) -> None:
    """Run an etcd for small clusters and experiments.

    Prints its endpoint when it answers, and runs until Ctrl-C or SIGTERM. In production use your
    own cluster.
    """
    from edl.discovery.embedded import EmbeddedEtcd

    stop = stop_event()
    with EmbeddedEtcd(data_dir, port, host) as server:
        click.echo(f"etcd ready at {server.endpoint}")
        while not stop.wait(0.2):
            status = server.poll()
            if status is not None:
                raise click.ClickException(f"etcd ended by itself with status {status}")
    click.echo("etcd stopped")
