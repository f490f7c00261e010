"""Which teachers a client believes, and TLS with them.

A client that is told an authority (EDL_TEACHER_CA) speaks TLS with every teacher, whatever else is
said of it, and sends none a byte in plain text. Whatever a registry says can only add to that: a
teacher that is said to speak TLS is never asked in plain text. The certificate must be for the host
of the endpoint, a name or an address.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from edl import _tls
from edl._endpoints import is_same_machine, parse_endpoint
from edl.errors import (
    ConfigError,
    TeacherConnectionLost,
    TeacherError,
    TeacherUnreachable,
    TlsRefused,
)


@dataclass(frozen=True)
class Trust:
    """Which teachers are believed: files in PEM format, and a name.

    ``ca``: a file of the authorities that sign teachers' certificates. Then teachers are spoken to
    with TLS only. Without it the system's authorities count, for teachers that are said to speak
    TLS. ``cert``, ``key``: our own certificate, followed by those that lead to its authority, and
    its key without a password, for teachers that want one. ``name``: what teachers' certificates
    are for, if that is not the host of their endpoints. ``plain_text``: teachers that are said to
    speak plain text are spoken to so although there is a ``ca``; ``plain_token``: a token may be
    shown in plain text beyond this machine.

    Raises ConfigError if one is given without what it goes with, or a file is not there.
    """

    ca: Optional[str] = None
    cert: Optional[str] = None
    key: Optional[str] = None
    name: Optional[str] = None
    plain_text: bool = False
    plain_token: bool = False

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("EDL_TEACHER_CERT and EDL_TEACHER_KEY go together")
        _tls.check_files(
            EDL_TEACHER_CA=self.ca, EDL_TEACHER_CERT=self.cert, EDL_TEACHER_KEY=self.key
        )

    @classmethod
    def from_environment(cls) -> Trust:
        """From EDL_TEACHER_CA, EDL_TEACHER_CERT, EDL_TEACHER_KEY, EDL_TEACHER_NAME,
        EDL_TEACHER_PLAIN_TEXT and EDL_TOKEN_PLAIN_TEXT (1 or 0), of which empty ones count as not
        set. Raises ConfigError likewise.
        """
        get = os.environ.get
        return cls(
            get("EDL_TEACHER_CA") or None,
            get("EDL_TEACHER_CERT") or None,
            get("EDL_TEACHER_KEY") or None,
            get("EDL_TEACHER_NAME") or None,
            _switch("EDL_TEACHER_PLAIN_TEXT"),
            _switch("EDL_TOKEN_PLAIN_TEXT"),
        )

    def wants_tls(self, endpoint: str, said: Optional[bool]) -> bool:
        """Whether TLS is spoken with a teacher; ``said``: what its entry says of that, None if it
        has none. Raises TlsRefused if it is not to be spoken with at all.
        """
        if said is False and self.ca is not None:
            if self.plain_text:
                return False
            raise TlsRefused(
                endpoint,
                "its entry in the registry does not say that it speaks TLS, and EDL_TEACHER_CA is "
                "set: start it with --tls-cert and --tls-key, or allow plain text with "
                "EDL_TEACHER_PLAIN_TEXT=1",
            )
        return bool(said) or self.ca is not None

    def check_token(self, sock: socket.socket, endpoint: str) -> None:
        """Raises TlsRefused, and closes the socket, if a token would leave this machine on it in
        plain text.
        """
        try:
            peer, ours = sock.getpeername()[0], sock.getsockname()[0]
        except OSError as error:
            sock.close()
            raise TeacherUnreachable(endpoint, f"it ended the connection: {error}") from error
        if self.plain_token or is_same_machine(ours, peer):
            return
        sock.close()
        raise TlsRefused(
            endpoint,
            "the token would be shown to it in plain text: let it speak TLS (edl teacher "
            "--tls-cert --tls-key) and set EDL_TEACHER_CA, or allow it with EDL_TOKEN_PLAIN_TEXT=1",
        )


def _switch(name: str) -> bool:
    value = os.environ.get(name) or "0"
    if value not in ("0", "1"):
        raise ConfigError(f"{name} is {value!r}; it must be 0 or 1")
    return value == "1"


def context_of(trust: Trust) -> ssl.SSLContext:
    """For the next connection, from what the files hold now. Raises ConfigError if they hold no
    certificates.
    """
    context = _tls.client_context(trust.ca)
    if trust.cert is not None and trust.key is not None:
        _tls.load(context, trust.cert, trust.key)
    return context


def secure(sock: socket.socket, endpoint: str, trust: Trust) -> ssl.SSLSocket:
    """Agree on keys with the teacher at ``endpoint``, within the socket's time limit. The socket is
    this function's from now on.

    Raises TlsRefused if its certificate is not what is trusted, TeacherUnreachable if it does not
    answer, ConfigError if files hold no certificates.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        context = context_of(trust)
        name = trust.name or parse_endpoint(endpoint)[0]
        try:
            secured = context.wrap_socket(sock, server_hostname=name)
        except ssl.SSLCertVerificationError as error:
            raise TlsRefused(endpoint, _not_accepted(error, trust)) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as error:
            raise TeacherUnreachable(endpoint, f"it ended the TLS handshake{_PLAIN}") from error
        except socket.timeout as error:  # on a Python before 3.10 it is no TimeoutError
            raise TeacherUnreachable(endpoint, f"no TLS handshake in time{_PLAIN}") from error
        except ssl.SSLError as error:
            if _is_about_ours(error):
                raise refused(endpoint, error) from error
            raise TlsRefused(endpoint, f"no TLS: {_tls.reason(error)}{_PLAIN}") from error
        except (OSError, ValueError) as error:  # ValueError: a name that can be none
            raise TeacherUnreachable(endpoint, f"no TLS: {error}") from error
        stack.pop_all()
        return secured


#: What is said of a teacher that does not speak as TLS does.
_PLAIN = "; perhaps it speaks plain text, which is not spoken with it here"


def _not_accepted(error: ssl.SSLCertVerificationError, trust: Trust) -> str:
    """What is wrong with a teacher's certificate, and what to do about it."""
    said = f"its certificate is not accepted: {_tls.reason(error)}"
    if error.verify_code in _WRONG_NAME:
        return f"{said}; set EDL_TEACHER_NAME to the name that it is for, if that is meant"
    if error.verify_code in _WRONG_TIME:
        return f"{said}; renew it (the teacher reads its files again), or set the clock right"
    by = f"EDL_TEACHER_CA ({trust.ca})" if trust.ca else "the system's authorities; EDL_TEACHER_CA"
    return f"{said}; it must be signed by one of {by}"


#: Of X509_V_ERR_* (openssl-verification-options): the host or address is another; not yet, and not
#: any longer.
_WRONG_NAME, _WRONG_TIME = (62, 64), (9, 10)


def refused(endpoint: str, error: ssl.SSLError) -> TeacherError:
    """What it means that a connection ended with ``error``: what a teacher has against our
    certificate it says in an alert, of TLS 1.3 some time after the handshake.
    """
    reason = _tls.reason(error)
    if not _is_about_ours(error):
        return TeacherConnectionLost(endpoint, f"TLS failed: {reason}")
    return TlsRefused(
        endpoint,
        f"it does not accept our certificate: {reason}; see EDL_TEACHER_CERT and EDL_TEACHER_KEY",
    )


def _is_about_ours(error: ssl.SSLError) -> bool:
    """Whether it is an alert that a peer sends because of our certificate (RFC 8446, 6.2)."""
    reason = _tls.reason(error)
    return "alert" in reason and ("certificate" in reason or "unknown ca" in reason)


class SecureSocket:
    """A TLS connection that one thread receives from while others send, one at a time.

    OpenSSL allows one thread at a time into a connection, and ``ssl`` does not see to that: so it
    does not block, a lock is held while it works, and nobody waits inside. ``send_timeout``:
    seconds in which the peer may take nothing.
    """

    def __init__(self, sock: ssl.SSLSocket, send_timeout: float) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._send_timeout = send_timeout
        self._lock = threading.Lock()
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable.register(sock, select.POLLOUT)

    def sendmsg(self, buffers: Sequence[memoryview]) -> int:
        """Send some of the bytes: how many. Raises BlockingIOError if the peer takes none for too
        long; OSError.
        """
        while True:
            try:
                with self._lock:
                    return _tls.send_some(self._socket, buffers)
            except BlockingIOError:
                if not self._writable.poll(self._send_timeout * 1e3):
                    raise

    def recv_into(self, view: memoryview, size: int = 0, flags: int = 0) -> int:
        """Receive at least one byte, or as many as there are; 0 if the peer has closed. ``size``,
        ``flags``: as those of other sockets, to no effect. Raises OSError.
        """
        while True:
            try:
                with self._lock:
                    return _tls.receive_some(self._socket, view)
            except BlockingIOError:
                self._readable.poll()

    def shutdown(self, how: int) -> None:
        """End it, and wake who waits for it."""
        _tls.end(self._socket, how)

    def close(self) -> None:
        """Close it. Nobody may be waiting for it."""
        self._socket.close()
