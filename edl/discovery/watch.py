"""What is under a prefix in etcd, such as a service's teachers, kept up to date.

List, then watch from the revision of the list. Whatever goes wrong with the watch (etcd restarts,
the connection breaks, the revision was compacted away), list again and compare: a watcher that has
lost its place never guesses. While etcd is away the last known members stand.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Callable, Optional

import grpc

from edl.discovery.etcd import Etcd, describe
from edl.discovery.keys import nodes_prefix
from edl.errors import DiscoveryError

logger = logging.getLogger(__name__)

#: Key without the prefix (a teacher's endpoint) to value.
Members = dict[str, str]

_DELETE = 1
_RELIST_DELAY = 0.3
_COMPLAIN_EVERY = 30.0


def list_prefix(etcd: Etcd, prefix: str) -> tuple[dict[str, str], int]:
    """What is under a prefix, rest of the key to value, and the revision it was read at."""
    response = etcd.call(lambda client: client.get_prefix_response(prefix))
    found = {
        kv.key.decode()[len(prefix) :]: kv.value.decode("utf-8", "replace") for kv in response.kvs
    }
    return found, response.header.revision


def list_nodes(etcd: Etcd, service: str) -> tuple[dict[str, str], int]:
    """The teachers of a service, endpoint to value, and the revision they were read at."""
    return list_prefix(etcd, nodes_prefix(service))


class Watch:
    """Calls ``on_change(members)`` with a whole snapshot, at once and after every change.

    Calls come from one thread of its own, one at a time. ``start`` does not wait for etcd: if it is
    away, that is logged every few seconds and ``error`` says why, until it answers.
    """

    def __init__(self, etcd: Etcd, prefix: str, on_change: Callable[[Members], None]) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._on_change = on_change
        self._members: Optional[Members] = None
        self._stopped = threading.Event()
        self._stream: Optional[Any] = None
        self._thread = threading.Thread(target=self._run, name="edl-watch", daemon=True)
        self.error = ""

    def start(self) -> None:
        """Begin to list and watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop. ``on_change`` is not called any more once this returns."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        complained = 0.0
        while not self._stopped.is_set():
            try:
                self._list_and_watch()
            except (DiscoveryError, grpc.RpcError, ValueError) as error:
                self.error = describe(error)
            if self._stopped.wait(_RELIST_DELAY):
                return
            if self.error and time.monotonic() - complained > _COMPLAIN_EVERY:
                complained = time.monotonic()
                logger.warning("watching %s: %s; trying again", self._prefix, self.error)

    def _list_and_watch(self) -> None:
        """Returns when the watch has ended in an orderly way, raises when it broke."""
        members, revision = list_prefix(self._etcd, self._prefix)
        self.error = ""
        self._publish(members)
        stream = self._etcd.watch_stream(self._prefix, revision + 1)
        self._stream = stream
        if self._stopped.is_set():  # closed between the check and the assignment
            stream.cancel()
        try:
            for response in stream:
                if response.canceled or response.compact_revision:
                    return
                if response.events:
                    self._publish(_apply(members, self._prefix, response.events))
        finally:
            self._stream = None
            stream.cancel()

    def _publish(self, members: Members) -> None:
        if members != self._members and not self._stopped.is_set():
            self._members = dict(members)
            self._on_change(dict(members))


class Membership(Watch):
    """A service's teachers, endpoint to value."""

    def __init__(self, etcd: Etcd, service: str, on_change: Callable[[Members], None]) -> None:
        super().__init__(etcd, nodes_prefix(service), on_change)


def _apply(members: Members, prefix: str, events: Any) -> Members:
    """``members`` changed in place by a watch response's events."""
    for event in events:
        endpoint = event.kv.key.decode()[len(prefix) :]
        if event.type == _DELETE:
            members.pop(endpoint, None)
        else:
            members[endpoint] = event.kv.value.decode("utf-8", "replace")
    return members
