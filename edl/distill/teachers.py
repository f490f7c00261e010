"""Where teachers are found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Protocol, Union

from edl._endpoints import parse_endpoint, parse_etcd_endpoints, split_endpoints
from edl.discovery import CLOSE_WITHIN
from edl.discovery.keys import service_prefix
from edl.discovery.records import StudentRecord
from edl.errors import ConfigError
from edl.serving.client.entry import PROTOCOLS, Entry

#: Endpoint to the value of its registry entry (empty for fixed teachers).
Found = Mapping[str, str]
OnFound = Callable[[Found], None]
OnAssigned = Callable[[frozenset[str]], None]


class Place(Protocol):
    """A student's place among those who share the teachers. ``problem``: why nothing is heard."""

    @property
    def problem(self) -> str:
        """Why the teachers are not known; empty if nothing is wrong."""

    def report(self, record: StudentRecord) -> None:
        """Tell what the student wants and sees."""

    def close(self) -> None:
        """Leave it."""


@dataclass(frozen=True)
class FixedTeachers:
    """Teachers that do not change: pairs of an endpoint and what an entry would say of it."""

    entries: tuple[tuple[str, str], ...]
    balanced = False

    def join(
        self, student: str, record: StudentRecord, on_found: OnFound, on_assigned: OnAssigned
    ) -> Place:
        """Report the teachers; nobody else is asked."""
        on_found(dict(self.entries))
        return _Alone()

    def __str__(self) -> str:
        return "teachers " + (", ".join(endpoint for endpoint, _ in self.entries) or "(none)")


@dataclass(frozen=True)
class ServiceTeachers:
    """The teachers that are registered in etcd under a service name, shared between students."""

    etcd_endpoints: tuple[str, ...]
    service: str
    balanced = True

    def join(
        self, student: str, record: StudentRecord, on_found: OnFound, on_assigned: OnAssigned
    ) -> Place:
        """Report the teachers there are, and those that are assigned to ``student``, now and after
        every change, from threads of its own. Does not wait for etcd to answer.
        """
        return _Registered(self, student, record, on_found, on_assigned)

    def __str__(self) -> str:
        return f"service {self.service!r} in etcd at {','.join(self.etcd_endpoints)}"


class _Alone:
    problem = ""

    def report(self, record: StudentRecord) -> None:
        """See Place."""

    def close(self) -> None:
        """See Place."""


class _Registered:
    def __init__(
        self,
        where: ServiceTeachers,
        student: str,
        record: StudentRecord,
        on_found: OnFound,
        on_assigned: OnAssigned,
    ) -> None:
        from edl.discovery import Etcd, Membership, Participation

        self._etcd = Etcd(where.etcd_endpoints)
        self._membership = Membership(self._etcd, where.service, on_found)
        self._participation = Participation(self._etcd, where.service, student, record, on_assigned)
        try:
            self._membership.start()
            self._participation.start()
        except BaseException:  # no thread can be started
            self.close()
            raise

    @property
    def problem(self) -> str:
        """See Place."""
        return self._membership.error

    def report(self, record: StudentRecord) -> None:
        """See Place."""
        self._participation.report(record)

    def close(self) -> None:
        """See Place."""
        deadline = time.monotonic() + CLOSE_WITHIN
        self._membership.stop()
        self._participation.close(CLOSE_WITHIN)
        self._membership.close(deadline - time.monotonic())
        self._etcd.close()


Teachers = Union[FixedTeachers, ServiceTeachers]


def fixed_teachers(teachers: Union[str, Sequence[str]]) -> FixedTeachers:
    """A list of ``host:port``, or a comma-separated string; ``pipeline://host:port`` is a Python
    pipeline of Paddle Serving. Raises ConfigError.
    """
    entries: dict[str, str] = {}
    for item in split_endpoints(teachers):
        protocol, _, endpoint = item.rpartition("://")
        if protocol not in ("", *PROTOCOLS):
            known = ", ".join(f"{name}://" for name in PROTOCOLS)
            raise ConfigError(f"teacher {item!r}: {protocol}:// is not one of {known}")
        try:
            parse_endpoint(endpoint)
        except ConfigError as error:
            raise ConfigError(f"teacher: {error}") from error
        entries.setdefault(endpoint, Entry(protocol).to_json() if protocol else "")
    if not entries:
        raise ConfigError("the list of teachers is empty")
    return FixedTeachers(tuple(entries.items()))


def service_teachers(etcd: Union[str, Sequence[str]], service: str) -> ServiceTeachers:
    """Teachers of ``service`` in ``etcd`` (list or comma-separated). Raises ConfigError."""
    endpoints = tuple(split_endpoints(etcd))
    if not endpoints or not service:
        raise ConfigError("a teacher service needs etcd endpoints and a service name")
    parse_etcd_endpoints(endpoints)
    service_prefix(service)
    return ServiceTeachers(endpoints, service)


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


def declared_model(text: str) -> str:
    """The fingerprint of the model in a registry entry; empty if it says nothing of that."""
    try:
        description = Entry.from_json(text).description
    except ConfigError:
        return ""
    return description.fingerprint if description is not None else ""
