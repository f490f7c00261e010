"""Whom to ask for figures, and what to show to them. The registry says where; it is not trusted."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from edl._endpoints import is_loopback, parse_endpoint
from edl.discovery.targets import has_figures
from edl.errors import ConfigError
from edl.serving.client.tls import Trust, context_of
from edl.view.scrape import Target
from edl.view.snapshot import MOST_SERVICES, MOST_STUDENTS, MOST_TEACHERS

logger = logging.getLogger(__name__)

_READ_EVERY = 60.0

#: Service, and endpoint or student.
Key = tuple[str, str]


class Access:
    """What teachers are shown, and which of them are believed: by default as students do, by the
    environment (EDL_TOKEN, EDL_TEACHER_CA and those that go with it).

    An entry in the registry may be anybody's: a token goes to this machine, or through TLS to who
    proves to be its name, and nowhere else unless that is allowed (EDL_TOKEN_PLAIN_TEXT).
    """

    def __init__(self, trust: Optional[Trust] = None, token: Optional[str] = None) -> None:
        """Raises ConfigError for what cannot be."""
        self._trust = Trust.from_environment() if trust is None else trust
        self._token = os.environ.get("EDL_TOKEN", "") if token is None else token
        self._context = context_of(self._trust)
        self._read_at = time.monotonic()

    def teacher(self, endpoint: str, entry: Mapping[str, Any]) -> Target:
        """How to ask a teacher with this entry. One that TLS is to be spoken with, and that does
        not say so, fails to.
        """
        plain = self._trust.plain_text or self._trust.ca is None
        tls = None if plain and entry.get("tls") is not True else self._believed
        shown = tls is not None or self._trust.plain_token or _stays_here(endpoint)
        return Target(endpoint, tls, self._token if shown else "", self._trust.name)

    def student(self, endpoint: str) -> Target:
        """How to ask a student. It wants no token."""
        return Target(endpoint)

    def _believed(self) -> ssl.SSLContext:
        """By the certificates' files, which are renewed now and then."""
        if time.monotonic() >= self._read_at + _READ_EVERY:
            self._read_at = time.monotonic()
            try:
                self._context = context_of(self._trust)
            except ConfigError as error:
                logger.warning("going on with the certificates of before: %s", error)
        return self._context


def targets(registry: Mapping[str, Any], access: Access) -> Iterator[tuple[Key, Target, str]]:
    """Whom to ask, of whom is in the registry (see ``registry.by_service``): the key, where, and
    for which student (empty for a teacher).
    """
    for name in list(registry)[:MOST_SERVICES]:
        found = registry[name]
        for endpoint, entry in list(found["teachers"].items())[:MOST_TEACHERS]:
            if has_figures(entry):
                yield (name, endpoint), access.teacher(endpoint, entry), ""
        for student, record in list(found["students"].items())[:MOST_STUDENTS]:
            where = record.get("metrics")
            if isinstance(where, str):
                yield (name, student), access.student(where), student


def _stays_here(endpoint: str) -> bool:
    try:
        return is_loopback(parse_endpoint(endpoint)[0])
    except ConfigError:
        return False
