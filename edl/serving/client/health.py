"""Whether a server works: it answers on its port, and if asked for, computes."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading

import numpy as np

from edl.errors import ConfigError, EdlError, RequestRefused
from edl.serving.client.entry import Entry
from edl.serving.client.teacher import TLS
from edl.serving.wire.description import Description

logger = logging.getLogger(__name__)


def probe_feeds(description: Description) -> dict[str, np.ndarray]:
    """One row of zeros for a server that serves ``description``. Raises ConfigError if its shapes
    do not say how large a row is.
    """
    feeds = {}
    for name, spec in description.needed.items():
        if not spec.has_fixed_size:
            raise ConfigError(
                f"cannot probe: feed {name!r} has no fixed size ({list(spec.shape)}, {spec.dtype})"
            )
        feeds[name] = spec.zeros()
    return feeds


def learn(endpoint: str, entry: Entry, token: str, timeout: float) -> Entry:
    """``entry`` with what the server says of itself, where it says anything, and whether it was
    spoken to with TLS.

    Raises TeacherError if it does not work.
    """
    with contextlib.closing(entry.connect(endpoint, token, timeout)) as client:
        description = entry.description
        try:
            description = client.describe(timeout)
        except RequestRefused:  # it answers, but not this: a Paddle Serving
            pass
        tls = client.way == TLS or None
    return dataclasses.replace(entry, description=description, tls=tls)


def check(endpoint: str, entry: Entry, probe: bool, token: str, timeout: float) -> None:
    """Raises TeacherError if the server at ``endpoint`` does not answer within ``timeout`` seconds,
    or, with ``probe``, does not compute a row of zeros; ConfigError if it cannot be probed.
    """
    known = learn(endpoint, entry, token, timeout)
    if probe:
        if known.description is None:
            raise ConfigError(
                f"cannot probe {endpoint}: it does not say what it serves; "
                "name its serving_client_conf.prototxt"
            )
        with contextlib.closing(known.connect(endpoint, token, timeout)) as client:
            client.infer(probe_feeds(known.description), (), timeout)


class HealthWatch:
    """Checks one server every ``interval`` seconds, on a thread of its own.

    ``healthy`` turns true with one good check, and false with ``failures`` bad ones in a row.
    """

    def __init__(
        self,
        endpoint: str,
        entry: Entry,
        *,
        probe: bool = False,
        token: str = "",
        interval: float = 2.0,
        timeout: float = 5.0,
        failures: int = 2,
    ) -> None:
        self.endpoint = endpoint
        self.healthy = False
        self.problem = "not checked yet"
        self._entry = entry
        self._probe = probe
        self._token = token
        self._interval = interval
        self._timeout = timeout
        self._failures = failures
        self._failed = 0
        self._stopped = threading.Event()
        name = f"edl-health-{endpoint}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to check."""
        self._thread.start()

    def stop(self) -> None:
        """Stop. Does not wait for a check that is going on."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                check(self.endpoint, self._entry, self._probe, self._token, self._timeout)
            except EdlError as error:
                self._bad(str(error))
            else:
                if not self.healthy:
                    logger.warning("%s is healthy", self.endpoint)
                self.healthy, self.problem, self._failed = True, "", 0
            self._stopped.wait(self._interval)

    def _bad(self, problem: str) -> None:
        self._failed += 1
        if self.healthy and self._failed >= self._failures:
            self.healthy = False
            logger.warning("not healthy: %s", problem)
        self.problem = problem
