"""An entry in etcd that lives as long as the process that made it, and is healthy."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable

from edl.discovery.etcd import Etcd
from edl.discovery.keys import NODES, service_prefix
from edl.discovery.leased import LeasedKey
from edl.errors import AlreadyRegistered, DiscoveryError, EtcdUnavailable

logger = logging.getLogger(__name__)

_COMPLAIN_EVERY, _REMIND_EVERY = 5.0, 30.0


class Registration:
    """Keeps one entry (a teacher's, unless ``kind`` says otherwise) in the registry for as long as
    it is healthy.

    ``start`` writes the entry; a thread then keeps its lease alive. The entry is withdrawn while
    ``healthy()`` is false and written again when it is true. If etcd loses the lease (it expired
    while this process was stopped, or etcd was wiped), the entry is written anew, unless another
    process has taken the endpoint meanwhile. An entry of another process is never overwritten
    and never removed: writing requires that there is none, and removing is revoking our lease.
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
        self._entry = LeasedKey(etcd, service_prefix(service) + kind + endpoint, ttl)
        self._value = value
        self._check_every = min(1.0, ttl / 3)
        self._healthy = healthy
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="edl-registration", daemon=True)

    def start(self, patience: float = 30.0) -> None:
        """Write the entry and start keeping it alive.

        Waits up to ``patience`` seconds for etcd to answer, and for an entry that a dead process
        left behind to expire; returns early if it is stopped. Raises EtcdUnavailable or
        AlreadyRegistered after that.
        """
        started = time.monotonic()
        complain_at = 0.0
        with self._starting:
            while not self._stopped.is_set():
                try:
                    self._write()
                    self._thread.start()
                    return
                except (EtcdUnavailable, AlreadyRegistered) as error:
                    now = time.monotonic()
                    if now - started > patience:
                        raise
                    if now >= complain_at:
                        complain_at = now + _COMPLAIN_EVERY
                        logger.warning("%s; trying again", error)
                    self._stopped.wait(1.0)

    def update(self, value: str) -> None:
        """Change the entry's value, within a second or so."""
        self._value = value

    def stop(self) -> None:
        """Withdraw the entry and stop. Does not raise: what cannot be withdrawn now expires."""
        self._stopped.set()
        with self._starting:
            if self._thread.is_alive():
                self._thread.join()
        try:
            self._withdraw()
        except DiscoveryError as error:
            logger.warning("%s stays until its lease expires: %s", self._entry.key, error)

    def _keep(self) -> None:
        complain_at = 0.0
        while not self._stopped.wait(self._check_every):
            try:
                self._keep_once()
            except DiscoveryError as error:
                now = time.monotonic()
                if now >= complain_at:
                    complain_at = now + _REMIND_EVERY
                    logger.warning("keeping %s in the registry failed: %s", self._entry.key, error)

    def _keep_once(self) -> None:
        entry = self._entry
        if not self._healthy():
            if entry.held:
                logger.warning("%s is not healthy: withdrawn from the registry", entry.key)
                self._withdraw()
        elif not entry.held:
            self._write()
            logger.info("%s is in the registry again", entry.key)
        elif not entry.keep():
            logger.warning("etcd no longer knows the lease of %s", entry.key)
            self._write()
        elif entry.value != self._value:
            entry.change(self._value)

    def _write(self) -> None:
        if not self._entry.take(self._value):
            raise AlreadyRegistered(f"another process holds {self._entry.key}")

    def _withdraw(self) -> None:
        try:
            self._entry.release()
        except EtcdUnavailable:
            raise
        except DiscoveryError as error:  # such as: lease not found, it has expired
            logger.debug("revoking the lease of %s: %s", self._entry.key, error)
