"""``edl doctor``: what is installed and works here, and what to do about what does not."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Optional

import click

from edl.cli.example import example
from edl.cli.progress import progress

if TYPE_CHECKING:
    from edl.cli.inspection import Finding

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@click.command(epilog=example("edl doctor --etcd 127.0.0.1:2379"))
@click.option("--etcd", help="etcd endpoints to look at too, comma-separated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(etcd: Optional[str], as_json: bool) -> None:
    """Say what is installed and works here, and what to do about what does not.

    Notes are about what not everybody needs. Exit status 1 if there is a problem. Nothing is
    changed.
    """
    from edl.cli.inspection import PROBLEM, check_all

    with progress("looking at this machine"):
        findings = list(check_all(etcd))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    if any(finding.state == PROBLEM for finding in findings):
        sys.exit(1)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        found = Text(finding.found)
        if finding.remedy:
            found.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(Text(finding.state, _STYLES[finding.state]), Text(finding.name), found)
    Console().print(table)
    counts = {state: sum(f.state == state for f in findings) for state in _STYLES}
    click.echo(f"problems: {counts['problem']}, notes: {counts['note']}, fine: {counts['ok']}")
