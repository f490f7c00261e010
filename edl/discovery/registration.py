"""An entry in etcd that lives as long as the process that made it, and is healthy."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

from edl._threads import Loop
from edl.discovery import CLOSE_WITHIN
from edl.discovery.etcd import Etcd
from edl.discovery.keys import NODES, RATES, service_prefix
from edl.discovery.leased import LeasedKey
from edl.discovery.records import differs, format_rate
from edl.errors import AlreadyRegistered, DiscoveryError, EtcdUnavailable

logger = logging.getLogger(__name__)

_COMPLAIN_EVERY = 30.0


class Registration:
    """Keeps one entry (a teacher's, unless ``kind`` says otherwise) in the registry for as long as
    it is healthy.

    A thread writes the entry and keeps its lease alive. The entry is withdrawn while ``healthy()``
    is false and written again when it is true. If etcd loses the lease (it expired while this
    process was stopped, or etcd was wiped), or somebody deletes the entry, it is written anew
    within a few seconds, unless another process has taken the endpoint meanwhile. An entry of
    another process is never overwritten and never removed: writing requires that there is none, and
    removing is revoking our lease.

    ``value``: what the entry says, one line of JSON. ``ttl``: whole seconds that the entry outlives
    this process. ``healthy`` is asked every second, and more often if ``ttl`` is below three.
    Raises ConfigError for a service name that cannot be.
    """

    def __init__(
        self,
        etcd: Etcd,
        service: str,
        endpoint: str,
        value: str,
        ttl: int = 10,
        healthy: Callable[[], bool] = lambda: True,
        kind: str = NODES,
    ) -> None:
        prefix = service_prefix(service)
        self._entry = LeasedKey(etcd, prefix + kind + endpoint, ttl)
        self._rate_key = prefix + RATES + endpoint
        self._value = value
        self._rate = self._told_rate = 0.0
        self._healthy = healthy
        self._problem: Optional[DiscoveryError] = None
        self._tried = threading.Event()
        self._complain_at = 0.0
        self._loop = Loop("edl-registration", self._keep, min(1.0, ttl / 3), self._leave)

    def begin(self) -> None:
        """Start to write the entry and keep it. Does not wait for etcd."""
        self._loop.start()

    def start(self, patience: float = 30.0) -> None:
        """Write the entry and start keeping it alive.

        Waits up to ``patience`` seconds for etcd to answer, and for an entry that a dead process
        left behind to expire; returns early if it is stopped. Raises EtcdUnavailable or
        AlreadyRegistered after that, DiscoveryError at once if etcd itself says no.
        """
        started = time.monotonic()
        self.begin()
        while not self._loop.stopped.is_set():
            self._tried.wait()
            self._tried.clear()
            problem = self._problem
            if problem is None:
                return
            may_pass = isinstance(problem, (EtcdUnavailable, AlreadyRegistered))
            if not may_pass or time.monotonic() - started > patience:
                self.stop()
                raise problem

    def update(self, value: str) -> None:
        """Change the entry's value, within a second or so. For what changes seldom: every student
        watches it.
        """
        self._value = value

    def measured(self, rate: float) -> None:
        """Rows per second that this teacher computes; written, beside its entry, if it is news."""
        self._rate = rate

    def stop(self, timeout: float = CLOSE_WITHIN) -> None:
        """Withdraw the entry and stop. Does not raise, and waits ``timeout`` seconds at most: what
        cannot be withdrawn by then is later, or expires.
        """
        self._loop.stop()
        self._loop.join(timeout)

    def _keep(self) -> None:
        try:
            self._keep_once()
            self._problem = None
        except DiscoveryError as error:
            self._problem = error
            now = time.monotonic()
            if now >= self._complain_at and not self._loop.stopped.is_set():
                self._complain_at = now + _COMPLAIN_EVERY
                logger.warning("keeping %s in the registry: %s", self._entry.key, error)
        finally:
            self._tried.set()

    def _keep_once(self) -> None:
        entry = self._entry
        if not self._healthy():
            if entry.held:
                logger.warning("%s is not healthy: withdrawn from the registry", entry.key)
                self._withdraw()
        elif not entry.held:
            self._write()
        elif not entry.keep():
            logger.warning("%s is not ours any more: its lease was lost, or the key", entry.key)
            self._write()
        elif entry.value != self._value:
            entry.change(self._value)
        elif self._rate > 0 and differs(self._told_rate, self._rate):
            rate = self._rate
            if entry.write(self._rate_key, format_rate(rate)):
                self._told_rate = rate

    def _write(self) -> None:
        self._told_rate = 0.0
        if not self._entry.take(self._value):
            raise AlreadyRegistered(f"another process holds {self._entry.key}")
        logger.info("%s is in the registry", self._entry.key)

    def _leave(self) -> None:
        self._tried.set()
        try:
            self._withdraw()
        except DiscoveryError as error:
            logger.warning("%s stays until its lease expires: %s", self._entry.key, error)

    def _withdraw(self) -> None:
        try:
            self._entry.release()
        except EtcdUnavailable:
            raise
        except DiscoveryError as error:  # such as: lease not found, it has expired
            logger.debug("revoking the lease of %s: %s", self._entry.key, error)
