"""Whom to ask for figures, and what to show to them. The registry says where; it is not trusted."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from edl._endpoints import is_loopback, parse_endpoint
from edl.errors import ConfigError
from edl.view.scrape import Target
from edl.view.snapshot import MOST_SERVICES, MOST_STUDENTS, MOST_TEACHERS

#: Service, and endpoint or student.
Key = tuple[str, str]


class Access:
    """What teachers are shown: the token that students show them too, and a certificate where they
    speak TLS. By default what the environment says (EDL_TOKEN, EDL_TEACHER_CA, EDL_TEACHER_CERT,
    EDL_TEACHER_KEY).

    An entry in the registry may be anybody's: a token goes to this machine, or through TLS to who
    proves to be its name, and to nobody else.
    """

    def __init__(self, environment: Optional[Mapping[str, str]] = None) -> None:
        """Raises ConfigError for certificates that cannot be read."""
        get = (os.environ if environment is None else environment).get
        self._token = get("EDL_TOKEN", "")
        self._tls = _context(get("EDL_TEACHER_CA"), get("EDL_TEACHER_CERT"), get("EDL_TEACHER_KEY"))

    def teacher(self, endpoint: str, entry: Mapping[str, Any]) -> Target:
        """How to ask a teacher with this entry."""
        tls = self._tls if entry.get("tls") is True else None
        return Target(endpoint, tls, self._token if tls or _stays_here(endpoint) else "")

    def student(self, endpoint: str) -> Target:
        """How to ask a student. It wants no token."""
        return Target(endpoint)


def targets(registry: Mapping[str, Any], access: Access) -> Iterator[tuple[Key, Target, str]]:
    """Whom to ask, of whom is in the registry (see ``registry.by_service``): the key, where, and
    for which student (empty for a teacher). Who says nothing of itself may be the original's, a
    pipeline has no figures, and neither has what a registrar stands for: these are not asked.
    """
    for name in list(registry)[:MOST_SERVICES]:
        found = registry[name]
        for endpoint, entry in list(found["teachers"].items())[:MOST_TEACHERS]:
            if entry.get("protocol", "") == "baidu_std" and not entry.get("registrar"):
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


def _context(
    authority: Optional[str], certificate: Optional[str], key: Optional[str]
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authority or None)
        if certificate and key:
            context.load_cert_chain(certificate, key, lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            "EDL_TEACHER_CA, EDL_TEACHER_CERT and EDL_TEACHER_KEY are not certificates "
            f"and a key: {error}"
        ) from error
    return context
