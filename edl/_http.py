"""A small HTTP server for what is read now and then: figures, and where they are found."""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
from collections.abc import Sequence
from typing import Any, Callable
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from edl._endpoints import endpoint_of
from edl.errors import ConfigError

logger = logging.getLogger(__name__)

#: Seconds that a connection may be silent, and connections at a time: whoever asks, and does not
#: listen, costs the process that serves no more than this.
_SILENCE, _MOST = 10.0, 32


class HttpServer:
    """Serves a WSGI application on the first port that is free, from threads of its own, until
    ``close``. ``ports``: those to try, in turn; 0 is any free one. Raises OSError if there is none.
    """

    def __init__(self, application: Callable[..., Any], host: str, ports: Sequence[int]) -> None:
        self._server = _bind(host, ports)
        self._server.set_app(application)
        self.endpoint = endpoint_of(host, self._server.server_address[1])
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, name="edl-http", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # no thread can be started
            self._server.server_close()
            raise

    def close(self) -> None:
        """Serve no more. The port is free at once, even if a process that was forked from this one
        has inherited the socket: it is ended for all, which also wakes the thread. Several threads
        may close it.
        """
        if self._thread.is_alive():
            with contextlib.suppress(OSError):  # another thread closes it, too
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
        self._server.server_close()


def serve_at(application: Callable[..., Any], host: str, port: int) -> HttpServer:
    """A server on just this port. Raises ConfigError if it is not free."""
    try:
        return HttpServer(application, host, [port])
    except OSError as error:
        endpoint = endpoint_of(host, port)
        raise ConfigError(f"cannot listen on {endpoint}: {error.strerror}") from error


class _Handler(WSGIRequestHandler):
    timeout = _SILENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = _MOST
    allow_reuse_port = False  # or two processes would share a port, each unseen half of the time

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(_MOST)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Without the name of the host, which takes seconds where nobody answers for it."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, unless there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See process_request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone, or silent, is no news for who looks at this process."""
        logger.debug("a request of %s came to nothing", client_address, exc_info=True)


def _bind(host: str, ports: Sequence[int]) -> _Server:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = type("_Server", (_Server,), {"address_family": family})
    failure = OSError(f"no port to listen on was given for {host}")
    for port in ports:
        try:
            return kind((host, port), _Handler)
        except socket.gaierror:  # so is no other
            raise
        except OSError as error:
            failure = error
    raise failure
