"""What is on its way through a pool: a source's batches to a student, or requests and answers."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from edl.distill.batches import ArrayBatch, SampleBatch
from edl.distill.state import Finished

if TYPE_CHECKING:
    from edl.distill.exchange import Exchange
    from edl.distill.plan import Plan
    from edl.distill.requests import Request

Batch = Union[SampleBatch, ArrayBatch]


class Stream:
    """Batches on their way through a pool, from ``Pool.open`` to ``leave``: one thread puts them
    in, another one takes them out in the same order.
    """

    def __init__(self, exchange: Exchange, nudge: Callable[[], None]) -> None:
        self._exchange = exchange
        self._nudge = nudge
        self.left = False

    def settle(self, stored: Callable[[], Collection[str]]) -> Optional[tuple[str, Optional[Plan]]]:
        """The model whose labels these batches get, and the plan of a teacher that has it, if there
        is one: of the teachers' model or, if no teacher says soon what it serves, of the only one
        that is ``stored``. It is kept to from now on. Blocks; None when the stream was left.

        Raises, and logs, what ``take`` does while it waits; NoTeacherError also if several are
        stored, and no teacher decides.
        """
        return self._exchange.settle(self, stored)

    def plan(self) -> Optional[Plan]:
        """That of a teacher of these batches' model, if one is connected."""
        return self._exchange.plan()

    def put(self, batch: Any) -> bool:
        """Add a batch, or what stands for the rows of one; whether it was wanted."""
        return self._exchange.put(self, batch)

    def forget(self) -> None:
        """Drop what is left of it, in this thread and not in one of the pool's."""
        self._exchange.forget(self)

    def end(self, error: Optional[BaseException] = None) -> None:
        """There is no more; ``error`` takes the place behind the last batch."""
        self._exchange.end(self, error)

    def wait_until_wanted(self) -> bool:
        """Block until there is room for another batch; false when the stream was left."""
        return self._exchange.wait_until_wanted(self)

    def take(self) -> Optional[Finished[Any]]:
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


class RequestStream:
    """Requests on their way through a pool, from ``Pool.open_requests`` until the pool is closed:
    any thread puts them in, one takes them out, in whatever order they are answered.
    """

    left = False

    def __init__(self, exchange: Exchange, nudge: Callable[[], None]) -> None:
        self._exchange = exchange
        self._withdrawn: queue.SimpleQueue[int] = queue.SimpleQueue()  # put to in finalizers
        self.nudge = nudge

    def submit(self, request: Request, until: float) -> int:
        """Add a request; its number. Blocks while there is no room, until ``until`` (by
        ``time.monotonic``), and logs every few seconds why. Raises PoolFull when that is over,
        ReaderError once the pool was closed.
        """
        return self._exchange.submit(self, request, until)

    def take_any(self) -> Optional[Finished[Request]]:
        """A request with its answer, or with an error: NoTeacherError if there has been no teacher
        to work for longer than the limit while it waited, ReaderError if no teacher there is fits
        or the pool was closed. None when there will be no more. Blocks. Every few seconds of the
        oldest one's waiting are logged with their reason.
        """
        return self._exchange.take_any(self)

    @property
    def wanted(self) -> bool:
        """Whether a teacher has room for another request."""
        return self._exchange.wanted()

    def withdraw(self, number: int) -> None:
        """Nobody waits for this request any more. Takes no lock and waits for nothing, so that a
        finalizer may call it; it becomes an error soon after, unless it is answered before.
        """
        self._withdrawn.put(number)
        self.nudge()

    def withdrawn(self) -> Iterator[int]:
        """The numbers of those that have been withdrawn since this was called last."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._withdrawn.get_nowait()
