"""Forking this process, for a DataLoader's workers: when none of its threads is ending.

Paddle (3.3) counts memory for each thread that allocates or frees some, and forgets the count at
the thread's end, under a lock and after Python has taken the thread for ended. A process that is
forked meanwhile finds the lock taken for ever: its own threads wait there when they first allocate
memory, and may keep the interpreter's lock.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Callable, TypeVar

logger = logging.getLogger(__name__)

Owner = TypeVar("Owner")


@dataclass
class _Noted:
    """A thread, whether it has been told to end, and whether that was waited for in vain."""

    thread: threading.Thread
    is_told_to_end: Callable[[], bool]
    is_late: bool = False

    def is_gone(self) -> bool:
        """Whether it has ended for the system, too."""
        alive = self.thread.is_alive()
        return not alive and not os.path.exists(f"/proc/self/task/{self.thread.native_id}")

    def is_to_be_waited_for(self) -> bool:
        if self.thread is threading.current_thread():
            return False
        return not self.thread.is_alive() or (self.is_told_to_end() and not self.is_late)


# Of this process, as its threads are: who forks has to wait for everybody's.
_noted: dict[threading.Thread, _Noted] = {}


def note_thread(
    thread: threading.Thread, owner: Owner, is_told_to_end: Callable[[Owner], bool]
) -> None:
    """Let ``thread``, which has been started, be waited for before a fork once it is told to end,
    as ``owner`` knows, or that is gone: the thread ends soon afterwards. ``owner`` is not kept.
    """
    if len(_noted) % 64 == 0:  # now and then, where nobody forks
        _forget_gone()
    reference = weakref.ref(owner)

    def is_told() -> bool:
        known = reference()
        return known is None or is_told_to_end(known)

    _noted[thread] = _Noted(thread, is_told)


def wait_for_ending_threads(timeout: float) -> None:
    """Before a fork: wait until no thread that has been noted is ending. For ``timeout`` seconds at
    most, which is logged; a thread that is still busy then is waited for no more until it ends.
    """
    deadline = time.monotonic() + timeout
    while ending := _ending():
        if time.monotonic() >= deadline:
            names = sorted({noted.thread.name for noted in ending})
            for noted in ending:
                noted.is_late = True
            logger.warning(
                "workers are forked although threads have not ended in %.0f s: %s; if a worker "
                "hangs, that may be why",
                timeout,
                ", ".join(names),
            )
            return
        time.sleep(0.0005)


def _ending() -> list[_Noted]:
    _forget_gone()
    return [noted for noted in list(_noted.values()) if noted.is_to_be_waited_for()]


def _forget_gone() -> None:
    for thread, noted in list(_noted.items()):
        if noted.is_gone():
            _noted.pop(thread, None)
