"""Reading ahead of the student: the thread between a source and a pool's stream."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Optional

from edl._forking import note_thread
from edl.distill.stream import Stream
from edl.distill.timeline import Timeline

logger = logging.getLogger(__name__)

_JOIN_PATIENCE = 5.0


class ReadAhead:
    """Puts ``batches`` into ``stream`` while they are wanted there. What they raise takes the next
    batch's place. They are closed, by the thread that reads them, when the stream has been left.

    The thread holds what it reads only while it does: a source may well refer to its student, and
    both are garbage when nobody else refers to either. Whoever iterates has to hold this object.
    """

    def __init__(
        self, batches: Iterator[Any], stream: Stream, timeline: Optional[Timeline]
    ) -> None:
        self.batches = batches
        self._stream = stream
        self._left: list[Iterator[Any]] = []
        self.thread = threading.Thread(
            target=_read_while_wanted,
            args=(weakref.ref(self), stream, timeline, self._left),
            name="edl-source",
            daemon=True,
        )
        self.thread.start()
        note_thread(self.thread, stream, lambda stream: stream.left)

    def leave(self) -> None:
        """Nothing more is taken, and nobody will hold this object: the thread closes what it has
        read. Takes no lock and waits for nothing, for finalizers.
        """
        self._left.append(self.batches)
        self._stream.leave()


def wait_until_left_in_peace(reading: threading.Thread) -> None:
    """Wait until the source is not read any more; for a few seconds, if it is busy."""
    reading.join(_JOIN_PATIENCE)
    if reading.is_alive():
        logger.warning(
            "the source is still busy with its next batch; it is left to itself and will be "
            "closed when it returns"
        )


def _read_while_wanted(
    reader: weakref.ref[ReadAhead],
    stream: Stream,
    timeline: Optional[Timeline],
    left: list[Iterator[Any]],
) -> None:
    error: Optional[BaseException] = None
    try:
        while stream.wait_until_wanted() and _read_one(reader, stream, timeline):
            pass
    except BaseException as failure:  # the user's own errors reach the student in their turn
        error = failure
    stream.end(error)
    batches = left.pop() if left else getattr(reader(), "batches", None)
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def _read_one(reader: weakref.ref[ReadAhead], stream: Stream, timeline: Optional[Timeline]) -> bool:
    """Whether there was one, and it was wanted."""
    owner = reader()
    if owner is None:
        return False
    started = time.monotonic()
    batch = next(owner.batches, None)
    wanted = batch is not None and stream.put(batch)
    if timeline is not None:
        timeline.read(started, time.monotonic())
    return wanted
