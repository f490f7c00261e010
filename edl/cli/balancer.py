"""``edl balancer``: assign teachers to students from a process that does nothing else."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Optional

import click

from edl._process import stop_event
from edl.cli.example import example

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
@click.option(
    "--min-teachers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The least teachers that are ever wanted; 0: none while there is no student.",
)
@click.option(
    "--max-teachers", type=click.IntRange(1), help="The most teachers that are ever wanted."
)
@click.option(
    "--fall-after",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="Seconds that fewer teachers must have been enough before fewer are wanted.",
)
def command(
    etcd: str,
    services: tuple[str, ...],
    metrics_port: Optional[int],
    host: str,
    min_teachers: int,
    max_teachers: Optional[int],
    fall_after: float,
) -> None:
    """Assign teachers to students from a process of its own.

    Students elect one of themselves to do this, so it is not needed. It is for those who prefer to
    know where it happens, for very many students, and for autoscalers: demand, supply, and how many
    teachers are wanted, are served as Prometheus metrics by the one that leads. Several may run;
    the others wait. A student that leads makes room for one that does not.
    """
    from edl.discovery import Balancer, Etcd
    from edl.discovery.wanted import Bounds

    bounds = Bounds(min_teachers, max_teachers, fall_after)
    stop = stop_event()
    gauges = _Gauges(metrics_port, host) if metrics_port is not None else None
    with Etcd(etcd) as client:
        balancers = [
            Balancer(
                client,
                service,
                eager=True,
                bounds=bounds,
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
    if gauges is not None:
        gauges.close()


#: By the summary's field: the metric, and what it is.
GAUGES = {
    "students": ("edl_service_students", "Students registered"),
    "teachers": ("edl_service_teachers", "Teachers registered"),
    "supply": ("edl_service_supply", "Rows per second that the teachers can compute together"),
    "demand": ("edl_service_demand", "Rows per second that the students want together"),
    "unsatisfied": ("edl_service_unsatisfied", "Students that want more than they get"),
    "idle": ("edl_service_idle", "Teachers without a student"),
    "links": ("edl_service_links", "Pairs of a student and a teacher of its"),
    "wanted": ("edl_teachers_wanted", "Teachers that there should be"),
}


class _Gauges:
    """A summary's numbers as Prometheus gauges, by service."""

    def __init__(self, port: int, host: str) -> None:
        from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

        from edl._http import serve_at

        registry = CollectorRegistry()
        self._gauges = {
            field: Gauge(name, text, ["service"], registry=registry)
            for field, (name, text) in GAUGES.items()
        }
        self._server = serve_at(make_wsgi_app(registry), host, port)

    def close(self) -> None:
        """Serve them no more."""
        self._server.close()

    def show(self, service: str, summary: Optional[Summary]) -> None:
        """Set the gauges; without a summary, another process says what they are."""
        for field, gauge in self._gauges.items():
            if summary is not None:
                gauge.labels(service).set(getattr(summary, field))
            else:
                with contextlib.suppress(KeyError):  # it was never set
                    gauge.remove(service)
