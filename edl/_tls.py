"""TLS on a non-blocking socket: bytes from where they lie to where they are wanted.

What a client and a server of tensors need beyond ``ssl`` itself: large buffers are encrypted in
place, record by record, small ones share a record, and received bytes are decrypted to where they
belong.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Optional, Union

from edl.errors import ConfigError

#: Bytes of a record of TLS at most (RFC 8446, 5.1).
RECORD = 16 << 10

#: Bytes that are sent or received in one go: between them others get their turn.
_IN_A_ROW = 256 << 10

#: Bytes that OpenSSL is given at once: what it has sent of them it does not say before it is all.
_PIECE = 4 * RECORD

_BLOCKED = (ssl.SSLWantReadError, ssl.SSLWantWriteError)

Buffers = Sequence[memoryview]


def server_context(authority: Optional[str] = None) -> ssl.SSLContext:
    """For a server. ``authority``: a file of certificates in PEM format; clients may show one that
    they have signed, and none of others. Raises ConfigError for a file that is none.
    """
    made = _sound(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    made.num_tickets = 0  # a session that is taken up again would not be looked at again
    if authority is not None:
        _load_authority(made, authority)
        made.verify_mode = ssl.CERT_OPTIONAL
    return made


def client_context(authority: Optional[str] = None) -> ssl.SSLContext:
    """For a client, which looks at a server's certificate and its name. ``authority``: a file of
    certificates in PEM format that have signed it; without, the system's count. Raises ConfigError
    for a file that is none.
    """
    made = _sound(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    made.hostname_checks_common_name = False
    if authority is None:
        made.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authority(made, authority)
    return made


def _sound(made: ssl.SSLContext) -> ssl.SSLContext:
    """With nothing that is known to be weak."""
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return made


def _load_authority(made: ssl.SSLContext, path: str) -> None:
    try:
        made.load_verify_locations(path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"{path} holds no certificates in PEM format: {error}") from error


def load(made: ssl.SSLContext, certificate: str, key: str) -> None:
    """Our own certificate, with those that lead to its authority, and its key. Raises ConfigError
    for files that are none, do not go together, or want a password.
    """

    def no_password() -> str:
        raise ConfigError(f"the key {key} has a password: keep it without one, readable by us only")

    try:
        made.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{certificate} and {key} are no certificate and its key in PEM format: {error}"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {certificate} and {key}: {error.strerror}") from error


def check_files(**files: Optional[str]) -> None:
    """Raises ConfigError for one that is said and is not there; each by what it is called."""
    for name, path in files.items():
        if path is not None and not os.path.isfile(path):
            raise ConfigError(f"{name} is {path!r}: there is no such file")


def send_some(sock: ssl.SSLSocket, buffers: Buffers) -> int:
    """Send what can be sent now, but not more than takes a moment: how many bytes. Raises
    BlockingIOError if none can be; then the same bytes must be sent next, and perhaps more. Raises
    OSError.
    """
    total = 0
    for part in _parts(buffers):
        start = 0
        while start < len(part) and total < _IN_A_ROW:
            try:
                sent = sock.send(part[start : start + _PIECE])
            except _BLOCKED:
                if not total:
                    raise BlockingIOError("the peer takes no more bytes") from None
                return total
            start, total = start + sent, total + sent
        if total >= _IN_A_ROW:
            break
    return total


def _parts(buffers: Buffers) -> Iterator[memoryview]:
    """The same bytes: large buffers as they are, and small ones that follow each other as one, of
    a record's size at most.
    """
    small: list[memoryview] = []
    size = 0
    for buffer in buffers:
        if small and size + len(buffer) > RECORD:
            yield small[0] if len(small) == 1 else memoryview(b"".join(small))
            small, size = [], 0
        if len(buffer) >= RECORD:
            yield buffer
        else:
            small.append(buffer)
            size += len(buffer)
    if small:
        yield small[0] if len(small) == 1 else memoryview(b"".join(small))


def receive_some(sock: ssl.SSLSocket, view: memoryview) -> int:
    """Receive into ``view`` what is there, but not more than takes a moment: how many bytes; 0 if
    the peer has closed. Raises BlockingIOError if nothing is there. Raises OSError.
    """
    total = 0
    while total < len(view) and total < _IN_A_ROW:
        try:
            received = sock.recv_into(view[total:])
        except _BLOCKED:
            if not total:
                raise BlockingIOError("nothing is there") from None
            break
        if not received:
            break
        total += received
    return total


def end(sock: socket.socket, how: int) -> None:
    """``shutdown``, after which what still arrives is decrypted all the same: that of ssl's sockets
    takes it for plain text from then on.
    """
    socket.socket.shutdown(sock, how)


def reason(error: Union[ssl.SSLError, OSError]) -> str:
    """What an error of TLS says, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    said = getattr(error, "reason", None)
    return str(said).lower().replace("_", " ") if said else (error.strerror or str(error))
