"""A student's place in its service: what it asks for, and which teachers it is given.

The record at ``students/<id>`` says what the student wants and measures; the balancer, whoever that
is at the moment, answers at ``assignments/<id>``. Without an answer, what was assigned last stands.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Callable

from edl.discovery import CLOSE_WITHIN
from edl.discovery.balancer import Balancer
from edl.discovery.etcd import Etcd
from edl.discovery.keys import ASSIGNMENTS, STUDENTS, service_prefix
from edl.discovery.records import StudentRecord, differs, parse_assignment
from edl.discovery.registration import Registration
from edl.discovery.watch import Members, Watch

STUDENT_TTL = 10

_REPORT_EVERY = 5.0
_NOISE_OF_ONE = 0.5
_NOISE_OF_WAITS = 0.05  # of the time


class Participation:
    """One student in one service, from ``start`` to ``close``.

    ``student``: a name that no other student has. ``record``: what it asks for, at first.
    ``on_assigned(teachers)`` is called, from a thread of its own, with every assignment: a set of
    endpoints. ``lead``: whether this process may be elected to balance. Raises ConfigError for a
    service name that cannot be.
    """

    def __init__(
        self,
        etcd: Etcd,
        service: str,
        student: str,
        record: StudentRecord,
        on_assigned: Callable[[frozenset[str]], None],
        lead: bool = True,
    ) -> None:
        self._student = student
        self._record = record
        self._report_at = 0.0
        self._on_assigned = on_assigned
        self._extra = {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "since": round(time.time(), 3),
        }
        self._registration = Registration(
            etcd, service, student, record.to_json(**self._extra), STUDENT_TTL, kind=STUDENTS
        )
        prefix = service_prefix(service) + ASSIGNMENTS + student
        self._watch = Watch(etcd, prefix, self._on_change)
        self._balancer = Balancer(etcd, service) if lead else None

    def start(self) -> None:
        """Register and wait for assignments, in the background."""
        self._registration.begin()
        self._watch.start()
        if self._balancer is not None:
            self._balancer.start()

    def report(self, record: StudentRecord) -> None:
        """Say something else of oneself; written within a second if it is news."""
        now = time.monotonic()
        if _is_urgent(self._record, record) or (
            now >= self._report_at and _is_news(self._record, record)
        ):
            self._record, self._report_at = record, now + _REPORT_EVERY
            self._registration.update(record.to_json(**self._extra))

    def stop(self) -> None:
        """Begin to leave. Does not wait."""
        self._watch.stop()
        self._registration.stop(0.0)
        if self._balancer is not None:
            self._balancer.stop(0.0)

    def close(self, timeout: float = CLOSE_WITHIN) -> None:
        """Leave: the teachers are free for others at once. If etcd does not answer, this returns
        after ``timeout`` seconds all the same.
        """
        self.stop()
        deadline = time.monotonic() + timeout
        self._watch.close(timeout)
        self._registration.stop(deadline - time.monotonic())
        if self._balancer is not None:
            self._balancer.stop(deadline - time.monotonic())

    def _on_change(self, found: Members) -> None:
        if "" in found:
            self._on_assigned(parse_assignment(found[""]))


def _is_urgent(old: StudentRecord, new: StudentRecord) -> bool:
    """Whether the balancer should know at once."""
    return (old.max_teachers, old.want, old.avoid) != (new.max_teachers, new.want, new.avoid)


def _is_news(old: StudentRecord, new: StudentRecord) -> bool:
    """Whether what was measured has changed by more than noise: all teachers together, or one of
    them by much more, since of many there is always one that differs a little; or the way to one.
    """
    known = old.rates.keys() & new.rates.keys()
    before, after = (sum(record.rates[teacher] for teacher in known) for record in (old, new))
    return (
        differs(old.rows_per_second, new.rows_per_second)
        or abs((old.waits or 0.0) - (new.waits or 0.0)) > _NOISE_OF_WAITS
        or bool(new.rates.keys() - old.rates.keys())
        or old.ways != new.ways
        or differs(before, after)
        or any(differs(old.rates[name], new.rates[name], _NOISE_OF_ONE) for name in known)
    )
