"""Requests to one model's teachers: rows to ask about, and the futures of their answers."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional, Union

import numpy as np

from edl.distill.batches import as_array, join_parts
from edl.distill.pool import Pool
from edl.distill.state import Finished, Limits
from edl.distill.stream import RequestStream
from edl.distill.tensors import is_tensor, nbytes_of
from edl.errors import SourceError

logger = logging.getLogger(__name__)

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Feeds:
    """Rows to ask about, by name: arrays with as many ``rows`` each. ``tensors``: whether one of
    them was a Paddle tensor.
    """

    arrays: Mapping[str, np.ndarray]
    rows: int
    tensors: bool = False

    @property
    def nbytes(self) -> int:
        """What they hold."""
        return sum(array.nbytes for array in self.arrays.values())

    def named(self, name: str) -> np.ndarray:
        """Raises SourceError if there is no such one."""
        if name not in self.arrays:
            known = ", ".join(map(repr, self.arrays))
            raise SourceError(f"the request has no {name!r}; it has {known}")
        return self.arrays[name]

    def select(self, rows: Union[slice, np.ndarray]) -> Feeds:
        """Some of the rows; views if they are a slice."""
        arrays = {name: array[rows] for name, array in self.arrays.items()}
        return Feeds(arrays, len(next(iter(arrays.values()))), self.tensors)


def read_feeds(value: Any, names: Optional[Sequence[Optional[str]]]) -> Feeds:
    """What a user asks about: a mapping by name or, with ``names``, a sequence of slots (one array
    is such a sequence too). Arrays are taken as they are, tensors of the CPU's memory as views.
    Raises SourceError for anything else.
    """
    slots = dict(_slots(value, names))
    arrays = {name: _array(name, slot) for name, slot in slots.items()}
    if not arrays:
        raise SourceError("the request has no feeds")
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        said = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise SourceError(f"the request's feeds differ in their number of rows: {said}")
    tensors = any(is_tensor(slot) for slot in slots.values())
    return Feeds(arrays, next(iter(rows.values())), tensors)


def _slots(value: Any, names: Optional[Sequence[Optional[str]]]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
        return
    if names is None:
        raise SourceError(
            f"a request must be a dict by the teacher's feeds, not {type(value).__name__}, unless "
            "the pool is made with feeds=[...], the names of a sequence's slots"
        )
    slots = value if isinstance(value, (list, tuple)) else (value,)
    if len(slots) != len(names):
        raise SourceError(f"the request has {len(slots)} slots, but feeds names {len(names)}")
    for name, slot in zip(names, slots):
        if name is not None:
            yield name, slot


def _array(name: str, slot: Any) -> np.ndarray:
    try:
        array = as_array(slot)
    except (TypeError, ValueError) as error:
        raise SourceError(f"the request's {name!r} cannot become an array: {error}") from error
    if not array.ndim:
        raise SourceError(f"the request's {name!r} has no rows: its shape is ()")
    return array


@dataclass(eq=False)
class Request:
    """Feeds on their way, and the future of ``finish(outputs)``. ``epoch``: they are of none."""

    feeds: Feeds
    finish: Callable[[Outputs], Any]
    future: Future[Any]
    epoch: int = 0

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.feeds.rows

    @property
    def nbytes(self) -> int:
        """What they hold."""
        return self.feeds.nbytes

    def has(self, name: str) -> bool:
        """Whether there is such a feed."""
        return name in self.feeds.arrays

    def column(self, index: int, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop`` of a feed, without a copy. Raises SourceError."""
        return self.feeds.named(name)[start:stop]


class Requests:
    """Requests to the teachers of one pool, and the thread that hands out their answers until the
    pool is closed.
    """

    def __init__(self, pool: Pool) -> None:
        self._stream = pool.open_requests()
        self._thread = threading.Thread(
            target=_hand_out, args=(self._stream,), name="edl-requests", daemon=True
        )
        self._thread.start()

    def submit(self, feeds: Feeds, finish: Callable[[Outputs], Any], until: float) -> Future[Any]:
        """The future of ``finish(outputs)``, which is called by the thread. A future that is
        cancelled is withdrawn. Raises what RequestStream.submit raises.
        """
        future: Future[Any] = Future()
        number = self._stream.submit(Request(feeds, finish, future), until)
        future.add_done_callback(partial(_withdraw_if_cancelled, self._stream, number))
        return future

    @property
    def wanted(self) -> bool:
        """Whether a teacher has room for another request."""
        return self._stream.wanted

    @property
    def handing_out(self) -> bool:
        """Whether this is called by the thread, as a future's callbacks are."""
        return threading.current_thread() is self._thread

    def join(self, timeout: float) -> None:
        """Wait until the closed pool's last answer was handed out, for so many seconds at most."""
        if not self.handing_out:
            self._thread.join(max(0.0, timeout))


def _withdraw_if_cancelled(stream: RequestStream, number: int, future: Future[Any]) -> None:
    if future.cancelled():
        stream.withdraw(number)


def _hand_out(stream: RequestStream) -> None:
    while (finished := stream.take_any()) is not None:
        try:
            _answer(finished)
        except BaseException:  # such as SystemExit in a callback: others wait for their answers
            logger.exception("a callback of a future has failed")
        del finished  # its memory is the user's


def _answer(finished: Finished[Request]) -> None:
    request, error = finished.payload, finished.error
    assert request is not None
    future, value = request.future, None
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        try:
            value = request.finish(join_parts(finished.parts, list(finished.parts[0])))
        except Exception as failure:
            error = failure
    finished.parts.clear()
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


# --- answers in order ---------------------------------------------------------------------------


def in_order(
    items: Iterable[Any],
    submit: Callable[[Any], Future[Any]],
    wanted: Callable[[], bool],
    limits: Limits,
    ahead: Optional[int] = None,
) -> Iterator[Any]:
    """The answers to ``items``, in their order, each asked for with ``submit``.

    Items are read in the caller's thread, while it waits: at least one for each answer, and more
    while the next answer is not there and they are ``wanted``; at most ``ahead`` beyond that one,
    and none while finished answers are as many as ``limits`` allow. What reading or asking raises
    comes in its turn. When this is left early, what was asked is cancelled.
    """
    source = iter(items)
    asked: deque[Future[Any]] = deque()
    moved: queue.SimpleQueue[None] = queue.SimpleQueue()  # futures may be cancelled in finalizers
    at_end = False

    def may_read() -> bool:
        if at_end or not asked:
            return not at_end
        if ahead is not None and len(asked) > ahead:
            return False
        return wanted() and not _high(asked, limits)

    try:
        while True:
            count = 0
            while may_read() and not (count and asked[0].done()):
                future, at_end = _ask_for_next(source, submit)
                if future is not None:
                    future.add_done_callback(lambda _: moved.put(None))
                    asked.append(future)
                del future
                count += 1
            if not asked:
                return
            if asked[0].done():
                yield asked.popleft().result()
                continue
            with contextlib.suppress(queue.Empty):
                moved.get(timeout=0.5)
    finally:
        for future in asked:
            future.cancel()


def _ask_for_next(
    source: Iterator[Any], submit: Callable[[Any], Future[Any]]
) -> tuple[Optional[Future[Any]], bool]:
    """What was asked, if there was something, and whether that was the last."""
    try:
        for item in source:
            return submit(item), False
    except Exception as error:
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed, True
    return None, True


def _high(asked: Iterable[Future[Any]], limits: Limits) -> bool:
    """Whether as much is finished and not taken as may be."""
    done = [future for future in asked if future.done()]
    if len(done) >= limits.high_batches:
        return True
    answers = [f.result() for f in done if not f.cancelled() and not f.exception()]
    return sum(map(_answer_bytes, answers)) >= limits.high_bytes


def _answer_bytes(answer: Mapping[str, Any]) -> int:
    return sum(nbytes_of(value) for value in answer.values())
