"""``edl ls``: what is in the registry."""

from __future__ import annotations

import json
import time
from typing import Any, Optional

import click

_REDRAW_EVERY = 1.0


@click.command()
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

                Console().print(_tables(services))
            if not watch:
                return
            time.sleep(_REDRAW_EVERY)


def read(client: Any, only: Optional[str] = None) -> dict[str, Any]:
    """Everything in the registry, by service. Raises EtcdUnavailable."""
    from edl.discovery.keys import (
        ASSIGNMENTS,
        BALANCE,
        LEADER,
        NODES,
        ROOT,
        STUDENTS,
        service_prefix,
    )
    from edl.discovery.records import parse_assignment
    from edl.discovery.watch import list_prefix

    prefix = service_prefix(only) if only else f"{ROOT}/"
    entries, _ = list_prefix(client, prefix)
    services: dict[str, Any] = {}
    for key, text in sorted(entries.items()):
        name, rest = (only, key) if only else key.split("/", 1)
        one = services.setdefault(
            name, {"teachers": {}, "students": {}, "leader": None, "balance": {}}
        )
        if rest.startswith(NODES):
            one["teachers"][rest[len(NODES) :]] = _json(text)
        elif rest.startswith(STUDENTS):
            one["students"].setdefault(rest[len(STUDENTS) :], {}).update(_json(text))
        elif rest.startswith(ASSIGNMENTS):
            student = one["students"].setdefault(rest[len(ASSIGNMENTS) :], {})
            student["teachers"] = sorted(parse_assignment(text))
        elif rest == LEADER:
            one["leader"] = text
        elif rest == BALANCE:
            one["balance"] = _json(text)
    for one in services.values():  # what is assigned to who has left says nothing
        one["students"] = {
            student: record for student, record in one["students"].items() if "since" in record
        }
    return services


def _json(text: str) -> dict[str, Any]:
    """An entry's value; free text, as the original wrote, under "info"."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"info": text}
    return value if isinstance(value, dict) else {"info": text}


def _watch(client: Any, service: Optional[str]) -> None:
    from rich.live import Live

    try:
        with Live(_tables(read(client, service)), refresh_per_second=4, screen=True) as live:
            while True:
                time.sleep(_REDRAW_EVERY)
                live.update(_tables(read(client, service)))
    except KeyboardInterrupt:
        pass


def _tables(services: dict[str, Any]) -> Any:
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

    balance = one["balance"]
    line = f"{name}: {len(one['teachers'])} teachers, {len(one['students'])} students"
    if balance and one["leader"]:  # otherwise it is of the past
        line += (
            f"; demand {balance['demand']:,.0f} and supply {balance['supply']:,.0f} rows/s"
            f", {balance['unsatisfied']} want more, {balance['idle']} teachers idle"
        )
    if not one["leader"]:
        line += "; nobody balances"
    return Text(line, style="bold")


def _teachers(one: dict[str, Any]) -> Any:
    users: dict[str, int] = {}
    for student in one["students"].values():
        for teacher in student.get("teachers", ()):
            users[teacher] = users.get(teacher, 0) + 1
    table = _table("teacher", "protocol", "device", "age", "rows/s", "students", "host")
    for endpoint, entry in one["teachers"].items():
        table.add_row(
            endpoint,
            str(entry.get("protocol", entry.get("info", ""))),
            str(entry.get("device", "")),
            _age(entry["since"]) if "since" in entry else "",
            f"{entry['rate']:,.0f}" if "rate" in entry else "",
            str(users.get(endpoint, 0)),
            str(entry.get("hostname", "")),
        )
    return table


def _students(one: dict[str, Any]) -> Any:
    table = _table("student", "host", "age", "rows/s", "wants", "limit", "teachers")
    for student, record in one["students"].items():
        want = record.get("want")
        table.add_row(
            student[:8],
            f"{record.get('hostname', '')} ({record.get('pid', '')})",
            _age(record["since"]),
            f"{record.get('rows_per_second', 0):,.0f}",
            "any" if want is None else f"{want:,.0f}",
            str(record.get("max_teachers") or ""),
            ", ".join(record.get("teachers", ())) or "none",
        )
    return table


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(title_justify="left")
    for column in columns:
        numbers = column in ("rows/s", "wants", "limit", "age", "students")
        table.add_column(column, justify="right" if numbers else "left")
    return table


def _age(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
