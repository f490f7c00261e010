"""A connection to etcd: several endpoints, a limit on every call, EDL's errors.

Everything that talks to etcd goes through :meth:`Etcd.call`. One call is tried on each endpoint in
turn; which one answered last is remembered.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, TypeVar, Union

import grpc

from edl._endpoints import parse_etcd_endpoints
from edl._threads import Loop
from edl.discovery._etcd3 import etcd3
from edl.discovery.stranger import stranger
from edl.errors import ConfigError, DiscoveryError, EtcdUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECTION_ERRORS = (
    etcd3.exceptions.ConnectionFailedError,
    etcd3.exceptions.ConnectionTimeoutError,
    etcd3.exceptions.InternalServerError,
)
_PULSE_EVERY = 4.0  # seconds; with a call's time limit it stays below a lease's ten
_TRY_ELSEWHERE = (
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
)
_GRPC_OPTIONS = [
    # An etcd that comes back must be found within a second, not after gRPC's 20 s and more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A watch may be silent for hours; a node that has vanished must be noticed all the same, within
    # a lease. etcd allows a ping every 5 s, and none without a call.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
    # gRPC's own 4 MiB are a few thousand entries: lists come in pages, bursts of events do not.
    ("grpc.max_receive_message_length", 64 << 20),
]


@dataclass(frozen=True)
class Credentials:
    """What etcd wants to be shown: a user and password, and files in PEM format for TLS: who must
    have signed its certificate, our own certificate, and the key of that.

    Raises ConfigError if one is given without what it goes with, or a file is not there.
    """

    user: Optional[str] = None
    password: Optional[str] = None
    ca_cert: Optional[str] = None
    cert: Optional[str] = None
    key: Optional[str] = None

    def __post_init__(self) -> None:
        if (self.user is None) != (self.password is None):
            raise ConfigError("EDL_ETCD_USER and EDL_ETCD_PASSWORD go together")
        if (self.cert is None) != (self.key is None):
            raise ConfigError("EDL_ETCD_CERT and EDL_ETCD_KEY go together")
        if self.cert is not None and self.ca_cert is None:
            raise ConfigError(  # etcd3 would go on without TLS
                "EDL_ETCD_CERT and EDL_ETCD_KEY need EDL_ETCD_CA_CERT, who has signed etcd's own"
            )
        for path in (self.ca_cert, self.cert, self.key):
            if path is not None and not os.path.isfile(path):
                raise ConfigError(f"etcd's certificate or key {path!r} does not exist")

    @classmethod
    def from_environment(cls) -> Credentials:
        """From EDL_ETCD_USER, EDL_ETCD_PASSWORD, EDL_ETCD_CA_CERT, EDL_ETCD_CERT, EDL_ETCD_KEY.
        Raises ConfigError likewise.
        """
        get = os.environ.get
        return cls(
            get("EDL_ETCD_USER"),
            get("EDL_ETCD_PASSWORD"),
            get("EDL_ETCD_CA_CERT"),
            get("EDL_ETCD_CERT"),
            get("EDL_ETCD_KEY"),
        )

    def arguments(self) -> dict[str, Optional[str]]:
        """For ``etcd3.client``."""
        return {
            "user": self.user,
            "password": self.password,
            "ca_cert": self.ca_cert,
            "cert_cert": self.cert,
            "cert_key": self.key,
        }


class Etcd:
    """etcd at one or more endpoints. Safe to use from several threads.

    ``endpoints``: ``host:port``, comma-separated or a list; ``http://`` and the like may stand
    before each. ``timeout``: seconds for one attempt at one endpoint. ``credentials``: by default
    those of the environment. Connects when it is first used. Raises ConfigError for an endpoint
    that is none, and for credentials that do not go together.
    """

    def __init__(
        self,
        endpoints: Union[str, Sequence[str]],
        timeout: float = 3.0,
        credentials: Optional[Credentials] = None,
    ) -> None:
        self._addresses = parse_etcd_endpoints(endpoints)
        self._credentials = credentials or Credentials.from_environment()
        self._timeout = timeout
        self._lock = threading.Lock()
        self._clients: dict[int, Any] = {}
        self._current = 0
        self._ended = threading.Event()
        self._streams: dict[Any, int] = {}
        self._pulse: Optional[Loop] = None

    def __str__(self) -> str:
        return "etcd at " + ",".join(f"{host}:{port}" for host, port in self._addresses)

    def call(self, operation: Callable[[Any], T]) -> T:
        """``operation(client)`` on the first endpoint where etcd answers.

        Raises EtcdUnavailable if none does, DiscoveryError if etcd itself says no.
        """
        first = self._current
        error: Exception = EtcdUnavailable(f"{self} was closed")
        for step in range(len(self._addresses) + 1):
            index = (first + step) % len(self._addresses)
            try:
                result = operation(self._client(index))
            except _CONNECTION_ERRORS as failure:
                error = failure
            except (grpc.RpcError, etcd3.exceptions.Etcd3Exception) as failure:
                if isinstance(failure, grpc.RpcError) and failure.code() in _TRY_ELSEWHERE:
                    error = failure
                    continue
                if _is_stale_token(failure):  # etcd has been started anew, or it has expired
                    error = failure
                    self._forget(index)
                    continue
                hint = stranger(self._addresses[index], failure)
                raise DiscoveryError(f"{self}: {describe(failure)}{hint}") from failure
            except ValueError as failure:  # gRPC's word for a channel that was closed meanwhile
                error = failure
            else:
                self._current = index
                return result
        hint = stranger(self._addresses[index], error)
        raise EtcdUnavailable(f"{self} does not answer: {describe(error)}{hint}") from error

    def page(self, start: bytes, end: bytes, limit: int, revision: int = 0) -> Any:
        """The first ``limit`` entries from ``start`` to before ``end``, in order, at a revision (0:
        now), as a RangeResponse. Raises as ``call`` does.
        """
        request = etcd3.etcdrpc.RangeRequest(
            key=start, range_end=end, limit=limit, revision=revision
        )
        return self.call(
            lambda client: etcd3.etcdrpc.KVStub(client.channel).Range(
                request, client.timeout, metadata=client.metadata
            )
        )

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

        index = self._current
        client = self._client(index)
        # A member that has lost its leader must end the stream; it would only be silent otherwise.
        metadata = (*(client.metadata or ()), ("hasleader", "true"))
        stream = rpc.WatchStub(client.channel).Watch(requests(), metadata=metadata)
        stream.add_callback(done.set)
        self._look_after(stream, index)
        return stream

    def _look_after(self, stream: Any, index: int) -> None:
        """Cancel a stream when its node stops answering: it would only be silent, and gRPC's own
        pings take longer than a lease to find that out, or never do.
        """
        with self._lock:
            self._streams[stream] = index
            if self._pulse is None and not self._ended.is_set():
                self._pulse = Loop("edl-etcd-pulse", self._take_pulse, _PULSE_EVERY)
                self._pulse.start()

    def _take_pulse(self) -> None:
        with self._lock:
            self._streams = {
                stream: index for stream, index in self._streams.items() if stream.is_active()
            }
            nodes = set(self._streams.values())
        for index in nodes:
            if not self._answers(index):
                self._current = (index + 1) % len(self._addresses)
                with self._lock:
                    silent = [item for item, node in self._streams.items() if node == index]
                for stream in silent:
                    stream.cancel()

    def _answers(self, index: int) -> bool:
        """Whether a node answers, and has a leader; what it answers is all the same."""
        try:
            self._client(index).get("/")
        except _CONNECTION_ERRORS:
            return False
        except (grpc.RpcError, etcd3.exceptions.Etcd3Exception, EtcdUnavailable, ValueError):
            pass
        return True

    def close(self) -> None:
        """Close all connections; calls in other threads fail. Waits for nothing."""
        with self._lock:
            self._ended.set()
            clients, self._clients = self._clients, {}
            pulse, self._pulse = self._pulse, None
        if pulse is not None:
            pulse.stop()
        for client in clients.values():
            client.close()

    def __enter__(self) -> Etcd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _client(self, index: int) -> Any:
        with self._lock:
            client, ended = self._clients.get(index), self._ended.is_set()
        if client is None and not ended:
            made = self._connect(index)
            with self._lock:
                ended = self._ended.is_set()
                client = made if ended else self._clients.setdefault(index, made)
            if ended or client is not made:
                made.close()
        if ended:
            raise EtcdUnavailable(f"{self} was closed")
        return client

    def _connect(self, index: int) -> Any:
        """A client of its own; asks etcd for a token if there is a password."""
        host, port = self._addresses[index]
        client = etcd3.client(
            host=host,
            port=port,
            timeout=self._timeout,
            grpc_options=_GRPC_OPTIONS,
            **self._credentials.arguments(),
        )
        # The token is in the metadata too; gRPC refuses call credentials without TLS.
        client.call_credentials = None
        return client

    def _forget(self, index: int) -> None:
        with self._lock:
            client = self._clients.pop(index, None)
        if client is not None:
            client.close()


def _is_stale_token(error: Exception) -> bool:
    return (
        isinstance(error, grpc.RpcError)
        and error.code() == grpc.StatusCode.UNAUTHENTICATED
        and "token" in error.details()
    )


def is_forbidden(error: DiscoveryError) -> bool:
    """Whether our user may not do what was asked."""
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and cause.code() == grpc.StatusCode.PERMISSION_DENIED


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
