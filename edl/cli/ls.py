"""``edl ls``: what is in the registry, whoever wrote it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Optional

import click

from edl.cli.example import example

_REDRAW_EVERY = 1.0
_LONGEST = 1000
_ROWS, _TOKENS = "rows/s", "tokens/s"


@click.command(epilog=example("edl ls --etcd 127.0.0.1:2379 --watch"))
@click.option("--etcd", required=True, help="etcd endpoints, comma-separated.")
@click.option("--service", help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Redraw every second until Ctrl-C.")
def command(etcd: str, service: Optional[str], as_json: bool, watch: bool) -> None:
    """Show services, their teachers and students, and who works for whom."""
    from edl.discovery import Etcd

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


def read(client: Any, only: Optional[str] = None) -> dict[str, Any]:
    """Everything in the registry, by service. Raises EtcdUnavailable."""
    from edl.discovery.keys import ROOT, service_prefix
    from edl.discovery.watch import list_prefix

    prefix = service_prefix(only) if only else f"{ROOT}/"
    entries, _ = list_prefix(client, prefix)
    services: dict[str, dict[str, str]] = {}
    for key, text in sorted(entries.items()):
        name, _, rest = (only, "/", key) if only else key.partition("/")
        services.setdefault(name, {})[rest] = text
    return {name: describe(entries) for name, entries in services.items()}


def describe(entries: Mapping[str, str]) -> dict[str, Any]:
    """A service's entries, whatever is in them, as plain values for JSON."""
    from edl.discovery.keys import ASSIGNMENTS, BALANCE, LEADER, NODES, RATES, STUDENTS, under
    from edl.discovery.records import parse_assignment, parse_rate, read_object

    teachers = {endpoint: _object(text) for endpoint, text in under(entries, NODES).items()}
    for endpoint, text in under(entries, RATES).items():
        rate = parse_rate(text)
        if endpoint in teachers and rate is not None:
            teachers[endpoint]["rate"] = rate
    assigned = under(entries, ASSIGNMENTS)
    students = {
        student: {
            **read_object(text),
            "teachers": sorted(parse_assignment(assigned.get(student, ""))),
        }
        for student, text in under(entries, STUDENTS).items()
    }
    balance = read_object(entries.get(BALANCE, ""))
    return {
        "teachers": teachers,
        "students": students,
        "leader": entries.get(LEADER),
        "balance": balance,
    }


def _object(text: str) -> dict[str, Any]:
    """An entry's value; free text, as the original wrote, under "info"."""
    from edl.discovery.records import read_object

    return read_object(text) or (
        {"info": text[:_LONGEST]} if text.strip() not in ("", "{}") else {}
    )


def _watch(client: Any, service: Optional[str]) -> None:
    from rich.live import Live

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
            _number(one["balance"].get(name)) or "?"
            for name in ("demand", "supply", "unsatisfied", "idle")
        )
        line += f"; demand {demand} and supply {supply} {_unit(one)}"
        line += f", {unsatisfied} want more, {idle} teachers idle"
    if not one["leader"]:
        line += "; nobody balances"
    return Text(_plain(line), style="bold")


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
            _age(entry.get("since")),
            _number(entry.get("rate")),
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
            _age(record.get("since")),
            _number(record.get("rows_per_second")),
            _number(record.get("want")) or "any",
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
    """What the rates of a service are in: its teachers say whether their rows are sequences."""
    said = [entry.get("feeds") for entry in one["teachers"].values()]
    feeds = [feed for each in said if isinstance(each, dict) for feed in each.values()]
    sequences = any(isinstance(feed, dict) and "pad" in feed for feed in feeds)
    return _TOKENS if sequences else _ROWS


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(title_justify="left")
    for column in columns:
        numbers = column in (_ROWS, _TOKENS, "wants", "limit", "age", "students")
        table.add_column(column, justify="right" if numbers else "left")
    return table


def _add_row(table: Any, *cells: Any) -> None:
    from rich.text import Text

    table.add_row(*(Text(_plain(str(cell))) for cell in cells))


def _plain(text: str) -> str:
    """What a terminal shows and does not obey, in a length that can be read."""
    shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in shown)


def _number(value: Any) -> str:
    """A number for people; nothing if it is not one."""
    from edl.discovery.records import as_number

    number = as_number(value)
    return "" if number is None else f"{number:,.0f}" if abs(number) < 1e15 else f"{number:.1e}"


def _age(since: Any) -> str:
    from edl.discovery.records import as_number

    started = as_number(since)
    if started is None:
        return ""
    seconds = max(0, int(time.time() - started))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
