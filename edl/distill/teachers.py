"""Where teachers are found, and which of them a reader uses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional, Union

from edl.errors import ConfigError
from edl.serving.client import parse_endpoint
from edl.serving.entry import PROTOCOLS, Entry

#: Endpoint to the value of its registry entry (empty for fixed teachers).
Found = Mapping[str, str]
OnFound = Callable[[Found], None]


@dataclass(frozen=True)
class FixedTeachers:
    """Teachers that do not change: pairs of an endpoint and what an entry would say of it."""

    entries: tuple[tuple[str, str], ...]

    def watch(self, on_found: OnFound) -> Callable[[], None]:
        """Report the teachers; returns what ends the watch."""
        on_found(dict(self.entries))
        return lambda: None

    def __str__(self) -> str:
        return "teachers " + ", ".join(endpoint for endpoint, _ in self.entries)


@dataclass(frozen=True)
class ServiceTeachers:
    """The teachers that are registered in etcd under a service name."""

    etcd_endpoints: tuple[str, ...]
    service: str

    def watch(self, on_found: OnFound) -> Callable[[], None]:
        """Report the teachers now and after every change, from a thread of its own; returns what
        ends the watch. Does not wait for etcd to answer.
        """
        from edl.discovery import Etcd, Membership

        etcd = Etcd(self.etcd_endpoints)
        membership = Membership(etcd, self.service, on_found)
        membership.start()

        def close() -> None:
            membership.close()
            etcd.close()

        return close

    def __str__(self) -> str:
        return f"service {self.service!r} in etcd at {','.join(self.etcd_endpoints)}"


Teachers = Union[FixedTeachers, ServiceTeachers]


def fixed_teachers(teachers: Union[str, Sequence[str]]) -> FixedTeachers:
    """A list of ``host:port``, or a comma-separated string; ``pipeline://host:port`` is a Python
    pipeline of Paddle Serving. Raises ConfigError.
    """
    entries: dict[str, str] = {}
    for item in _items(teachers):
        protocol, _, endpoint = item.rpartition("://")
        if protocol not in ("", *PROTOCOLS):
            known = ", ".join(f"{name}://" for name in PROTOCOLS)
            raise ConfigError(f"teacher {item!r}: {protocol}:// is not one of {known}")
        try:
            parse_endpoint(endpoint)
        except ValueError as error:
            raise ConfigError(f"teacher: {error}") from error
        entries.setdefault(endpoint, Entry(protocol).to_json() if protocol else "")
    if not entries:
        raise ConfigError("the list of teachers is empty")
    return FixedTeachers(tuple(entries.items()))


def service_teachers(etcd: Union[str, Sequence[str]], service: str) -> ServiceTeachers:
    """Teachers of ``service`` in ``etcd`` (list or comma-separated). Raises ConfigError."""
    endpoints = tuple(_items(etcd))
    if not endpoints or not service:
        raise ConfigError("a teacher service needs etcd endpoints and a service name")
    return ServiceTeachers(endpoints, service)


def _items(text: Union[str, Sequence[str]]) -> list[str]:
    """The items of a list, or of a comma-separated string, without blanks and empty ones."""
    items = text.split(",") if isinstance(text, str) else text
    return [item.strip() for item in items if item.strip()]


def parse_teachers(teachers: Union[str, Sequence[str]]) -> Teachers:
    """``etcd://host:port[,host:port]/service``, or what ``fixed_teachers`` takes. Raises
    ConfigError.
    """
    if isinstance(teachers, str) and teachers.startswith("etcd://"):
        etcd, slash, service = teachers[len("etcd://") :].partition("/")
        if not slash or not service:
            raise ConfigError(f"{teachers!r} names no service: etcd://host:port/service")
        return service_teachers(etcd, service)
    return fixed_teachers(teachers)


def choose(
    found: Sequence[str], limit: Optional[int], reader: str, avoid: Sequence[str]
) -> set[str]:
    """At most ``limit`` teachers for a reader, different ones for different readers.

    Rendezvous hashing: each reader ranks all teachers in an order of its own, so readers spread
    over the teachers, and one that comes or goes changes little. Those in ``avoid`` (failing at the
    moment) are taken only when there are not enough others.
    """

    def rank(endpoint: str) -> tuple[bool, bytes]:
        digest = hashlib.blake2b(f"{reader} {endpoint}".encode(), digest_size=8).digest()
        return endpoint in avoid, digest

    return set(sorted(found, key=rank)[: len(found) if limit is None else limit])
