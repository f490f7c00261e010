"""A teacher's certificates: from their files, and from them again when those have changed."""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass
from typing import Optional

from edl import _tls
from edl._endpoints import is_loopback
from edl.errors import ConfigError
from edl.serving.server.http import looks_like_http
from edl.serving.server.stream import Stream
from edl.serving.wire import frame

logger = logging.getLogger(__name__)

#: How a TLS connection begins: with a record of a handshake. None of ours does, nor HTTP's.
HANDSHAKE = b"\x16"

PLAIN_TEXT = (
    "this teacher speaks TLS only: set EDL_TEACHER_CA to the file of the authority that has signed "
    "its certificate"
)
NO_CERTIFICATE = (
    "this teacher wants a certificate of its clients: set EDL_TEACHER_CERT and EDL_TEACHER_KEY"
)


@dataclass(frozen=True)
class ServerTls:
    """TLS at a teacher's port. ``cert``, ``key``: files in PEM format, of its certificate, followed
    by those that lead to its authority, and of the key without a password. ``client_ca``: a file of
    the authorities that sign clients' certificates; without it clients need none.

    The files are looked at for each new connection, and read again when they have changed.
    Raises ConfigError for a file that is not there.
    """

    cert: str
    key: str
    client_ca: Optional[str] = None

    def __post_init__(self) -> None:
        _tls.check_files(
            **{"--tls-cert": self.cert, "--tls-key": self.key, "--tls-client-ca": self.client_ca}
        )


class Certificates:
    """The context of a server's connections. Raises ConfigError for files that are no certificates.

    While changed files make no sense, as when one of them has been written and another not yet, the
    ones before are kept.
    """

    def __init__(self, files: ServerTls) -> None:
        self._files = files
        self._seen = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
            except ConfigError as error:
                logger.warning("keeping the certificate from before: %s", error)
            else:
                logger.info("read the certificate %s again: it has changed", self._files.cert)
        return self._context

    def _look(self) -> tuple[object, ...]:
        """What changes with the files."""
        files = (self._files.cert, self._files.key, self._files.client_ca)
        return tuple(_state(path) for path in files if path is not None)

    def _load(self) -> ssl.SSLContext:
        files = self._files
        # A client without a certificate is told so in the words of its protocol (see Service).
        made = _tls.server_context(files.client_ca)
        _tls.load(made, files.cert, files.key)
        return made


def _state(path: str) -> object:
    try:
        state = os.stat(path)
    except OSError as error:
        return error.errno
    return state.st_ino, state.st_mtime_ns, state.st_size


async def refuse_plain_text(stream: Stream) -> None:
    """Tell who speaks plain text, in the words of its protocol, that nothing comes of it. What it
    shows is not looked at. Raises WireError, EOFError, TimeoutError, OSError.
    """
    start = bytearray(frame.HEADER_SIZE)
    pace = stream.pace()
    await stream.read_into(memoryview(start), pace)
    if looks_like_http(start):
        body = f"{PLAIN_TEXT}\n".encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        await stream.write([head.encode(), body])
    else:
        _, meta_size = frame.parse_header(start, limit=0xFFFF_FFFF)
        meta = memoryview(bytearray(meta_size))
        await stream.read_into(meta, pace)
        asked = frame.parse_meta(meta)
        answer = frame.ResponseMeta(asked.correlation_id, frame.ESSL, PLAIN_TEXT)
        await stream.write(frame.encode_frame(answer, []))
    await stream.finish(patience=1.0)


def exposure(host: str, token: str, tls: Optional[ServerTls]) -> str:
    """What is to be said of a teacher that others can reach at ``host``; empty if nothing is."""
    if is_loopback(host):
        return ""
    known = bool(token) or (tls is not None and tls.client_ca is not None)
    if tls is None and not known:
        return (
            f"anybody who reaches {host} can use this teacher, and all travels in plain text: set "
            "--tls-cert and --tls-key, and EDL_TOKEN or --tls-client-ca, or listen on 127.0.0.1"
        )
    if tls is None:
        return (
            f"what students send to {host} travels in plain text, and so would the token, which "
            "they do not show there: set --tls-cert and --tls-key"
        )
    if not known:
        return f"anybody who reaches {host} can use this teacher: set EDL_TOKEN or --tls-client-ca"
    return ""
