"""Who balances, and what that does: one leader at a time, elected in etcd.

Candidates wait at ``leader``. Whoever gets there puts its name under a lease, watches the whole
service, and writes what ``balance`` says: each student's assignment in a key of its own, in
transactions that fail if the leader is another by then. When it dies, its lease ends, and another
candidate goes on from the assignment as it stands.
"""

from __future__ import annotations

import json
import logging
import math
import random
import statistics
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Optional

from edl.discovery.balance import Assignment, Student, balance, rates
from edl.discovery.etcd import Etcd
from edl.discovery.leased import LeasedKey
from edl.discovery.membership import Members, Watch
from edl.discovery.records import StudentRecord, format_assignment, parse_assignment
from edl.discovery.registry import (
    ASSIGNMENTS,
    BALANCE,
    LEADER,
    NODES,
    STUDENTS,
    service_prefix,
)
from edl.errors import DiscoveryError

logger = logging.getLogger(__name__)

LEADER_TTL = 5
_DEBOUNCE = 0.05
_REST = 4  # times as long as the last balancing took, so that students' threads go on
_RATE_TOLERANCE = 0.25
_MAX_OPERATIONS = 100  # in one transaction; etcd's own limit is 128


@dataclass(frozen=True)
class Summary:
    """Demand and supply of a service. Rates in rows per second; ``demand`` counts students who
    would use any number of teachers with what they get now, and ``unsatisfied`` says how many want
    more than they get.
    """

    students: int = 0
    teachers: int = 0
    supply: float = 0.0
    demand: float = 0.0
    unsatisfied: int = 0
    idle: int = 0
    links: int = 0


@dataclass
class Plan:
    """What follows from a service's entries: the assignment, and what it amounts to."""

    assignment: Assignment
    current: dict[str, frozenset[str]]
    summary: Summary

    def changed(self) -> dict[str, Optional[frozenset[str]]]:
        """Assignments to write, None for those to delete."""
        changed: dict[str, Optional[frozenset[str]]] = {
            student: links
            for student, links in self.assignment.items()
            if self.current.get(student) != links
        }
        changed.update(dict.fromkeys(self.current.keys() - self.assignment.keys()))
        return changed


@dataclass
class Rates:
    """What teachers are taken to deliver. A measured rate replaces the one in use only when they
    differ by more than a quarter, so that noise moves nobody.
    """

    in_use: dict[str, float] = field(default_factory=dict)

    def update(self, measured: Mapping[str, Optional[float]]) -> dict[str, float]:
        """Rates for the teachers that are there. Those of which nothing is known are taken to be
        as fast as the others usually are.
        """
        known = [rate for rate in measured.values() if rate]
        usual = statistics.median(known) if known else 1.0
        before, self.in_use = self.in_use, {}
        for teacher, rate in measured.items():
            old = before.get(teacher)
            new = rate or old or usual
            news = old is None or abs(new - old) > _RATE_TOLERANCE * old
            self.in_use[teacher] = new if news else before[teacher]
        return self.in_use


def plan(entries: Members, rates_in_use: Rates) -> Plan:
    """What is to be assigned, given everything under a service's prefix."""
    nodes = _under(entries, NODES)
    records = {
        name: StudentRecord.from_json(text) for name, text in _under(entries, STUDENTS).items()
    }
    current = {name: parse_assignment(text) for name, text in _under(entries, ASSIGNMENTS).items()}
    seen: dict[str, float] = {}
    for record in records.values():
        for teacher, rate in record.rates.items():
            seen[teacher] = max(rate, seen.get(teacher, 0.0))
    measured = {
        endpoint: _declared_rate(text) or seen.get(endpoint) for endpoint, text in nodes.items()
    }
    teachers = rates_in_use.update(measured)
    students = {
        name: Student(
            record.max_teachers or 1 << 30,
            math.inf if record.want is None else record.want,
            frozenset(record.avoid),
        )
        for name, record in records.items()
    }
    assignment = balance(teachers, students, current)
    return Plan(assignment, current, _summarise(teachers, students, assignment))


def _under(entries: Members, kind: str) -> dict[str, str]:
    return {key[len(kind) :]: value for key, value in entries.items() if key.startswith(kind)}


def _declared_rate(text: str) -> Optional[float]:
    """The rate that a teacher's entry gives, if it does."""
    try:
        rate = float(json.loads(text)["rate"])
    except (ValueError, TypeError, KeyError):
        return None
    return rate if 0 < rate < math.inf else None


def _summarise(
    teachers: Mapping[str, float], students: Mapping[str, Student], assignment: Assignment
) -> Summary:
    got = rates(teachers, assignment)
    used = {teacher for links in assignment.values() for teacher in links}
    wants = {
        name: student.want if student.want < math.inf else got[name]
        for name, student in students.items()
    }
    return Summary(
        students=len(students),
        teachers=len(teachers),
        supply=round(math.fsum(teachers.values()), 3),
        demand=round(math.fsum(wants.values()), 3),
        unsatisfied=sum(got[name] < student.want for name, student in students.items()),
        idle=len(teachers.keys() - used),
        links=sum(map(len, assignment.values())),
    )


class Balancer:
    """A candidate for a service's leadership, on a thread of its own.

    ``eager``: campaign at once; otherwise leave others a moment first (a process that does nothing
    else is to be preferred to a student). ``on_summary`` is called after every balancing.
    """

    def __init__(
        self,
        etcd: Etcd,
        service: str,
        *,
        ttl: int = LEADER_TTL,
        eager: bool = False,
        on_summary: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        self.name = uuid.uuid4().hex
        self.leading = False
        self._etcd = etcd
        self._prefix = service_prefix(service)
        self._ttl = ttl
        self._eager = eager
        self._on_summary = on_summary
        self._leadership = LeasedKey(etcd, self._prefix + LEADER, ttl)
        self._entries: Members = {}
        self._changed = threading.Event()
        self._vacant = threading.Event()
        self._stopped = threading.Event()
        self._summary = Summary()
        self._thread = threading.Thread(target=self._run, name="edl-balancer", daemon=True)

    def start(self) -> None:
        """Become a candidate."""
        self._thread.start()

    def stop(self) -> None:
        """Step down, so that another can follow at once."""
        self._stopped.set()
        self._changed.set()
        self._vacant.set()
        if self._thread.is_alive():
            self._thread.join()

    # --- the election -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self._wait_for_vacancy() and self._leadership.take(self.name):
                    self._lead()
            except DiscoveryError as error:
                logger.debug("balancing %s: %s", self._prefix, error)
                self._stopped.wait(1.0)
            finally:
                self._step_down()

    def _wait_for_vacancy(self) -> bool:
        """Watch the leader's key until there is none. Whether that is the case."""
        self._vacant.clear()

        def on_change(found: Members) -> None:
            if "" in found:
                self._vacant.clear()
            else:
                self._vacant.set()

        watch = Watch(self._etcd, self._prefix + LEADER, on_change)
        watch.start()
        try:
            self._vacant.wait()
        finally:
            watch.close()
        if not self._eager:
            self._stopped.wait(random.uniform(0.0, 0.1))
        return not self._stopped.is_set()

    def _step_down(self) -> None:
        self.leading = False
        try:
            self._leadership.release()
        except DiscoveryError as error:  # it ends by itself
            logger.debug("stepping down from %s: %s", self._prefix, error)

    # --- the leader -------------------------------------------------------------------------

    def _lead(self) -> None:
        """Balance until somebody else leads, etcd is lost, or this is stopped."""
        self.leading = True
        logger.info("balancing %s from here", self._prefix)
        rates_in_use, took = Rates(), 0.0
        self._changed.clear()
        listed = threading.Event()

        def on_change(entries: Members) -> None:
            self._entries = entries
            listed.set()
            self._changed.set()

        watch = Watch(self._etcd, self._prefix, on_change)
        watch.start()
        try:
            while not listed.wait(0.1):
                if self._stopped.is_set() or not self._leadership.keep():
                    return
            while not self._stopped.is_set() and self._leadership.keep():
                if not self._changed.wait(self._ttl / 3):
                    continue
                self._stopped.wait(max(_DEBOUNCE, _REST * took))  # changes come in company
                self._changed.clear()
                started = time.monotonic()
                if not self._balance(rates_in_use):
                    logger.warning("%s is balanced by another process now", self._prefix)
                    return
                took = time.monotonic() - started
        finally:
            watch.close()

    def _balance(self, rates_in_use: Rates) -> bool:
        """Compute and write. Whether this is the leader still."""
        if self._entries.get(LEADER) != self.name:
            return False
        result = plan(self._entries, rates_in_use)
        self._on_summary(result.summary)
        return all(self._write(operations) for operations in self._operations(result))

    def _operations(self, result: Plan) -> Iterator[list[tuple[str, Optional[str]]]]:
        """What to put (or delete: None), in portions for one transaction each."""
        operations: list[tuple[str, Optional[str]]] = []
        for student, links in sorted(result.changed().items()):
            value = None if links is None else format_assignment(links)
            operations.append((ASSIGNMENTS + student, value))
        if result.summary != self._summary:
            self._summary = result.summary
            operations.append((BALANCE, json.dumps(asdict(result.summary))))
        for start in range(0, len(operations), _MAX_OPERATIONS):
            yield operations[start : start + _MAX_OPERATIONS]

    def _write(self, operations: list[tuple[str, Optional[str]]]) -> bool:
        """One transaction, which only the leader can make. Whether it was made."""

        def guarded(client: Any) -> bool:
            ours = client.transactions.value(self._prefix + LEADER) == self.name
            changes = [
                client.transactions.delete(self._prefix + key)
                if value is None
                else client.transactions.put(self._prefix + key, value)
                for key, value in operations
            ]
            written, _ = client.transaction(compare=[ours], success=changes, failure=[])
            return written

        return self._etcd.call(guarded)
