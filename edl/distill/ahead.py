"""Reading ahead of the student: the thread between a source and a pool's stream."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Optional

from edl.distill.pool import Batch, Stream
from edl.distill.trace import Trace

logger = logging.getLogger(__name__)

_JOIN_PATIENCE = 5.0


class ReadAhead:
    """Puts ``batches`` into ``stream`` while they are wanted there. What they raise takes the next
    batch's place. They are closed, by the thread that reads them, when the stream has been left.
    """

    def __init__(self, batches: Iterator[Batch], stream: Stream, trace: Optional[Trace]) -> None:
        self._batches = batches
        self._stream = stream
        self._trace = trace
        self._thread = threading.Thread(target=self._run, name="edl-source", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the source is left in peace; for a few seconds, if it is busy."""
        self._thread.join(_JOIN_PATIENCE)
        if self._thread.is_alive():
            logger.warning(
                "the source is still busy with its next batch; it is left to itself and will be "
                "closed when it returns"
            )

    def _run(self) -> None:
        error: Optional[BaseException] = None
        try:
            while self._stream.wait_until_wanted():
                started = time.monotonic()
                batch = next(self._batches, None)
                if self._trace is not None:
                    self._trace.span("source", "read", started, time.monotonic())
                if batch is None or not self._stream.put(batch):
                    break
        except BaseException as failure:  # the user's own errors reach the student in their turn
            error = failure
        self._stream.end(error)
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
