"""A connection to etcd: several endpoints, a limit on every call, EDL's errors.

Everything that talks to etcd goes through :meth:`Etcd.call`. One call is tried on each endpoint in
turn; which one answered last is remembered.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any, Callable, TypeVar, Union

import grpc

from edl.discovery._etcd3 import etcd3
from edl.errors import ConfigError, DiscoveryError, EtcdUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECTION_ERRORS = (
    etcd3.exceptions.ConnectionFailedError,
    etcd3.exceptions.ConnectionTimeoutError,
    etcd3.exceptions.InternalServerError,
)
_GRPC_OPTIONS = [
    # An etcd that comes back must be found within a second, not after gRPC's 20 s and more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.enable_http_proxy", 0),
]


def parse_endpoints(endpoints: Union[str, Sequence[str]]) -> list[tuple[str, int]]:
    """``host:port`` strings, in a list or separated by commas, as pairs. Raises ConfigError."""
    items = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    pairs = []
    for item in items:
        text = item.strip()
        for scheme in ("etcd://", "http://"):
            text = text[len(scheme) :] if text.startswith(scheme) else text
        host, colon, port = text.rstrip("/").rpartition(":")
        if not colon or not host or not port.isdigit():
            raise ConfigError(f"etcd endpoint {item!r} is not host:port")
        pairs.append((host, int(port)))
    if not pairs:
        raise ConfigError("no etcd endpoint was given")
    return pairs


class Etcd:
    """etcd at one or more endpoints. Safe to use from several threads.

    ``timeout``: seconds for one attempt at one endpoint.
    """

    def __init__(self, endpoints: Union[str, Sequence[str]], timeout: float = 3.0) -> None:
        self._addresses = parse_endpoints(endpoints)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._clients: dict[int, Any] = {}
        self._current = 0
        self._closed = False

    def __str__(self) -> str:
        return "etcd at " + ",".join(f"{host}:{port}" for host, port in self._addresses)

    def call(self, operation: Callable[[Any], T]) -> T:
        """``operation(client)`` on the first endpoint where etcd answers.

        Raises EtcdUnavailable if none does, DiscoveryError if etcd itself says no.
        """
        first = self._current
        error: Exception = EtcdUnavailable(f"{self} was closed")
        for step in range(len(self._addresses)):
            index = (first + step) % len(self._addresses)
            try:
                result = operation(self._client(index))
            except _CONNECTION_ERRORS as failure:
                error = failure
            except (grpc.RpcError, etcd3.exceptions.Etcd3Exception) as failure:
                if isinstance(failure, grpc.RpcError) and failure.code() in (
                    grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.UNKNOWN,
                ):
                    error = failure
                    continue
                raise DiscoveryError(f"{self}: {describe(failure)}") from failure
            except ValueError as failure:  # gRPC's word for a channel that was closed meanwhile
                error = failure
            else:
                self._current = index
                return result
        raise EtcdUnavailable(f"{self} does not answer: {describe(error)}") from error

    def watch_stream(self, prefix: str, start_revision: int) -> Any:
        """GRPC's stream of WatchResponse for the keys under ``prefix`` from a revision on.

        Iterating it blocks; its ``cancel()`` ends that from another thread.
        """
        rpc = etcd3.etcdrpc
        start = prefix.encode()
        request = rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(
                key=start,
                range_end=etcd3.utils.increment_last_byte(start),
                start_revision=start_revision,
                progress_notify=True,
            )
        )
        done = threading.Event()

        def requests() -> Any:
            yield request
            done.wait()  # ending the requests would end the stream

        client = self._client(self._current)
        stream = rpc.WatchStub(client.channel).Watch(requests(), metadata=client.metadata)
        stream.add_callback(done.set)
        return stream

    def close(self) -> None:
        """Close all connections; calls in other threads fail."""
        with self._lock:
            self._closed = True
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def __enter__(self) -> Etcd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _client(self, index: int) -> Any:
        with self._lock:
            if self._closed:
                raise EtcdUnavailable(f"{self} was closed")
            if index not in self._clients:
                host, port = self._addresses[index]
                self._clients[index] = etcd3.client(
                    host=host, port=port, timeout=self._timeout, grpc_options=_GRPC_OPTIONS
                )
            return self._clients[index]


def describe(error: BaseException) -> str:
    """One line for an error of etcd3 or gRPC, whose own texts are empty or a page long."""
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return f"{error.code().name.lower()}: {error.details()}"
    known = {
        etcd3.exceptions.ConnectionFailedError: "connection failed",
        etcd3.exceptions.ConnectionTimeoutError: "timed out",
        etcd3.exceptions.InternalServerError: "internal server error",
    }
    return known.get(type(error), str(error) or type(error).__name__)
