"""Who balances, and what that does: one leader at a time, elected in etcd.

Candidates wait at ``leader``. Whoever gets there puts its name under a lease, watches the whole
service, and writes what ``balance`` says: each student's assignment in a key of its own, in
transactions that fail if the leader is another by then. When it dies, its lease ends, and another
candidate goes on from the assignment as it stands.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Callable, Optional

from edl.discovery.assignment import Plan, Rates, Summary, plan
from edl.discovery.etcd import Etcd
from edl.discovery.keys import ASSIGNMENTS, BALANCE, LEADER, service_prefix
from edl.discovery.leased import LeasedKey
from edl.discovery.records import format_assignment
from edl.discovery.watch import Members, Watch
from edl.errors import DiscoveryError

logger = logging.getLogger(__name__)

LEADER_TTL = 5
_DEBOUNCE = 0.05
_REST = 4  # times as long as the last balancing took, so that students' threads go on
_MAX_OPERATIONS = 100  # in one transaction; etcd's own limit is 128


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
