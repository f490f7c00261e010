"""What a student counts, for Prometheus.

Everything is read when somebody asks, from what the student counts anyway.
docs/reference/figures.md has all of them with what they mean.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

from edl._endpoints import endpoint_of, own_address, parse_endpoint, parse_etcd_endpoints
from edl._http import HttpServer
from edl.distill.settings import PoolConfig
from edl.distill.teachers import ServiceTeachers
from edl.errors import ConfigError

logger = logging.getLogger(__name__)

_EVERYWHERE = ("0.0.0.0", "::")

Stats = Mapping[str, Any]


@dataclass(frozen=True)
class Listen:
    """Where metrics are served: on the first of these ports that is free; 0 is any."""

    host: str
    ports: Sequence[int]

    @property
    def fixed(self) -> bool:
        """Whether only one process of a machine can have it."""
        return len(self.ports) == 1 and self.ports[0] != 0


def listen_at(argument: Union[int, str, None]) -> Optional[Listen]:
    """Where a student serves its metrics: the argument, else $EDL_METRICS_PORT; None if nowhere.
    Raises ConfigError.
    """
    if argument is not None:
        ports = parse_ports("metrics_port", argument)
    elif text := os.environ.get("EDL_METRICS_PORT"):
        ports = parse_ports("EDL_METRICS_PORT", text)
    else:
        return None
    return Listen(os.environ.get("EDL_METRICS_HOST") or "127.0.0.1", ports)


def parse_ports(what: str, value: Union[int, str]) -> Sequence[int]:
    """A port, 0 for any, or several, as in "9100-9199". Raises ConfigError."""
    first, dash, last = str(value).partition("-")
    numbers = (first, last) if dash else (first, first)
    if not isinstance(value, bool) and all(n.isascii() and n.isdigit() for n in numbers):
        low, high = map(int, numbers)
        if (low or not dash) and low <= high < 65536:
            return range(low, high + 1)
    raise ConfigError(f'{what} is {value!r}; it must be a port, 0 for any, or as in "9100-9199"')


class MetricsServer:
    """Serves the figures of one student. ``read``: the labels and the ``stats`` of each of its
    pools, whenever it is called.
    """

    def __init__(self, listen: Listen, read: Callable[[], Sequence[tuple[Labels, Stats]]]) -> None:
        """Raises OSError if no port is free."""
        from prometheus_client import CollectorRegistry, make_wsgi_app

        registry = CollectorRegistry()
        registry.register(_Student(read))
        self._server = HttpServer(make_wsgi_app(registry), listen.host, listen.ports)
        self.endpoint = self._server.endpoint

    def close(self) -> None:
        """Serve no more; the port is free again."""
        self._server.close()


def serve(
    listen: Optional[Listen], read: Callable[[], Sequence[tuple[Labels, Stats]]]
) -> Optional[MetricsServer]:
    """What serves a student's figures. A port that is not free ends no training: that is logged,
    and the student goes without.
    """
    if listen is None:
        return None
    try:
        server = MetricsServer(listen, read)
    except (OSError, OverflowError, UnicodeError) as error:
        last = f" to {listen.ports[-1]}" if len(listen.ports) > 1 else ""
        logger.warning(
            "this student serves no metrics: cannot listen on %s%s: %s",
            endpoint_of(listen.host, listen.ports[0]),
            last,
            error,
        )
        return None
    logger.info("this student's metrics are at http://%s/metrics", server.endpoint)
    return server


def advertised(server: Optional[MetricsServer], config: PoolConfig) -> Optional[str]:
    """What the registry is told of where the metrics are: where this listens on all addresses, the
    one that this machine has towards etcd.
    """
    if server is None or not isinstance(config.teachers, ServiceTeachers):
        return None
    host, port = parse_endpoint(server.endpoint)
    if host not in _EVERYWHERE:
        return server.endpoint
    try:
        towards = parse_etcd_endpoints(config.teachers.etcd_endpoints)[0]
        return endpoint_of(own_address(towards), port)
    except OSError as error:
        logger.warning("the registry is not told where this student's metrics are: %s", error)
        return None


# --- the figures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """``service``: of the teachers; by the name that the student has for them where they are fixed.
    ``student``: the name by which the registry knows it.
    """

    service: str
    student: str


@dataclass(frozen=True)
class Figure:
    """One metric. ``value``: out of a pool's stats; None where there is none."""

    name: str
    kind: str
    text: str
    value: Callable[[Stats], Optional[float]]


def _of(*path: str) -> Callable[[Stats], Optional[float]]:
    """What is at this path in the stats, if anything is."""

    def value(stats: Stats) -> Optional[float]:
        found: Any = stats
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    return value


def _in_flight(stats: Stats) -> float:
    return sum(teacher["in_flight"] for teacher in stats["teachers"].values())


LATENCY = "edl_student_request_seconds"
LATENCY_TEXT = "From sending a request until its answer"

FIGURES = (
    Figure("edl_student_rows", "counter", "Rows that the student has taken", _of("rows")),
    Figure("edl_student_batches", "counter", "Batches that the student has taken", _of("batches")),
    Figure(
        "edl_student_bytes",
        "counter",
        "Bytes that the student has taken, soft labels included",
        _of("bytes"),
    ),
    Figure(
        "edl_student_wait_seconds",
        "counter",
        "Time that the student has waited for batches",
        _of("student_waited"),
    ),
    Figure(
        "edl_student_seconds",
        "counter",
        "Time in epochs, that is waiting and working",
        _of("student_seconds"),
    ),
    Figure(
        "edl_student_volume_batches",
        "gauge",
        "Finished batches that the student has not taken",
        _of("buffer", "batches"),
    ),
    Figure(
        "edl_student_volume_low_batches",
        "gauge",
        "The lower threshold of the volume",
        _of("buffer", "low_batches"),
    ),
    Figure(
        "edl_student_volume_high_batches",
        "gauge",
        "The upper threshold of the volume",
        _of("buffer", "high_batches"),
    ),
    Figure(
        "edl_student_volume_bytes",
        "gauge",
        "Bytes of finished batches that the student has not taken",
        _of("buffer", "bytes"),
    ),
    Figure(
        "edl_student_outstanding_requests",
        "gauge",
        "Requests to a TeacherPool that are not answered yet",
        _of("outstanding"),
    ),
    Figure(
        "edl_student_teachers",
        "gauge",
        "Teachers that the student is connected to and can use",
        lambda stats: len(stats["teachers"]),
    ),
    Figure(
        "edl_student_unusable_teachers",
        "gauge",
        "Teachers that the student cannot use",
        lambda stats: len(stats["unusable"]),
    ),
    Figure(
        "edl_student_in_flight_requests", "gauge", "Requests that are at teachers now", _in_flight
    ),
    Figure("edl_student_requests", "counter", "Requests sent to teachers", _of("tasks_sent")),
    Figure(
        "edl_student_failed_requests",
        "counter",
        "Requests that a teacher answered with an error",
        _of("failed"),
    ),
    Figure(
        "edl_student_resent_requests",
        "counter",
        "Requests that were sent again, to another teacher if there was one",
        _of("resent"),
    ),
    Figure(
        "edl_student_hedged_requests",
        "counter",
        "Requests that were sent to a second teacher, because the first was slow",
        _of("hedged"),
    ),
    Figure(
        "edl_student_lost_teachers",
        "counter",
        "Teachers whose connection broke or that fell silent",
        _of("lost_teachers"),
    ),
    Figure(
        "edl_student_store_hit_rows",
        "counter",
        "Rows whose labels were in the store",
        _of("store", "hits"),
    ),
    Figure(
        "edl_student_store_miss_rows",
        "counter",
        "Rows whose labels were not in the store",
        _of("store", "misses"),
    ),
    Figure(
        "edl_student_epoch",
        "gauge",
        "The epoch that the student is in, from 0",
        _of("position", "epoch"),
    ),
    Figure(
        "edl_student_epoch_batches",
        "gauge",
        "Items of the epoch that the student has",
        _of("position", "delivered"),
    ),
    Figure(
        "edl_student_epoch_length_batches",
        "gauge",
        "Items of a whole epoch, where the source says",
        _of("position", "length"),
    ),
)


class _Student:
    """A collector of prometheus_client: asks the student when it is asked."""

    def __init__(self, read: Callable[[], Sequence[tuple[Labels, Stats]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Any]:
        """The families of metrics that there are."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        read = [([labels.service, labels.student], stats) for labels, stats in self._read()]
        names = ("service", "student")
        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        for figure in FIGURES:
            family = kinds[figure.kind](figure.name, figure.text, labels=names)
            for labels, stats in read:
                value = figure.value(stats)
                if value is not None:
                    family.add_metric(labels, value)
            if family.samples:
                yield family
        latency = HistogramMetricFamily(LATENCY, LATENCY_TEXT, labels=names)
        for labels, stats in read:
            of = stats["latency"]
            latency.add_metric(labels, list(of["buckets"].items()), of["sum"])
        yield latency
