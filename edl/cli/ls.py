"""``edl ls``: what is in the registry, whoever wrote it."""

from __future__ import annotations

import json
import time
from typing import Any, Optional

import click

from edl.cli.example import example
from edl.view.text import age, number, plain

_REDRAW_EVERY = 1.0
_ROWS, _TOKENS = "rows/s", "tokens/s"


@click.command(epilog=example("edl ls --etcd 127.0.0.1:2379 --watch"))
@click.option("--etcd", required=True, help="etcd endpoints, comma-separated.")
@click.option("--service", help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Redraw every second until Ctrl-C.")
def command(etcd: str, service: Optional[str], as_json: bool, watch: bool) -> None:
    """Show services, their teachers and students, and who works for whom."""
    from edl.discovery import Etcd
    from edl.view.registry import read

    with Etcd(etcd) as client:
        if watch and not as_json:
            _watch(client, service)
            return
        while True:
            services = read(client, service)
            if as_json:
                click.echo(json.dumps(services, indent=None if watch else 2))
            else:
                from rich.console import Console

                Console().print(tables(services))
            if not watch:
                return
            time.sleep(_REDRAW_EVERY)


def _watch(client: Any, service: Optional[str]) -> None:
    from rich.live import Live

    from edl.view.registry import read

    try:
        with Live(tables(read(client, service)), refresh_per_second=4, screen=True) as live:
            while True:
                time.sleep(_REDRAW_EVERY)
                live.update(tables(read(client, service)))
    except KeyboardInterrupt:
        pass


def tables(services: dict[str, Any]) -> Any:
    """What ``read`` returns, for a terminal."""
    from rich.console import Group
    from rich.text import Text

    if not services:
        return Text("nothing is registered")
    parts: list[Any] = []
    for name, one in services.items():
        parts += [_headline(name, one), _teachers(one), _students(one)]
    return Group(*parts)


def _headline(name: str, one: dict[str, Any]) -> Any:
    from rich.text import Text

    line = f"{name}: {len(one['teachers'])} teachers, {len(one['students'])} students"
    if one["balance"] and one["leader"]:  # otherwise it is of the past
        demand, supply, unsatisfied, idle = (
            number(one["balance"].get(key)) or "?"
            for key in ("demand", "supply", "unsatisfied", "idle")
        )
        line += f"; demand {demand} and supply {supply} {_unit(one)}"
        line += f", {unsatisfied} want more, {idle} teachers idle"
    if not one["leader"]:
        line += "; nobody balances"
    return Text(plain(line), style="bold")


def _teachers(one: dict[str, Any]) -> Any:
    users: dict[str, int] = {}
    for student in one["students"].values():
        for teacher in student["teachers"]:
            users[teacher] = users.get(teacher, 0) + 1
    table = _table("teacher", "protocol", "device", "age", _unit(one), "students", "host")
    for endpoint, entry in one["teachers"].items():
        _add_row(
            table,
            endpoint,
            entry.get("protocol", entry.get("info", "")),
            entry.get("device", ""),
            age(entry.get("since")),
            number(entry.get("rate")),
            users.get(endpoint, 0),
            entry.get("hostname", ""),
        )
    return table


def _students(one: dict[str, Any]) -> Any:
    table = _table("student", "host", "age", _unit(one), "wants", "limit", "teachers")
    for student, record in one["students"].items():
        _add_row(
            table,
            student[:8],
            f"{record.get('hostname', '')} ({record.get('pid', '')})",
            age(record.get("since")),
            number(record.get("rows_per_second")),
            number(record.get("want")) or "any",
            record.get("max_teachers") or "",
            ", ".join(_with_way(record, teacher) for teacher in record["teachers"]) or "none",
        )
    return table


def _with_way(record: dict[str, Any], teacher: str) -> str:
    """A student's teacher, and how tensors travel there, where that is not TCP."""
    from edl.discovery.records import parse_ways

    way = parse_ways(record.get("ways")).get(teacher, "")
    return f"{teacher} ({way})" if way not in ("", "tcp") else teacher


def _unit(one: dict[str, Any]) -> str:
    """What the rates of a service are in, as a column's title."""
    from edl.view.registry import unit

    return f"{unit(one)}/s"


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(title_justify="left")
    for column in columns:
        numbers = column in (_ROWS, _TOKENS, "wants", "limit", "age", "students")
        table.add_column(column, justify="right" if numbers else "left")
    return table


def _add_row(table: Any, *cells: Any) -> None:
    from rich.text import Text

    table.add_row(*(Text(plain(str(cell))) for cell in cells))
