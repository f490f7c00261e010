"""What a teacher server counts, for Prometheus.

Names follow Prometheus' conventions (base units, ``_total`` for counters). Each server has a
registry of its own, so that several can live in one process.
"""

from __future__ import annotations

import time
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WORDS = 300  # characters of the last error
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_PROTOCOLS = ("baidu_std", "http")
_OUTCOMES = ("ok", "refused", "unauthorized", "failed", "draining", "busy")


class Metrics:
    """One server's metrics. Gauges without a value here are set by what they measure.
    ``last_error``: what was answered to the last request that was answered with an error.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "edl_requests",
            "Requests answered, by protocol (baidu_std, http) and outcome (ok or the error's kind)",
            ["protocol", "outcome"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "edl_request_seconds",
            "From a request's arrival to the end of sending its answer",
            ["protocol"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rows = Counter("edl_rows", "Rows given to workers", registry=registry)
        self.tokens = Counter(
            "edl_tokens", "Tokens given to workers, where rows are sequences", registry=registry
        )
        self.batch_rows = Histogram(
            "edl_batch_rows",
            "Rows of each batch given to a worker",
            buckets=_ROWS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "edl_queue_seconds",
            "How long requests waited for a worker",
            buckets=_SECONDS,
            registry=registry,
        )
        self.compute_seconds = Histogram(
            "edl_compute_seconds",
            "How long workers took for a batch",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queued_requests = Gauge("edl_queued_requests", "Requests waiting", registry=registry)
        self.queued_rows = Gauge("edl_queued_rows", "Rows waiting", registry=registry)
        self.connections = Gauge("edl_connections", "Open connections", registry=registry)
        self.workers_ready = Gauge(
            "edl_workers_ready", "Worker processes that can compute", registry=registry
        )
        self.worker_restarts = Counter(
            "edl_worker_restarts", "Workers that died and were replaced", registry=registry
        )
        self.rejected_connections = Counter(
            "edl_rejected_connections",
            "Connections closed for what they sent, or did not send in time",
            registry=registry,
        )
        self.last_error = ""
        self._bound: dict[tuple[str, str], Counter] = {}
        self._latency = {
            protocol: self._request_seconds.labels(protocol) for protocol in _PROTOCOLS
        }
        # All of them from the start, at 0: a rate does not see a counter that begins at 1.
        for protocol, outcome in product(_PROTOCOLS, _OUTCOMES):
            self._bound[protocol, outcome] = self._requests.labels(protocol, outcome)

    def answered(self, protocol: str, outcome: str, arrived: float) -> None:
        """Count an answer. ``arrived``: when its request was read, in ``time.monotonic``."""
        counter = self._bound.get((protocol, outcome))
        if counter is None:
            counter = self._requests.labels(protocol, outcome)
            self._bound[protocol, outcome] = counter
        counter.inc()
        self._latency[protocol].observe(time.monotonic() - arrived)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format; and, as a comment there, the last error in words,
        which no label may hold: each would be a time series of its own.
        """
        words = "".join(sign if sign.isprintable() else " " for sign in self.last_error[:_WORDS])
        comment = f"# last error: {words}\n" if words else ""
        return generate_latest(self.registry) + comment.encode("utf-8", "replace")
