"""``edl top``: who waits for whom, in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Optional

import click

from edl.cli.example import example

#: A port is asked every two seconds: after four there are rates.
_LOOKS = 5

#: Columns for scripts, so that nothing is cut.
_WIDE = 250


@click.command(epilog=example("edl top --etcd 127.0.0.1:2379"))
@click.option("--etcd", required=True, help="etcd endpoints, comma-separated.")
@click.option("--service", help="Only this one.")
@click.option(
    "--once",
    is_flag=True,
    help="Print everything once, after looking for a few seconds, and end: for scripts.",
)
def command(etcd: str, service: Optional[str], once: bool) -> None:
    """Show who waits for whom, what teachers and students do, and what to do about it.

    Reads the registry, and asks teachers and students for their figures. Runs until Ctrl-C. The
    same as a page, with the last hour as curves: edl dashboard.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_show(etcd, service, once))


async def _show(etcd: str, service: Optional[str], once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from edl.discovery import Etcd
    from edl.errors import EtcdUnavailable
    from edl.view.observer import observe
    from edl.view.targets import Access
    from edl.view.terminal import screen

    console = Console()
    if not console.is_terminal:
        console.width = _WIDE
    with Etcd(etcd) as client:
        snapshots = observe(client, service, Access())
        try:
            if once:
                for _ in range(_LOOKS):
                    seen = await snapshots.__anext__()
                    if seen.problem:
                        raise EtcdUnavailable(seen.problem)
                console.print(screen(seen))
                return
            with Live(console=console, screen=True, auto_refresh=False) as live:
                async for seen in snapshots:
                    live.update(screen(seen, console.height, console.width), refresh=True)
        finally:
            await snapshots.aclose()
