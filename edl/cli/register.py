"""``edl register``: keep servers in the registry for as long as they are healthy."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import click

from edl._process import stop_event
from edl.cli.example import example
from edl.cli.options import form_option, protocol_option

if TYPE_CHECKING:
    from edl.discovery import Etcd, Registration
    from edl.serving.client.entry import Entry
    from edl.serving.client.health import HealthWatch
    from edl.serving.wire.description import Description

logger = logging.getLogger(__name__)

_COMPLAIN_EVERY = 5.0
_LEAVE_WITHIN = 15.0


@click.command(
    epilog=example(
        "edl register --etcd 127.0.0.1:2379 --service resnet --server 127.0.0.1:9292 \\",
        "    --conf serving_client_conf.prototxt",
    )
)
@click.option("--etcd", required=True, help="etcd endpoints, comma-separated.")
@click.option("--service", required=True, help="Service name to register under.")
@click.option(
    "--server",
    "servers",
    required=True,
    multiple=True,
    metavar="HOST:PORT",
    help="A server to check and to register; may be given several times.",
)
@click.option(
    "--advertise",
    metavar="HOST",
    help="Host that students reach the servers at, if not the one that is checked.",
)
@protocol_option
@form_option
@click.option(
    "--conf",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="serving_client_conf.prototxt of a server that does not say what it serves (Paddle "
    "Serving); without it, students need the file.",
)
@click.option(
    "--model",
    type=click.Path(exists=True, path_type=Path),
    help="The server's model directory in Paddle Serving's format, instead of --conf: its content "
    "tells students that it serves the same model as an edl teacher does.",
)
@click.option(
    "--probe/--no-probe",
    default=None,
    help="Healthy means: it computes a row of zeros.  [default: with --conf or --model]",
)
@click.option("--interval", default=2.0, show_default=True, help="Seconds between checks.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds a check may take.")
@click.option(
    "--failures", default=2, show_default=True, help="Bad checks in a row until it is taken out."
)
@click.option("--ttl", default=10, show_default=True, help="Seconds an entry outlives a registrar.")
@click.option("--token", envvar="EDL_TOKEN", help="What the servers want to be shown.")
def command(servers: tuple[str, ...], advertise: Optional[str], **options: Any) -> None:
    """Keep servers in the registry for as long as they are healthy.

    For servers that do not register themselves: a real Paddle Serving, with this beside it. Waits
    for a server to become healthy, puts it in, takes it out when it is not healthy, and puts it
    back when it recovers. An entry that another registrar made is left alone; this one takes over
    when it is gone. Runs until Ctrl-C or SIGTERM, and takes its entries out.
    """
    from edl._endpoints import parse_endpoint
    from edl.errors import ConfigError

    stop = stop_event()
    entry = _entry(options)
    if options["probe"] is None:
        options["probe"] = _can_be_probed(entry.description)
    registrars = []
    for server in servers:
        try:
            _, port = parse_endpoint(server)
        except ValueError as error:
            raise ConfigError(f"--server: {error}") from error
        registered = f"{advertise}:{port}" if advertise else server
        registrars.append(_Registrar(server, registered, entry, options, stop))
    for registrar in registrars:
        registrar.start()
    stop.wait()
    for registrar in registrars:
        registrar.join(_LEAVE_WITHIN)


def _entry(options: dict[str, Any]) -> Entry:
    from edl.serving.client.entry import Entry
    from edl.serving.client.tls import Trust

    extra = {
        "hostname": socket.gethostname(),
        "registrar": os.getpid(),
        "since": round(time.time(), 3),
    }
    description = _description(options["conf"], options["model"])
    secured = options["protocol"] == "baidu_std" and Trust.from_environment().ca is not None
    return Entry(options["protocol"], options["form"], description, extra, secured or None)


def _description(conf: Optional[Path], directory: Optional[Path]) -> Optional[Description]:
    """What the servers serve, as far as it was said. Raises ModelError for files that are none."""
    if conf is None and directory is None:
        return None
    from edl.errors import ModelError
    from edl.serving.model.files import find_model
    from edl.serving.model.fingerprint import fingerprint_of
    from edl.serving.model.prototxt import SERVER_CONF, read_config

    if directory is None:
        assert conf is not None
        return read_config(conf).describe()
    files = find_model(directory)
    if files.conf is None:
        raise ModelError(f"{directory} has no {SERVER_CONF}; edl export writes one")
    served = read_config(files.conf)
    said = served if conf is None else read_config(conf)
    return said.describe(fingerprint_of(files, served))


def _can_be_probed(description: Optional[Description]) -> bool:
    """Whether to probe, if nobody said. Logs why not, where one might have expected it."""
    from edl.errors import ConfigError
    from edl.serving.client.health import probe_feeds

    if description is None:
        return False
    try:
        probe_feeds(description)
    except ConfigError as error:
        logger.warning("%s; healthy means only that it answers (--no-probe)", error)
        return False
    return True


class _Registrar(threading.Thread):
    """Watches and registers one server until ``stop`` is set."""

    def __init__(
        self,
        server: str,
        registered: str,
        entry: Entry,
        options: dict[str, Any],
        stop: threading.Event,
    ) -> None:
        super().__init__(name=f"edl-registrar-{server}", daemon=True)
        self._server = server
        self._registered = registered
        self._entry = entry
        self._options = options
        self._stop_event = stop

    def run(self) -> None:
        """Wait until the server is healthy, then keep it registered."""
        from edl.serving.client.health import HealthWatch

        options = self._options
        names = ("probe", "interval", "timeout", "failures")
        watch = HealthWatch(
            self._server,
            self._entry,
            token=options["token"] or "",
            **{name: options[name] for name in names},
        )
        watch.start()
        if self._wait_for(watch):
            from edl.discovery import Etcd

            with Etcd(options["etcd"]) as etcd:
                registration = self._register(watch, etcd)
                self._stop_event.wait()
                registration.stop()
        watch.stop()

    def _wait_for(self, watch: HealthWatch) -> bool:
        """Wait until the server is healthy; false if that is not to be waited for any more."""
        complain_at = time.monotonic() + _COMPLAIN_EVERY
        while not watch.healthy:
            if self._stop_event.wait(0.05):
                return False
            if time.monotonic() >= complain_at:
                complain_at += _COMPLAIN_EVERY
                logger.warning("waiting for %s: %s", self._server, watch.problem)
        return True

    def _register(self, watch: HealthWatch, etcd: Etcd) -> Registration:
        from edl.discovery import Registration
        from edl.errors import TeacherError
        from edl.serving.client.health import learn

        options = self._options
        try:
            entry = learn(self._server, self._entry, options["token"] or "", options["timeout"])
        except TeacherError:  # it has just gone again; what was said of it is enough
            entry = self._entry
        registration = Registration(
            etcd,
            options["service"],
            self._registered,
            entry.to_json(),
            ttl=options["ttl"],
            healthy=lambda: watch.healthy,
        )
        threading.Thread(target=self._announce, args=(registration,), daemon=True).start()
        return registration

    def _announce(self, registration: Registration) -> None:
        registration.start(patience=math.inf)
        if not self._stop_event.is_set():
            click.echo(f"registered {self._registered} as {self._options['service']}")
