"""``edl labels``: look after stores of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edl.cli.example import example
from edl.cli.progress import progress
from edl.errors import StoreError

if TYPE_CHECKING:
    from edl.store.maintenance import Holding

_MIB = 1 << 20

_store = click.argument("store", type=click.Path(file_okay=False, path_type=Path))


@click.group(epilog=example("edl labels ls labels/"))
def command() -> None:
    """Look after stores of labels: what DistillReader(store=...) and edl label have filled."""


@command.command(epilog=example("edl labels ls labels/ --json"))
@_store
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(store: Path, as_json: bool) -> None:
    """Show which labels there are: models, predictions, rows, bytes."""
    from edl.store.maintenance import holdings

    with progress("reading"):
        found = holdings(store)
    if as_json:
        click.echo(json.dumps([_plain(each) for each in found], indent=2))
        return
    from rich.console import Console

    Console().print(_table(found))


@command.command(epilog=example("edl labels verify labels/"))
@_store
@click.option(
    "--remove", is_flag=True, help="Remove what is damaged; what is sealed is left to compact."
)
def verify(store: Path, remove: bool) -> None:
    """Read everything, and say what is damaged. Exit status 1 if something is.

    Readers take what is damaged for missing, so it does no harm.
    """
    from edl.store.maintenance import verify

    with progress("verifying", "records") as bar:
        verdict = verify(store, remove, bar.show)
    click.echo(f"{verdict.records} records, {verdict.bad} damaged")
    for name, keys in verdict.damaged.items():
        click.echo(f"{name}: {len(keys)} damaged, the first is {keys[0].hex()}")
    for name, why in verdict.unreadable.items():
        click.echo(f"{name} cannot be read: {why}")
    if verdict.bad or verdict.unreadable:
        raise StoreError(f"{store} is damaged: what can be read is used, and nothing else")


@command.command(epilog=example("edl labels compact labels/"))
@_store
def compact(store: Path) -> None:
    """Put everything together, without gaps and without what is damaged.

    Nobody may use the store meanwhile. It takes as much room again until it is done.
    """
    from edl.store.maintenance import compact

    with progress("compacting", "records") as bar:
        before, after = compact(store, bar.show)
    click.echo(f"{before / _MIB:.1f} MiB before, {after / _MIB:.1f} MiB now")


@command.command(epilog=example("edl labels merge labels/ other/labels/"))
@_store
@click.argument(
    "sources",
    metavar="SOURCE...",
    nargs=-1,
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
)
def merge(store: Path, sources: tuple[Path, ...]) -> None:
    """Add to a store what others have. They stay as they are."""
    from edl.store.maintenance import merge

    with progress("merging", "records") as bar:
        count = merge(store, sources, bar.show)
    click.echo(f"{count} records added")


@command.command(epilog=example("edl labels export labels/ labels.npz"))
@_store
@click.argument("out", metavar="OUT.npz", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--kind", default="", help="Which, if there are several: its id, or how that begins.")
def export(store: Path, out: Path, kind: str) -> None:
    """Write the labels of one kind as arrays, for other programs.

    `key`: what the rows are known by. Each column by its name; where rows differ in length, their
    tokens follow each other, and NAME.lengths says how many each has.
    """
    from edl.store.exporting import export

    with progress("exporting", "records") as bar:
        count = export(store, out, kind, bar.show)
    click.echo(f"{count} rows in {out}")


def _plain(holding: Holding) -> dict[str, Any]:
    kind = holding.kind
    return {
        **{"kind": kind.id.hex(), "model": kind.model, "prediction": kind.prediction},
        **{"rows": holding.rows, "bytes": holding.nbytes, "slots": list(kind.feeds)},
        **{"keyed_by": list(kind.keyed_by), "columns": [each.name for each in kind.columns]},
    }


def _table(found: list[Holding]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("kind", "model", "prediction", "of slots", "known by", "rows", "MiB"):
        table.add_column(name, justify="right" if name in ("rows", "MiB") else "left")
    for each in found:
        kind = each.kind
        cells = (
            *(kind.id.hex(), kind.model, kind.prediction, ", ".join(kind.feeds)),
            *(", ".join(kind.keyed_by) or "what they hold", f"{each.rows:,}"),
            f"{each.nbytes / _MIB:,.1f}",
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table
