"""To a teacher on this machine, by its Unix socket."""

from __future__ import annotations

import contextlib
import logging
from typing import Optional

from edl._endpoints import parse_endpoint
from edl._machine import boot_id
from edl.errors import EdlError
from edl.serving.client.teacher import TeacherClient
from edl.serving.wire.description import Description
from edl.serving.wire.local import said

logger = logging.getLogger(__name__)


def socket_of(endpoint: str, description: Description) -> str:
    """The path of the Unix socket of the teacher at ``endpoint``, if that is on this machine; empty
    if it is on another, has no socket, or is talked to by way of another port, such as a proxy's.
    """
    local = said(description)
    if local is None or not local.boot or local.boot != boot_id():
        return ""
    return local.socket if parse_endpoint(endpoint)[1] == local.port else ""


def connect_nearer(
    endpoint: str,
    path: str,
    description: Description,
    token: str,
    timeout: float,
    tls: bool = False,
) -> Optional[TeacherClient]:
    """A connection to the teacher by its socket at ``path``, which says of itself what it said at
    its port; None, if there is none to be had: it may be in another container, or another user's.
    ``tls``: its port speaks TLS; then its socket must be of a process of this user.
    """
    with contextlib.ExitStack() as stack:
        try:
            client = TeacherClient(endpoint, timeout, token=token, path=path, tls=tls)
            stack.callback(client.close)
            if client.describe(timeout) == description:
                stack.pop_all()
                return client
        except EdlError as error:
            logger.debug("teacher %s is not used by its socket: %s", endpoint, error)
    return None
