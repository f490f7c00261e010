"""What every request passes, whatever protocol it came by: token, drain, engine, counting."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Callable

from edl.serving.server.engine import LOADING, Engine, Outcome, Refusal
from edl.serving.server.metrics import Metrics
from edl.serving.wire import frame
from edl.serving.wire.messages import Request

logger = logging.getLogger(__name__)

#: What metrics call brpc's error codes.
_OUTCOMES = {
    0: "ok",
    frame.ENOSERVICE: "refused",
    frame.ENOMETHOD: "refused",
    frame.EREQUEST: "refused",
    frame.ERPCAUTH: "unauthorized",
    frame.EINTERNAL: "failed",
    frame.ELOGOFF: "draining",
    frame.ELIMIT: "busy",
}


@dataclass(frozen=True)
class Limits:
    """What a connection may cost.

    ``max_body``: bytes of one request. ``patience``: seconds that a peer may stall in mid-message
    (and MIN_RATE's time for what has arrived), or take no bytes. ``idle``: seconds between
    requests.
    """

    max_body: int = 512 << 20
    patience: float = 30.0
    idle: float = 3600.0


class Service:
    """One model's service. ``token``: what clients must show; empty if they need none."""

    def __init__(self, engine: Engine, metrics: Metrics, token: str) -> None:
        self.engine = engine
        self.metrics = metrics
        self.draining = False
        self._token = token.encode()
        self._unanswered = 0
        self._quiet = asyncio.Event()

    def describe(self) -> bytes:
        """What is served, as JSON. Raises Refusal while that is not known."""
        if not self.engine.loaded:
            raise Refusal(frame.ELIMIT, LOADING)
        return self.engine.description.to_json().encode()

    @property
    def needs_token(self) -> bool:
        """Whether clients must show a token."""
        return bool(self._token)

    def trusts(self, credential: bytes) -> bool:
        """Whether this is the token, in a time that does not depend on where it differs."""
        return hmac.compare_digest(credential, self._token)

    def why_not_ready(self) -> str:
        """Why requests would be refused now, or an empty string."""
        if self.draining:
            return "shutting down"
        if not self.engine.loaded:
            return LOADING
        return "" if self.engine.ready else "no worker is ready"

    def submit(
        self,
        request: Request,
        blocks: list[int],
        client: Hashable,
        finish: Callable[[Outcome], None],
    ) -> None:
        """See Engine.submit; refused while draining."""
        if self.draining:
            for block in blocks:
                self.engine.free(block)
            finish(Refusal(frame.ELOGOFF, "this teacher is shutting down"))
        else:
            self.engine.submit(request, blocks, client, finish)

    def begin(self) -> None:
        """A request is there that will be answered."""
        self._unanswered += 1

    def end(self, protocol: str, code: int, arrived: float) -> None:
        """Its answer is on its way, or its client gone. ``arrived``: in ``time.monotonic``."""
        self.metrics.answered(protocol, _OUTCOMES.get(code, "failed"), arrived)
        self._unanswered -= 1
        if not self._unanswered:
            self._quiet.set()

    async def drain(self) -> None:
        """Refuse new requests and wait until every accepted one is answered."""
        self.draining = True
        started = time.monotonic()
        while self._unanswered:
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), 5.0)
            except asyncio.TimeoutError:
                waited = time.monotonic() - started
                logger.warning("draining for %.0f s: %d unanswered", waited, self._unanswered)
