"""A key in etcd that is one process's own for as long as its lease lives."""

from __future__ import annotations

import logging
import time
from typing import Any, Optional

from edl.discovery.etcd import Etcd
from edl.errors import DiscoveryError, EtcdUnavailable

logger = logging.getLogger(__name__)

_LOOK_EVERY = 3.0  # seconds, at most, between two looks at a key that may have been deleted


class LeasedKey:
    """One key under one lease, and what is put beside it. Written only where there is none; what is
    removed is our lease.

    ``ttl``: seconds that the key outlives a process that has stopped keeping it. Not thread-safe.
    Methods raise DiscoveryError as ``Etcd.call`` does.
    """

    def __init__(self, etcd: Etcd, key: str, ttl: int) -> None:
        self.key = key
        self._etcd = etcd
        self._ttl = ttl
        self._look_every = min(ttl / 3, _LOOK_EVERY)
        self._lease: Optional[Any] = None
        self._refresh_at = self._look_at = 0.0
        self._written = ""

    @property
    def held(self) -> bool:
        """Whether it was written and not given up or lost since, as far as we know."""
        return self._lease is not None

    @property
    def value(self) -> str:
        """What was written last."""
        return self._written

    def take(self, value: str) -> bool:
        """Write the key unless somebody holds it; whether it is ours now."""
        lease = self._etcd.call(lambda client: client.lease(self._ttl))
        try:
            taken = self._put_if_absent(value, lease)
        except EtcdUnavailable:
            raise
        except DiscoveryError:  # such as: we may not
            self._etcd.call(lambda client: client.revoke_lease(lease.id))
            raise
        if not taken:
            self._etcd.call(lambda client: client.revoke_lease(lease.id))
            return False
        self._lease, self._written = lease, value
        now = time.monotonic()
        self._refresh_at, self._look_at = now + self._ttl / 3, now + self._look_every
        return True

    def keep(self) -> bool:
        """Keep the lease alive, which is due every third of its time, and the key there, which
        somebody may delete; false if etcd has lost the lease, or the key is another's.
        """
        lease = self._lease
        assert lease is not None, "keep before take"
        if time.monotonic() >= self._refresh_at:
            replies = self._etcd.call(lambda client: list(client.refresh_lease(lease.id)))
            self._refresh_at = time.monotonic() + self._ttl / 3
            if not replies or replies[0].TTL <= 0:
                self._lease = None
                return False
        if time.monotonic() >= self._look_at:
            if not self._is_there(lease):
                self.release()
                return False
            self._look_at = time.monotonic() + self._look_every
        return True

    def _is_there(self, lease: Any) -> bool:
        """Whether the key is ours; if it is nobody's, it is written again."""
        _, found = self._etcd.call(lambda client: client.get(self.key))
        if found is not None:
            return bool(found.lease_id == lease.id)
        logger.warning("%s was deleted, though its lease lives: written again", self.key)
        return self._put_if_absent(self._written, lease)

    def _put_if_absent(self, value: str, lease: Any) -> bool:
        def put(client: Any) -> bool:
            absent = client.transactions.create(self.key) == 0
            put = client.transactions.put(self.key, value, lease)
            written, _ = client.transaction(compare=[absent], success=[put], failure=[])
            return written

        return self._etcd.call(put)

    def change(self, value: str) -> None:
        """Put a new value in place of ours. If that is gone, the next ``keep`` finds it out."""
        if self.write(self.key, value):
            self._written = value

    def write(self, key: str, value: str) -> bool:
        """Put a key under our lease too, if ours is as we wrote it; whether it was."""
        ours, lease = self._written, self._lease

        def put_if_ours(client: Any) -> bool:
            unchanged = client.transactions.value(self.key) == ours
            put = client.transactions.put(key, value, lease)
            written, _ = client.transaction(compare=[unchanged], success=[put], failure=[])
            return written

        written = self._etcd.call(put_if_ours)
        if not written:
            self._refresh_at = self._look_at = 0.0
        return written

    def release(self) -> None:
        """Remove the key, by revoking our lease; what cannot be revoked now expires."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._etcd.call(lambda client: client.revoke_lease(lease.id))
