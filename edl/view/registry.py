"""What is in the registry, whoever wrote it, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from edl.discovery import Etcd
from edl.discovery.keys import (
    ASSIGNMENTS,
    BALANCE,
    LEADER,
    NODES,
    RATES,
    ROOT,
    STUDENTS,
    service_prefix,
    under,
)
from edl.discovery.records import parse_assignment, parse_rate, read_object
from edl.discovery.watch import list_prefix

_LONGEST = 1000


def prefix_of(only: Optional[str]) -> str:
    """Under which to look: one service, or all. Raises ConfigError for an impossible name."""
    return service_prefix(only) if only else f"{ROOT}/"


def read(etcd: Etcd, only: Optional[str] = None) -> dict[str, Any]:
    """Everything in the registry, by service. Raises EtcdUnavailable."""
    entries, _ = list_prefix(etcd, prefix_of(only))
    return by_service(entries, only)


def by_service(entries: Mapping[str, str], only: Optional[str] = None) -> dict[str, Any]:
    """What is under ``prefix_of(only)``, rest of the key to value, as ``describe`` has it, by
    service.
    """
    services: dict[str, dict[str, str]] = {}
    for key, text in sorted(entries.items()):
        name, _, rest = (only, "/", key) if only else key.partition("/")
        services.setdefault(name, {})[rest] = text
    return {name: describe(entries) for name, entries in services.items()}


def describe(entries: Mapping[str, str]) -> dict[str, Any]:
    """A service's entries, whatever is in them, as plain values for JSON."""
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
    return {
        "teachers": teachers,
        "students": students,
        "leader": entries.get(LEADER),
        "balance": read_object(entries.get(BALANCE, "")),
    }


def unit(service: Mapping[str, Any]) -> str:
    """What the rates of a service (see ``describe``) count: "rows", or "tokens" where its teachers
    say that their rows are sequences.
    """
    said = [entry.get("feeds") for entry in service["teachers"].values()]
    feeds = [feed for each in said if isinstance(each, dict) for feed in each.values()]
    sequences = any(isinstance(feed, dict) and "pad" in feed for feed in feeds)
    return "tokens" if sequences else "rows"


def _object(text: str) -> dict[str, Any]:
    """An entry's value; free text, as the original wrote, under "info"."""
    return read_object(text) or (
        {"info": text[:_LONGEST]} if text.strip() not in ("", "{}") else {}
    )
