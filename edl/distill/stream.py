"""Batches on their way: what a source puts in at one end and a student takes out at the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Optional, Union

from edl.distill.batches import ArrayBatch, SampleBatch
from edl.distill.state import Finished

if TYPE_CHECKING:
    from edl.distill.exchange import Exchange

Batch = Union[SampleBatch, ArrayBatch]


class Stream:
    """Batches on their way through a pool, from ``Pool.open`` to ``leave``: one thread puts them
    in, another one takes them out in the same order.
    """

    def __init__(self, exchange: Exchange, nudge: Callable[[], None]) -> None:
        self._exchange = exchange
        self._nudge = nudge
        self.left = False

    def put(self, batch: Batch) -> bool:
        """Add a batch; whether it was wanted."""
        return self._exchange.put(self, batch)

    def end(self, error: Optional[BaseException] = None) -> None:
        """There is no more; ``error`` takes the place behind the last batch."""
        self._exchange.end(self, error)

    def wait_until_wanted(self) -> bool:
        """Block until there is room for another batch; false when the stream was left."""
        return self._exchange.wait_until_wanted(self)

    def take(self) -> Optional[Finished[Batch]]:
        """The next batch in order; None when all have been taken. Blocks.

        Every few seconds of waiting are logged with their reason. Raises NoTeacherError when there
        has been no teacher to work for longer than the limit while this waited, ReaderError if no
        teacher there is fits.
        """
        return self._exchange.take(self)

    def leave(self) -> None:
        """Nothing more is taken. Takes no lock and waits for nothing, so that a finalizer may call
        it in whatever thread, at whatever moment; the pool forgets the batches soon after.
        """
        self.left = True
        self._nudge()
