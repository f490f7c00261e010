"""A page of a teacher's port, over HTTP, with TLS where the teacher is spoken to with TLS."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import Optional

from edl._endpoints import parse_endpoint
from edl.errors import TeacherConnectionLost
from edl.serving.client.teacher import connect
from edl.serving.client.tls import Trust, secure


def read_page(
    endpoint: str,
    path: str,
    token: str = "",
    *,
    trust: Optional[Trust] = None,
    tls: Optional[bool] = None,
    timeout: float = 5.0,
    most: int = 1 << 20,
) -> tuple[int, bytes]:
    """The status of a page such as ``/metrics``, and ``most`` bytes of it at most. ``token``: what
    the teacher wants to be shown; ``trust``, ``tls``: as for ``TeacherClient``. ``timeout``:
    seconds for each step.

    Raises TeacherUnreachable, TlsRefused, TeacherConnectionLost; ConfigError for an endpoint that
    is none.
    """
    host, port = parse_endpoint(endpoint)
    trust = trust or Trust.from_environment()
    secured = trust.wants_tls(endpoint, tls)
    sock: socket.socket = connect(endpoint, timeout, timeout)
    sock.settimeout(timeout)
    if secured:
        sock = secure(sock, endpoint, trust)
    elif token:
        trust.check_token(sock, endpoint)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=timeout)) as connection:
        connection.sock = sock
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(most)
        except (OSError, http.client.HTTPException) as error:
            raise TeacherConnectionLost(endpoint, f"no page {path}: {error}") from error
