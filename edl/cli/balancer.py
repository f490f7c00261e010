"""``edl balancer``: assign teachers to students from a process that does nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import click

from edl._endpoints import endpoint_of
from edl._process import stop_event
from edl.cli.example import example
from edl.errors import ConfigError

if TYPE_CHECKING:
    from edl.discovery.assignment import Summary


@click.command(
    epilog=example("edl balancer --etcd 127.0.0.1:2379 --service resnet --metrics-port 9100")
)
@click.option("--etcd", required=True, help="etcd endpoints, comma-separated.")
@click.option("--service", "services", required=True, multiple=True, help="Services to balance.")
@click.option(
    "--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics on this port."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address for the metrics.")
def command(etcd: str, services: tuple[str, ...], metrics_port: Optional[int], host: str) -> None:
    """Assign teachers to students from a process of its own.

    Students elect one of themselves to do this, so it is not needed. It is for those who prefer to
    know where it happens, for very many students, and for autoscalers: demand and supply are served
    as Prometheus metrics. Several may run; one leads, the others wait.
    """
    from edl.discovery import Balancer, Etcd

    stop = stop_event()
    gauges = _Gauges(metrics_port, host) if metrics_port is not None else None
    with Etcd(etcd) as client:
        balancers = [
            Balancer(
                client,
                service,
                eager=True,
                on_summary=lambda summary, service=service: (  # type: ignore[misc]
                    gauges.show(service, summary) if gauges else None
                ),
            )
            for service in services
        ]
        for balancer in balancers:
            balancer.start()
        click.echo(f"balancing {', '.join(services)}")
        stop.wait()
        for balancer in balancers:
            balancer.stop()


class _Gauges:
    """A summary's numbers as Prometheus gauges, by service."""

    def __init__(self, port: int, host: str) -> None:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        registry = CollectorRegistry()
        texts = {
            "students": "Students registered",
            "teachers": "Teachers registered",
            "supply": "Rows per second that the teachers can compute together",
            "demand": "Rows per second that the students want together",
            "unsatisfied": "Students that want more than they get",
            "idle": "Teachers without a student",
            "links": "Pairs of a student and a teacher of its",
        }
        self._gauges = {
            name: Gauge(f"edl_service_{name}", text, ["service"], registry=registry)
            for name, text in texts.items()
        }
        try:
            start_http_server(port, host, registry)
        except OSError as error:
            endpoint = endpoint_of(host, port)
            raise ConfigError(f"cannot listen on {endpoint}: {error.strerror}") from error

    def show(self, service: str, summary: Summary) -> None:
        """Set the gauges."""
        for name, gauge in self._gauges.items():
            gauge.labels(service).set(getattr(summary, name))
