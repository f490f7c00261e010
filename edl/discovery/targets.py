"""Whose figures can be asked for, and where: what Prometheus' HTTP service discovery reads.

Format: https://prometheus.io/docs/prometheus/latest/http_sd/, which is also that of its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from edl.discovery.keys import NODES, STUDENTS
from edl.discovery.records import parse_address, read_object

TEACHER, STUDENT = "teacher", "student"
_LONGEST_LABEL = 200


def targets(entries: Mapping[str, str], role: Optional[str] = None) -> list[dict[str, Any]]:
    """Those in a registry's entries, by what follows its root in the key: teachers of ``edl
    teacher`` (others have no figures) and students that serve theirs. ``role``: only these.

    Each address once, with the labels ``role`` and ``service`` (of one in several services all,
    comma-separated), of a teacher also ``device`` and ``model``, its fingerprint. What is no
    address is left out, whoever has written it.
    """
    services: dict[tuple[str, str], list[str]] = {}
    labels: dict[tuple[str, str], dict[str, str]] = {}
    for key, text in sorted(entries.items()):
        service, _, rest = key.partition("/")
        found = _teacher(rest, text) or _student(rest, text)
        if found is None or role not in (None, found[0]):
            continue
        kind, address, said = found
        services.setdefault((kind, address), [])
        if service not in services[kind, address]:
            services[kind, address].append(service)
        labels.setdefault((kind, address), said)
    return [
        {
            "targets": [address],
            "labels": {"role": kind, "service": _label(",".join(names)), **labels[kind, address]},
        }
        for (kind, address), names in services.items()
    ]


def has_figures(entry: Mapping[str, Any]) -> bool:
    """Whether a teacher with this entry has any. One that says nothing of itself may be the
    original's, a pipeline has none, and neither has what a registrar stands for.
    """
    return entry.get("protocol") == "baidu_std" and not entry.get("registrar")


def _teacher(rest: str, text: str) -> Optional[tuple[str, str, dict[str, str]]]:
    address = parse_address(rest[len(NODES) :]) if rest.startswith(NODES) else None
    entry = read_object(text)
    if address is None or not has_figures(entry):
        return None
    said = {"device": _label(entry.get("device")), "model": _label(entry.get("fingerprint"))}
    if entry.get("tls") is True:
        said["__scheme__"] = "https"
    return TEACHER, address, said


def _student(rest: str, text: str) -> Optional[tuple[str, str, dict[str, str]]]:
    if not rest.startswith(STUDENTS):
        return None
    address = parse_address(read_object(text).get("metrics"))
    return None if address is None else (STUDENT, address, {})


def _label(value: Any) -> str:
    """A label's value, whatever the registry says: short, and one line."""
    text = value if isinstance(value, str) else ""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text[:_LONGEST_LABEL])
