"""``edl targets``: where figures are, for Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

from edl.cli.example import example

if TYPE_CHECKING:
    from edl.discovery import Etcd

_JSON, _TEXT = "application/json", "text/plain; charset=utf-8"


@click.command(epilog=example("edl targets --etcd 127.0.0.1:2379 --port 9099"))
@click.option("--etcd", required=True, help="etcd endpoints, comma-separated.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Serve it on this port, 0: any that is free.  [default: print it once]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def command(etcd: str, port: Optional[int], host: str) -> None:
    """Say where the figures of teachers and students are, for Prometheus.

    Everybody in the registry, in the JSON that Prometheus' http_sd_configs and file_sd_configs
    read, with the labels service and role, of teachers also device and model. With --port it is
    served: /teachers, /students, or both at /. The registry is read for each request; while it does
    not answer the status is 503, and Prometheus keeps what it has.
    """
    from edl.discovery import Etcd

    with Etcd(etcd) as client:
        if port is None:
            click.echo(json.dumps(_read(client, None), indent=2))
        else:
            _serve(client, host, port)


def _serve(client: Etcd, host: str, port: int) -> None:
    from edl._http import serve_at
    from edl._process import stop_event

    stop = stop_event()
    server = serve_at(application(client), host, port)
    click.echo(f"targets are at http://{server.endpoint}")
    stop.wait()
    server.close()


def application(client: Etcd) -> Callable[..., Iterable[bytes]]:
    """The pages, for WSGI (PEP 3333)."""
    from edl.discovery.targets import STUDENT, TEACHER
    from edl.errors import EdlError

    roles = {"/": None, "/teachers": TEACHER, "/students": STUDENT}

    def answer(request: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = request.get("PATH_INFO") or "/"
        status, kind, body = "200 OK", _JSON, ""
        if path not in roles:
            status, kind, body = "404 Not Found", _TEXT, "see /, /teachers and /students\n"
        elif request.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            status, kind, body = "405 Method Not Allowed", _TEXT, "this is for reading\n"
        else:
            try:
                body = json.dumps(_read(client, roles[path]))
            except EdlError as error:
                status, kind, body = "503 Service Unavailable", _TEXT, f"{error}\n"
        data = body.encode()
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(data)))])
        return [data]

    return answer


def _read(client: Etcd, role: Optional[str]) -> list[dict[str, Any]]:
    from edl.discovery.keys import ROOT
    from edl.discovery.targets import targets
    from edl.discovery.watch import list_prefix

    entries, _ = list_prefix(client, f"{ROOT}/")
    return targets(entries, role)
