"""``edl dashboard``: the page, and what changes on it, over HTTP. It only ever reads.

A page loads three files and then listens to server-sent events: everything once, then what has
changed. All pages get the same bytes, which are made once; one that does not keep up gets
everything again, later.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Optional

from edl._endpoints import endpoint_of, is_loopback, parse_endpoint
from edl.discovery import Etcd
from edl.errors import ConfigError, MissingDependencyError
from edl.view.board import State, changes, state
from edl.view.history import CURVES, POINTS, STEP, History
from edl.view.observer import PERIOD, observe
from edl.view.registry import prefix_of
from edl.view.snapshot import Snapshot
from edl.view.targets import Access

logger = logging.getLogger(__name__)

#: Pages that may be open at a time.
MOST_PAGES = 100

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/view.css": ("view.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_COOKIE = "edl_dashboard"
_BEHIND = 8  # events that a page may be behind
_WITHIN = 10.0


@dataclass(frozen=True)
class Listen:
    """Where to serve, and to whom: ``token`` is what a browser must show, ``cert`` and ``key`` are
    files in PEM format for TLS. Raises ConfigError for what would let strangers read along.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    cert: Optional[str] = None
    key: Optional[str] = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("--tls-cert and --tls-key go together")
        if not (is_loopback(self.host) or self.token or self.cert):
            raise ConfigError(
                f"--host {self.host} would show the dashboard to everybody: "
                "set EDL_DASHBOARD_TOKEN to a secret, or give --tls-cert and --tls-key"
            )


class Dashboard:
    """Serves the page from ``start`` to ``stop``, in a thread of its own."""

    def __init__(
        self,
        etcd: Etcd,
        listen: Listen,
        only: Optional[str] = None,
        access: Optional[Access] = None,
        period: float = PERIOD,
    ) -> None:
        """``only``: one service. Raises MissingDependencyError without starlette and uvicorn, and
        ConfigError for a service name that cannot be.
        """
        prefix_of(only)
        self._server_of = _libraries()
        self._etcd, self._only, self._period = etcd, only, period
        self._access = access or Access()
        self._listen = listen
        self._pages = Pages()
        self._server: Any = None
        self._thread = threading.Thread(target=self._run, name="edl-dashboard", daemon=True)
        self._ready = threading.Event()
        self._problem: Optional[BaseException] = None
        self._socket: Optional[socket.socket] = None

    @property
    def url(self) -> str:
        """Where the page is, once started."""
        assert self._socket is not None, "the dashboard has not been started"
        scheme = "https" if self._listen.cert else "http"
        host = self._listen.host
        return f"{scheme}://{endpoint_of(host, self._socket.getsockname()[1])}/"

    def start(self) -> Dashboard:
        """Listen. Raises ConfigError if the port is taken, or a certificate cannot be read."""
        self._socket = _listening(self._listen)
        self._thread.start()
        self._ready.wait(_WITHIN)
        if self._problem is not None:
            self.stop()
            raise self._problem
        return self

    def stop(self) -> None:
        """End, with all pages."""
        if self._server is not None:
            self._server.should_exit = True
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._pages.close)
        self._thread.join(_WITHIN)
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> Dashboard:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._problem = error
            logger.debug("the dashboard has ended", exc_info=error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = Guard(_routes(self._pages), self._listen)
        try:
            self._server = self._server_of(app, self._listen)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"{self._listen.cert} and {self._listen.key} are not a certificate and its key: "
                f"{error}"
            ) from error
        watching = asyncio.ensure_future(self._watch())
        self._ready.set()
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _watch(self) -> None:
        snapshots = observe(self._etcd, self._only, self._access, self._period)
        try:
            async for seen in snapshots:
                if self._server.should_exit:
                    break
                self._pages.show(seen)
        except Exception as error:
            logger.exception("the dashboard shows nothing new any more: %s", error)
        finally:
            self._pages.close()
            await snapshots.aclose()


class Pages:
    """The open pages, and what they are told."""

    def __init__(self) -> None:
        self._state: Optional[State] = None
        self._history = History()
        self._queues: set[asyncio.Queue[Optional[bytes]]] = set()
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether there is no room for another page."""
        return len(self._queues) >= MOST_PAGES

    def show(self, seen: Snapshot) -> None:
        """Tell all pages what has changed."""
        points = self._history.add(seen)
        now = state(seen)
        before, self._state = self._state, now
        if before is None:
            event = self._everything()
        elif self._queues:
            event = _event("change", {**changes(before, now), "points": points})
        else:
            return
        for queue in self._queues:
            if queue.qsize() >= _BEHIND:
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(self._everything())
            else:
                queue.put_nowait(event)

    def close(self) -> None:
        """End all of them."""
        self._closed = True
        for queue in self._queues:
            queue.put_nowait(None)

    async def events(self) -> AsyncIterator[bytes]:
        """What one page is told, from now on."""
        queue: asyncio.Queue[Optional[bytes]] = asyncio.Queue()
        self._queues.add(queue)
        try:
            if self._state is not None:
                yield self._everything()
            while not self._closed:
                event = await queue.get()
                if event is None:
                    return
                yield event
        finally:
            self._queues.discard(queue)

    def _everything(self) -> bytes:
        meaning = {"names": CURVES, "step": STEP, "most": POINTS}
        return _event(
            "full", {**(self._state or {}), "curves": meaning, "points": self._history.curves()}
        )


class Guard:
    """Lets in who may see the page, and adds what keeps browsers from doing more with it.

    A browser shows the token once, in the address, and has a cookie from then on. Without a token,
    only names of this machine are answered: a page elsewhere cannot read along by giving its own
    name this machine's address.
    """

    def __init__(self, app: Any, listen: Listen) -> None:
        self._app = app
        self._token = listen.token.encode()
        self._cookie = hashlib.sha256(b"edl dashboard " + self._token).hexdigest()
        self._secure = "; Secure" if listen.cert else ""
        self._any_name = bool(listen.token or listen.cert)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse, RedirectResponse, Response

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        request = Request(scope)
        answer: Optional[Response] = None
        if not self._any_name and not _names_this_machine(request.headers.get("host", "")):
            answer = PlainTextResponse("this page is for this machine only\n", 421)
        elif self._token and self._is_token(request.query_params.get("token", "")):
            answer = RedirectResponse("/", 303)
            cookie = f"{_COOKIE}={self._cookie}; Path=/; HttpOnly; SameSite=Lax{self._secure}"
            answer.headers["set-cookie"] = cookie
        elif self._token and not self._knows(request):
            answer = PlainTextResponse(
                "this page needs its token: open it with ?token=... once\n", 401
            )
            answer.headers["www-authenticate"] = "Bearer"
        await (answer or self._app)(scope, receive, send_with_headers)

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(), self._token)

    def _knows(self, request: Any) -> bool:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(shown.strip()):
            return True
        try:
            cookie = SimpleCookie(request.headers.get("cookie", "")).get(_COOKIE)
        except CookieError:
            return False
        value = "" if cookie is None else cookie.value
        return hmac.compare_digest(value.encode(), self._cookie.encode())


def _routes(pages: Pages) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    folder = Path(__file__).parent / "page"

    def file(name: str, kind: str) -> Any:
        content = (folder / name).read_bytes()

        async def answer(request: Any) -> Response:
            return Response(content, media_type=kind)

        return answer

    async def events(request: Any) -> Response:
        if pages.full:
            return PlainTextResponse("too many pages are open\n", 503)
        return StreamingResponse(pages.events(), media_type="text/event-stream")

    routes = [Route(path, file(*named), methods=["GET"]) for path, named in _FILES.items()]
    return Starlette(routes=[*routes, Route("/events", events, methods=["GET"])])


def _event(kind: str, value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return f"event: {kind}\ndata: {text}\n\n".encode()


def _names_this_machine(host: str) -> bool:
    """Of a Host header, with or without a port."""
    try:
        name = parse_endpoint(host if ":" in host.rpartition("]")[2] else f"{host}:80")[0]
    except ConfigError:
        return False
    return is_loopback(name)


def _listening(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        return socket.create_server((listen.host, listen.port), family=family)
    except OSError as error:
        endpoint = endpoint_of(listen.host, listen.port)
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigError(f"cannot listen on {endpoint}: {reason}") from error


def _libraries() -> Any:
    """What makes a server of an application."""
    try:
        import starlette.applications  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise MissingDependencyError(
            f"the dashboard needs starlette and uvicorn: pip install starlette uvicorn ({error})"
        ) from error

    def make(app: Any, listen: Listen) -> Any:
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            limit_concurrency=2 * MOST_PAGES,
            timeout_graceful_shutdown=1,
            ssl_certfile=listen.cert,
            ssl_keyfile=listen.key,
        )
        config.load()
        return uvicorn.Server(config)

    return make
