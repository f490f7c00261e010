"""Who balances, and what that does: one leader at a time, elected in etcd.

Candidates wait at ``leader``. Whoever gets there puts its name under a lease, watches the whole
service, and writes what ``balance`` says: each student's assignment in a key of its own, in
transactions that fail if the leader is another by then. When it dies, its lease ends, and another
candidate goes on from the assignment as it stands. The lease is kept by a thread that does nothing
else: however long balancing takes, who leads goes on to lead, unless it is a student and a process
that does nothing else has come.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Callable, Optional

from edl._threads import Loop
from edl.discovery import CLOSE_WITHIN
from edl.discovery.assignment import Plan, Rates, Summary, plan
from edl.discovery.etcd import Etcd, is_forbidden
from edl.discovery.keys import ASSIGNMENTS, BALANCE, CANDIDATE, LEADER, service_prefix
from edl.discovery.leased import LeasedKey
from edl.discovery.records import format_assignment, parse_wanted
from edl.discovery.wanted import Bounds, Wanted
from edl.discovery.watch import Members, Watch
from edl.errors import DiscoveryError

logger = logging.getLogger(__name__)

LEADER_TTL = 5
_DEBOUNCE = 0.05
_REST = 4  # times as long as the last balancing took, so that students' threads go on
_LONGEST_REST = 2.0
_RETRY_DELAY = 1.0
_LOOK_EVERY = 1.0  # at how many teachers are wanted, which time alone may change
_MAX_OPERATIONS = 100  # in one transaction; etcd's own limit is 128

#: Keys of a service without its prefix, and what to put there (None: delete it).
Writes = Mapping[str, Optional[str]]


class Balancer:
    """A candidate for a service's leadership, on a thread of its own.

    ``eager``: campaign at once, and say so at ``candidate``; others leave it a moment first, and
    step down for it (a process that does nothing else is to be preferred to a student). ``ttl``:
    seconds after which another one follows a leader that has died. ``bounds``: of the number of
    teachers wanted; None: the default ones. ``on_summary`` is called with a Summary, on that
    thread, after every balancing and when the number wanted has changed; with None when this does
    not lead any more. One that etcd does not let write is no candidate any longer, unless it is
    eager. Raises ConfigError for a service name that cannot be; an etcd that does not answer is
    tried again.
    """

    def __init__(
        self,
        etcd: Etcd,
        service: str,
        *,
        ttl: int = LEADER_TTL,
        eager: bool = False,
        bounds: Optional[Bounds] = None,
        on_summary: Callable[[Optional[Summary]], None] = lambda summary: None,
    ) -> None:
        self.name = uuid.uuid4().hex
        self.leading = False
        self._etcd = etcd
        self._prefix = service_prefix(service)
        self._ttl = ttl
        self._eager = eager
        self._bounds = bounds or Bounds()
        self._on_summary = on_summary
        self._leadership = LeasedKey(etcd, self._prefix + LEADER, ttl)
        self._candidacy = LeasedKey(etcd, self._prefix + CANDIDATE, ttl)
        self._entries: Members = {}
        self._changed = threading.Event()
        self._vacant = threading.Event()
        self._over = threading.Event()
        self._loop = Loop("edl-balancer", self._campaign, _RETRY_DELAY)

    @property
    def running(self) -> bool:
        """Whether it is a candidate, or leads."""
        return self._loop.alive

    def start(self) -> None:
        """Become a candidate."""
        self._loop.start()

    def stop(self, timeout: float = CLOSE_WITHIN) -> None:
        """Step down, so that another can follow at once. Waits ``timeout`` seconds at most."""
        self._loop.stop()
        for event in (self._over, self._changed, self._vacant):
            event.set()
        self._loop.join(timeout)

    # --- the election -----------------------------------------------------------------------

    def _campaign(self) -> None:
        """Wait until nobody leads, stand for election, and lead if elected."""
        try:
            if self._wait_for_vacancy() and self._leadership.take(self.name):
                self._candidacy.release()
                self._lead()
        except DiscoveryError as error:
            if is_forbidden(error) and not self._eager:
                logger.info("balancing %s is left to others: %s", self._prefix, error)
                self._loop.stop()
            else:
                log = logger.warning if is_forbidden(error) else logger.debug
                log("balancing %s: %s", self._prefix, error)
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
            while not self._vacant.wait(_RETRY_DELAY) and not self._loop.stopped.is_set():
                if self._eager and not (self._candidacy.held and self._candidacy.keep()):
                    self._candidacy.take(self.name)
        finally:
            watch.close()
        if not self._eager:
            self._loop.stopped.wait(random.uniform(0.0, 0.1))
        return not self._loop.stopped.is_set()

    def _step_down(self) -> None:
        self.leading = False
        for key in (self._candidacy, self._leadership):
            try:
                key.release()
            except DiscoveryError as error:  # it ends by itself
                logger.debug("letting go of %s: %s", key.key, error)

    # --- the leader -------------------------------------------------------------------------

    def _lead(self) -> None:
        """Balance until somebody else leads, etcd is lost, or this is stopped."""
        self.leading = True
        logger.info("balancing %s from here", self._prefix)
        self._entries = {}
        self._changed.clear()
        self._over.clear()

        def on_change(entries: Members) -> None:
            self._entries = entries
            self._changed.set()

        keeper = Loop("edl-leadership", self._keep_leading, min(0.5, self._ttl / 6))
        watch = Watch(self._etcd, self._prefix, on_change)
        keeper.start()
        watch.start()
        try:
            self._balance_until_over()
        finally:
            keeper.stop()
            watch.close()
            keeper.join(self._ttl)  # the lease is its own until then
            self._on_summary(None)

    def _keep_leading(self) -> None:
        if not self._over.is_set() and not self._is_kept():
            self._over.set()
            self._changed.set()

    def _is_kept(self) -> bool:
        try:
            return self._leadership.keep()
        except DiscoveryError as error:
            logger.debug("keeping the leadership of %s: %s", self._prefix, error)
            return False

    def _balance_until_over(self) -> None:
        rates_in_use, summary, took = Rates(), Summary(), 0.0
        settled: Members = {}
        result: Optional[Plan] = None
        wanted: Optional[Wanted] = None
        while not self._loop.stopped.is_set():
            self._changed.wait(_LOOK_EVERY)
            # Changes come in company.
            if self._over.wait(max(_DEBOUNCE, min(_LONGEST_REST, _REST * took))):
                return
            self._changed.clear()
            entries = self._entries
            if not entries:  # nothing was heard yet
                continue
            if entries.get(LEADER) != self.name:
                logger.warning("%s is balanced by another process now", self._prefix)
                return
            if CANDIDATE in entries and not self._eager:
                logger.info("%s has a balancer of its own", self._prefix)
                return
            started = time.monotonic()
            news = entries != settled  # otherwise what changed is what was written here
            if news or result is None:
                result = plan(entries, rates_in_use)
            if wanted is None:
                wanted = Wanted(self._bounds, parse_wanted(entries.get(BALANCE, "")))
            result = with_wanted(result, wanted.update(started, result.load))
            if not news and result.summary == summary:
                continue
            self._on_summary(result.summary)
            writes = changes(result, summary)
            if all(self._write(portion) for portion in portions(writes)):
                summary, settled = result.summary, applied(entries, writes)
                result = replace(result, current=result.assignment)
            # Otherwise the next look, or the lease, says who leads.
            took = time.monotonic() - started

    def _write(self, operations: Writes) -> bool:
        """One transaction, which only the leader can make. Whether it was made."""

        def guarded(client: Any) -> bool:
            ours = client.transactions.value(self._prefix + LEADER) == self.name
            changes = [
                client.transactions.delete(self._prefix + key)
                if value is None
                else client.transactions.put(self._prefix + key, value)
                for key, value in operations.items()
            ]
            written, _ = client.transaction(compare=[ours], success=changes, failure=[])
            return written

        return self._etcd.call(guarded)


def with_wanted(result: Plan, number: int) -> Plan:
    """The same plan, with how many teachers are wanted in its summary."""
    return replace(result, summary=replace(result.summary, wanted=number))


def changes(result: Plan, before: Summary) -> Writes:
    """What to write for a plan, and for its summary if it is not as ``before``."""
    writes = {
        ASSIGNMENTS + student: None if links is None else format_assignment(links)
        for student, links in sorted(result.changed().items())
    }
    if result.summary != before:
        writes[BALANCE] = json.dumps(asdict(result.summary))
    return writes


def portions(writes: Writes) -> Iterator[Writes]:
    """``writes`` in portions of one transaction each."""
    items = list(writes.items())
    for start in range(0, len(items), _MAX_OPERATIONS):
        yield dict(items[start : start + _MAX_OPERATIONS])


def applied(entries: Mapping[str, str], writes: Writes) -> Members:
    """A service's entries once ``writes`` are made."""
    after = {**entries, **writes}
    return {key: value for key, value in after.items() if value is not None}
