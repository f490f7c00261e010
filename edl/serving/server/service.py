"""What every request passes, whatever it came by: token, trust, drain, engine, counting."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Callable, Optional

from edl.serving.server.engine import LOADING, Engine, Outcome, Refusal
from edl.serving.server.gate import Gate, Guest, Limits
from edl.serving.server.intake import Intake
from edl.serving.server.metrics import Metrics
from edl.serving.server.sharing import Lease, Sharing
from edl.serving.server.tls import NO_CERTIFICATE
from edl.serving.wire import frame
from edl.serving.wire.messages import Request

logger = logging.getLogger(__name__)

#: Seconds of draining after which it is said what is waited for.
_SAY_EVERY = 5.0

#: What metrics call brpc's error codes.
_OUTCOMES = {
    0: "ok",
    frame.ENOSERVICE: "refused",
    frame.ENOMETHOD: "refused",
    frame.EREQUEST: "refused",
    frame.ERPCAUTH: "unauthorized",
    frame.ESSL: "unauthorized",
    frame.EINTERNAL: "failed",
    frame.ELOGOFF: "draining",
    frame.ELIMIT: "busy",
}


class Service:
    """One model's service. ``token``: what clients must show; empty if they need none."""

    def __init__(
        self,
        engine: Engine,
        intake: Intake,
        gate: Gate,
        metrics: Metrics,
        limits: Limits,
        token: str,
    ) -> None:
        self.engine = engine
        self.intake = intake
        self.memory = intake.memory
        self.sharing = Sharing(intake.memory.budget, engine.unmap)
        self.metrics = metrics
        self.limits = limits
        self._gate = gate
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

    def may_refuse(self, guest: Guest) -> bool:
        """Whether the guest has to show something that it has not shown yet."""
        return not guest.trusted and (self.needs_token or not guest.certified)

    def refusal(self, guest: Guest, credential: bytes) -> Optional[Refusal]:
        """Why a guest with this token is sent away; None, and it is trusted from then on, if it is
        the right one. That takes a time that does not depend on where it differs.
        """
        if not guest.certified:
            return Refusal(frame.ESSL, NO_CERTIFICATE)
        if not hmac.compare_digest(credential, self._token):
            return Refusal(
                frame.ERPCAUTH, "wrong token" if credential else "this teacher needs a token"
            )
        if self.needs_token:
            self._gate.trust(guest)
        return None

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
        guest: Guest,
        finish: Callable[[Outcome], None],
        lease: Optional[Lease] = None,
    ) -> None:
        """See Engine.submit; refused while draining. Who sends a right request is trusted."""
        if self.draining:
            for block in blocks:
                self.memory.free(block)
            if lease is not None:
                lease.end()
            finish(Refusal(frame.ELOGOFF, "this teacher is shutting down"))
        elif self.engine.submit(request, blocks, guest, finish, lease) and not guest.trusted:
            self._gate.trust(guest)

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
                await asyncio.wait_for(self._quiet.wait(), _SAY_EVERY)
            except asyncio.TimeoutError:
                waited = time.monotonic() - started
                logger.warning("draining for %.0f s: %d unanswered", waited, self._unanswered)
