"""What is under a prefix in etcd, such as a service's teachers, kept up to date.

List, then watch from the revision of the list. Whatever goes wrong with the watch (etcd restarts,
the connection breaks, the revision was compacted away), list again and compare: a watcher that has
lost its place never guesses. While etcd is away the last known members stand. Keys that are not
UTF-8 are nobody's, and are not seen.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Callable, Optional

import grpc

from edl._threads import Loop
from edl.discovery import CLOSE_WITHIN
from edl.discovery._etcd3 import etcd3
from edl.discovery.etcd import Etcd, describe
from edl.discovery.keys import nodes_prefix
from edl.errors import DiscoveryError

logger = logging.getLogger(__name__)

#: Key without the prefix (a teacher's endpoint) to value.
Members = dict[str, str]

_DELETE = 1
_PAGE = 1000
_RELIST_DELAY = 0.3
_COMPLAIN_EVERY = 30.0


def list_prefix(etcd: Etcd, prefix: str) -> tuple[Members, int]:
    """What is under a prefix, rest of the key to value, and the revision it was read at.

    In pages, all of that one revision. Raises DiscoveryError as ``Etcd.call`` does.
    """
    start, end = prefix.encode(), etcd3.utils.increment_last_byte(prefix.encode())
    found: Members = {}
    revision, more = 0, True
    while more:
        page = etcd.page(start, end, _PAGE, revision)
        revision, more = revision or page.header.revision, page.more
        for entry in page.kvs:
            name = _name(entry.key, prefix)
            if name is not None:
                found[name] = entry.value.decode("utf-8", "replace")
            start = entry.key + b"\0"
    return found, revision


def list_nodes(etcd: Etcd, service: str) -> tuple[Members, int]:
    """The teachers of a service, endpoint to value, and the revision they were read at.

    Raises ConfigError for a service name that cannot be, EtcdUnavailable if no endpoint answers,
    DiscoveryError if etcd says no.
    """
    return list_prefix(etcd, nodes_prefix(service))


class Watch:
    """Calls ``on_change(members)`` with a whole snapshot, at once and after every change.

    Calls come from one thread of its own, one at a time. ``start`` does not wait for etcd: if it is
    away, that is logged every half minute and ``error`` says why, until it answers.
    """

    def __init__(self, etcd: Etcd, prefix: str, on_change: Callable[[Members], None]) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._on_change = on_change
        self._members: Optional[Members] = None
        self._stream: Optional[Any] = None
        self._complain_at = 0.0
        self._loop = Loop("edl-watch", self._watch, _RELIST_DELAY)
        self.error = ""

    def start(self) -> None:
        """Begin to list and watch."""
        self._loop.start()

    def stop(self) -> None:
        """Begin to end. Does not wait."""
        self._loop.stop()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def close(self, timeout: float = CLOSE_WITHIN) -> None:
        """Stop. ``on_change`` is not called any more once this returns, which it does after
        ``timeout`` seconds even if etcd, or ``on_change``, hangs.
        """
        self.stop()
        self._loop.join(timeout)

    def _watch(self) -> None:
        try:
            self._list_and_watch()
        except (DiscoveryError, grpc.RpcError, ValueError) as error:
            self.error = describe(error)
            now = time.monotonic()
            if now >= self._complain_at and not self._loop.stopped.is_set():
                self._complain_at = now + _COMPLAIN_EVERY
                logger.warning("watching %s: %s; trying again", self._prefix, self.error)

    def _list_and_watch(self) -> None:
        """Returns when the watch has ended in an orderly way, raises when it broke."""
        members, revision = list_prefix(self._etcd, self._prefix)
        self.error = ""
        if members != self._members:
            self._publish(members)
        stream = self._etcd.watch_stream(self._prefix, revision + 1)
        self._stream = stream
        if self._loop.stopped.is_set():  # closed between the check and the assignment
            stream.cancel()
        try:
            for response in stream:
                if response.canceled or response.compact_revision:
                    return
                if _apply(members, self._prefix, response.events):
                    self._publish(members)
        finally:
            self._stream = None
            stream.cancel()

    def _publish(self, members: Members) -> None:
        if not self._loop.stopped.is_set():
            self._members = members
            self._on_change(dict(members))


class Membership(Watch):
    """A service's teachers, endpoint to value; see :class:`Watch`. Raises ConfigError for a service
    name that cannot be.
    """

    def __init__(self, etcd: Etcd, service: str, on_change: Callable[[Members], None]) -> None:
        super().__init__(etcd, nodes_prefix(service), on_change)


def _apply(members: Members, prefix: str, events: Any) -> bool:
    """Change ``members`` by a watch response's events; whether that changed anything."""
    changed = False
    for event in events:
        name = _name(event.kv.key, prefix)
        if name is None:
            continue
        value = None if event.type == _DELETE else event.kv.value.decode("utf-8", "replace")
        changed = changed or members.get(name) != value
        if value is None:
            members.pop(name, None)
        else:
            members[name] = value
    return changed


def _name(key: bytes, prefix: str) -> Optional[str]:
    """A key without the prefix; None if it is not UTF-8."""
    try:
        return key.decode()[len(prefix) :]
    except UnicodeDecodeError:
        return None
