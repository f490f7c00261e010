"""When what happened to a request, as its client sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Optional

from edl.serving.wire.times import ServerTimes


@dataclass
class Timing:
    """Times of ``time.monotonic``, 0 for what has not happened: when the first of the request's
    bytes was ``sending``, and all were ``sent``, as far as this machine knows; when the answer's
    first bytes ``came``, and all were ``received``. A thread that does not get the interpreter
    notes them late. ``ask``: whether the server is asked where the time goes; ``server``: what it
    says.
    """

    ask: bool = False
    started: float = field(default_factory=monotonic)
    sending: float = 0.0
    sent: float = 0.0
    came: float = 0.0
    received: float = 0.0
    server: Optional[ServerTimes] = None
