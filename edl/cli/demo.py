"""``edl demo``: demonstrations that run on one machine with nothing else installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import click

from edl.cli.example import example
from edl.cli.progress import progress


@click.group(epilog=example("edl demo digits"))
def command() -> None:
    """Run a demonstration on this machine."""
    for name in list(os.environ):
        if name.split("_")[:2] in (["EDL", "TEACHER"], ["EDL", "TLS"]):  # of those elsewhere
            del os.environ[name]


@command.command(epilog=example("edl demo digits --seeds 2"))
@click.option("--seeds", default=5, show_default=True, help="Students trained of each kind.")
@click.option("--epochs", default=30, show_default=True, help="Epochs per student.")
@click.option(
    "--work-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the model and logs here.  [default: a temporary directory, removed at the end]",
)
def digits(seeds: int, epochs: int, work_dir: Optional[Path]) -> None:
    """Distil a small network for handwritten digits, while teachers come and go.

    Trains a teacher, hosts it twice, trains small students without and with its soft labels, kills
    one teacher in mid-epoch and starts another, and compares.
    """
    from edl.demos.digits import run

    run(seeds, epochs, work_dir, progress)


@command.command(epilog=example("edl demo cluster"))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8600,
    show_default=True,
    help="Port of the page; 0: a free one.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0), help="End after so long.  [default: never]"
)
@click.option(
    "--work-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep logs and the model here.  [default: a temporary directory, removed at the end]",
)
def cluster(port: int, seconds: Optional[float], work_dir: Optional[Path]) -> None:
    """Bring up everything on this machine, and the page that shows it.

    An etcd, three teachers, two students that train, in turns slowly and in a hurry, Prometheus if
    it is installed, and the dashboard, whose address is printed. Every minute a teacher is killed
    and another one started. Ctrl-C ends all of it.
    """
    from edl.demos.cluster import run

    run(port, seconds, work_dir)
