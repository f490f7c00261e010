"""Asking many ports for their figures at once, with limits of time and size.

HTTP/1.1 is h11's. An answer is taken whole or not at all; whoever sends elsewhere (a redirect) is
not followed; bytes that trickle in are waited for no longer than those that do not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from dataclasses import dataclass
from typing import Callable, Optional

import h11

from edl._endpoints import endpoint_of, parse_endpoint
from edl.errors import ConfigError, EdlError

TIMEOUT = 2.0
MOST_BYTES = 256 << 10

_CHUNK = 64 << 10


class NoFigures(EdlError):
    """A port did not say its figures. For people: why."""


@dataclass(frozen=True)
class Target:
    """A port to ask. ``endpoint``: as the registry has it, so anything. ``tls``: gives whom to
    believe, if TLS is to be spoken. ``token``: what to show to it, if anything. ``name``: what its
    certificate is for, if that is not the host.
    """

    endpoint: str
    tls: Optional[Callable[[], ssl.SSLContext]] = None
    token: str = ""
    name: Optional[str] = None


async def fetch(target: Target, path: str = "/metrics", timeout: float = TIMEOUT) -> str:
    """The text at ``path``. Raises NoFigures, within ``timeout`` seconds."""
    try:
        host, port = parse_endpoint(target.endpoint)
        return await asyncio.wait_for(_get(host, port, target, path), timeout)
    except asyncio.TimeoutError:
        raise NoFigures(f"no answer within {timeout:g} s") from None
    except ConfigError:
        raise NoFigures("its address is not host:port") from None
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        raise NoFigures("it does not speak HTTP") from None
    except ssl.SSLError as error:
        raise NoFigures(f"TLS: {error.reason or 'it failed'}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that can be none
        number = getattr(error, "errno", None) or 0  # asyncio's own words repeat the address
        reason = os.strerror(number) if number > 0 else type(error).__name__
        raise NoFigures(f"it cannot be reached: {reason}") from None


async def _get(host: str, port: int, target: Target, path: str) -> str:
    name = (target.name or host) if target.tls else None
    context = target.tls() if target.tls else None
    streams = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    arriving, leaving = streams
    try:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=16 << 10)
        headers = [("Host", endpoint_of(host, port)), ("Connection", "close")]
        if target.token:
            headers.append(("Authorization", f"Bearer {target.token}"))
        request = h11.Request(method="GET", target=path, headers=headers)
        leaving.write(
            (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        )
        return await _body(connection, arriving)
    finally:
        leaving.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            leaving.transport.abort()


async def _body(connection: h11.Connection, arriving: asyncio.StreamReader) -> str:
    pieces: list[bytes] = []
    size = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await arriving.read(_CHUNK))
        elif isinstance(event, h11.Response):
            if event.status_code == 401:
                raise NoFigures("it wants a token (EDL_TOKEN)")
            if event.status_code != 200:
                raise NoFigures(f"it answers with status {event.status_code}")
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > MOST_BYTES:
                raise NoFigures(f"its answer is larger than {MOST_BYTES >> 10} KiB")
            pieces.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return b"".join(pieces).decode("utf-8", "replace")
        elif isinstance(event, h11.ConnectionClosed):
            raise NoFigures("it closed the connection")
