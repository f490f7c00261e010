"""``edl dashboard``: who waits for whom, as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from edl._process import stop_event
from edl.cli.example import example

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(epilog=example("edl dashboard --etcd 127.0.0.1:2379"))
@click.option("--etcd", required=True, help="etcd endpoints, comma-separated.")
@click.option("--service", help="Only this one.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Beyond this machine only with a token or TLS.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8600,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@click.option(
    "--token",
    envvar="EDL_DASHBOARD_TOKEN",
    default="",
    help="What browsers must show, once, as ?token=... Better as the environment variable "
    "EDL_DASHBOARD_TOKEN: others on this machine can read a command line.",
)
@click.option("--tls-cert", type=_FILE, help="Certificate in PEM format: serve https.")
@click.option("--tls-key", type=_FILE, help="Its key.")
def command(
    etcd: str,
    service: Optional[str],
    host: str,
    port: int,
    token: str,
    tls_cert: Optional[Path],
    tls_key: Optional[Path],
) -> None:
    """Serve a page that shows who waits for whom, and what to do about it.

    Reads the registry, and asks teachers and students for their figures; changes nothing. The page
    is live, has the last hour as curves, and fetches nothing from elsewhere. Prints its address
    when it is ready.
    """
    from edl.discovery import Etcd
    from edl.view.web import Dashboard, Listen

    stop = stop_event()
    certificates = (None if path is None else str(path) for path in (tls_cert, tls_key))
    with (
        Etcd(etcd) as client,
        Dashboard(client, Listen(host, port, token, *certificates), service) as dashboard,
    ):
        click.echo(f"dashboard at {dashboard.url}{'?token=...' if token else ''}")
        stop.wait()
