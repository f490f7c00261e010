"""A key in etcd that is one process's own for as long as its lease lives."""

from __future__ import annotations

import time
from typing import Any, Optional

from edl.discovery.etcd import Etcd


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
        self._lease: Optional[Any] = None
        self._refresh_at = 0.0
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

        def put_if_absent(client: Any) -> bool:
            absent = client.transactions.create(self.key) == 0
            put = client.transactions.put(self.key, value, lease)
            written, _ = client.transaction(compare=[absent], success=[put], failure=[])
            return written

        if not self._etcd.call(put_if_absent):
            self._etcd.call(lambda client: client.revoke_lease(lease.id))
            return False
        self._lease, self._written = lease, value
        self._refresh_at = time.monotonic() + self._ttl / 3
        return True

    def keep(self) -> bool:
        """Keep the lease alive, which is due every third of its time; false if etcd has lost it."""
        lease = self._lease
        assert lease is not None, "keep before take"
        if time.monotonic() < self._refresh_at:
            return True
        replies = self._etcd.call(lambda client: list(client.refresh_lease(lease.id)))
        self._refresh_at = time.monotonic() + self._ttl / 3
        if replies and replies[0].TTL > 0:
            return True
        self._lease = None
        return False

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
            self._refresh_at = 0.0
        return written

    def release(self) -> None:
        """Remove the key, by revoking our lease; what cannot be revoked now expires."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._etcd.call(lambda client: client.revoke_lease(lease.id))
