"""Work that several processes share: who does which part of it, in etcd.

A part is claimed by writing its key, if there is none, under the claimer's lease. What is done is
marked under the same lease: marks spare others the look at it, and mean nothing once all who worked
have gone. A process that is killed leaves its parts to the others when its lease has run out.

``/service/<service>/labelling/<job>/<part>``: "working" or "done".
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Optional

from edl._threads import Loop
from edl.discovery.etcd import Etcd
from edl.discovery.keys import service_prefix
from edl.discovery.watch import list_prefix
from edl.errors import DiscoveryError

logger = logging.getLogger(__name__)

_WORKING, _DONE = "working", "done"


class Claims:
    """One process's parts of a job. ``ttl``: seconds after which what it has claimed and not done
    is others', if it is gone. Raises DiscoveryError, from every method, as ``Etcd.call`` does.
    """

    def __init__(self, etcd: Etcd, service: str, job: str, ttl: int = 10) -> None:
        self._etcd = etcd
        self._prefix = f"{service_prefix(service)}labelling/{job}/"
        self._ttl = ttl
        self._lock = threading.Lock()
        self._lease: Optional[Any] = None
        self._done: set[str] = set()  # by anybody, as far as was seen
        self._keeping = Loop("edl-claims", self._keep, pause=ttl / 3)
        self._keeping.start()

    def take(self, part: str) -> bool:
        """Claim a part; whether it is to be done by this process."""
        if part in self._done:
            return False
        key = self._prefix + part

        def put(client: Any) -> tuple[bool, Any]:
            absent = client.transactions.create(key) == 0
            write = client.transactions.put(key, _WORKING, lease)
            look = client.transactions.get(key)
            return client.transaction(compare=[absent], success=[write], failure=[look])

        lease = self._own_lease()
        written, (found,) = self._etcd.call(put)
        if not written and found and found[0][0].decode("utf-8", "replace") == _DONE:
            self._done.add(part)
        return written

    def finish(self, part: str) -> None:
        """A part that was taken is done."""
        self._done.add(part)
        lease = self._own_lease()
        self._etcd.call(lambda client: client.put(self._prefix + part, _DONE, lease))

    def done(self) -> set[str]:
        """The parts that are done: those that this process has done, or has seen done."""
        found, _ = list_prefix(self._etcd, self._prefix)
        self._done |= {part for part, state in found.items() if state == _DONE}
        return set(self._done)

    def close(self) -> None:
        """Leave what is not done to others."""
        self._keeping.stop()
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is not None:
            try:
                self._etcd.call(lambda client: client.revoke_lease(lease.id))
            except DiscoveryError as error:
                logger.warning("claims are given up in %d s only: %s", self._ttl, error)

    def _own_lease(self) -> Any:
        with self._lock:
            if self._lease is None:
                self._lease = self._etcd.call(lambda client: client.lease(self._ttl))
            return self._lease

    def _keep(self) -> None:
        with self._lock:
            lease = self._lease
        if lease is None:
            return
        replies = self._etcd.call(lambda client: list(client.refresh_lease(lease.id)))
        if not replies or replies[0].TTL <= 0:
            logger.warning("etcd has lost what was claimed; others may do it, too")
            with self._lock:
                self._lease = None
