"""Labels on their way to a disk: a thread that writes what was added, while others go on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from edl.errors import StoreError
from edl.store.records import Kind, Labels

logger = logging.getLogger(__name__)

#: What is added is on the disk so many seconds later, or when there are so many bytes of it.
_COMMIT_EVERY, _COMMIT_BYTES = 1.0, 64 << 20

#: Bytes that may wait for a slow disk, before labels are let go.
_MOST_WAITING = 512 << 20


@dataclass
class Counters:
    """What has happened to one store in this process. ``added``: labels of rows on the disk;
    ``dropped``: those that were not stored; ``damaged``: records that were not what was written;
    ``bytes``: of records that were added.
    """

    added: int = 0
    dropped: int = 0
    damaged: int = 0
    bytes: int = 0


class Writer:
    """Writes labels to the store in ``directory``, soon after they were added, in a thread of its
    own. ``write``: puts labels on the disk, and returns how many of them there was room for; what
    it raises ends the writing. ``limit``: of the store's bytes, for what is said. ``full``: why
    nothing can be added at all.
    """

    def __init__(
        self,
        directory: Path,
        write: Callable[[Sequence[Labels]], int],
        limit: Optional[int],
        counters: Counters,
        full: str = "",
    ) -> None:
        self.full = full
        self._directory = directory
        self._write = write
        self._limit = limit
        self._counters = counters
        self._lock = threading.Condition()
        self._waiting: list[Labels] = []
        self._waiting_bytes = 0
        self._rows: dict[bytes, tuple[Labels, int]] = {}  # those that wait, by key
        self._asked = self._done = 0  # flushes
        self._ended = False
        self._thread: Optional[threading.Thread] = None

    def add(self, labels: Labels) -> None:
        """See LabelStore."""
        with self._lock:
            if self.full or self._ended or self._waiting_bytes >= _MOST_WAITING:
                self._drop(len(labels.keys))
                return
            self._waiting.append(labels)
            self._waiting_bytes += labels.nbytes
            for index, key in enumerate(labels.keys):
                self._rows[key] = labels, index
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edl-store", daemon=True)
                self._thread.start()
            self._lock.notify_all()

    def _drop(self, rows: int) -> None:
        """With the lock."""
        if not self._counters.dropped and not self.full:
            logger.warning(
                "the disk of %s is too slow: labels that it has no time for are not stored",
                self._directory,
            )
        self._counters.dropped += rows

    def kinds(self) -> dict[bytes, Kind]:
        """Of what waits, by id."""
        with self._lock:
            return {labels.kind.id: labels.kind for labels in self._waiting}

    def records(self, keys: Sequence[bytes]) -> dict[int, memoryview]:
        """Of what waits: the records under these keys, by the key's number."""
        with self._lock:
            if not self._rows:
                return {}
            found = [(number, self._rows.get(key)) for number, key in enumerate(keys)]
        return {
            number: memoryview(next(one[0].row(one[1]).records()))
            for number, one in found
            if one is not None
        }

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def flush(self, timeout: float) -> bool:
        """See LabelStore."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._asked += 1
            asked = self._asked
            self._lock.notify_all()
            while self._waiting and self._done < asked:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._lock.wait(left)
        return True

    def end(self, timeout: float) -> bool:
        """Write what waits, and take nothing more; whether that was done within ``timeout``."""
        with self._lock:
            self._ended = True
            self._lock.notify_all()
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        """The thread, to its end."""
        while True:
            with self._lock:
                asked, labels = self._wait_until_due()
            if not labels:
                return
            written, problem = self._try(labels)
            with self._lock:
                self._settle(labels, written, problem)
                self._done = max(self._done, asked)
                self._lock.notify_all()

    def _wait_until_due(self) -> tuple[int, list[Labels]]:
        """What is to be written now, and the last flush that waits for it; nothing at the end. With
        the lock.
        """
        while not self._waiting and not self._ended:
            self._done = self._asked
            self._lock.notify_all()
            self._lock.wait()
        due = time.monotonic() + _COMMIT_EVERY
        while not self._ended and self._done == self._asked:
            left = due - time.monotonic()
            if left <= 0 or self._waiting_bytes >= _COMMIT_BYTES:
                break
            self._lock.wait(left)
        if not self._waiting:
            self._done = self._asked
            self._lock.notify_all()
        return self._asked, list(self._waiting)

    def _try(self, labels: Sequence[Labels]) -> tuple[int, str]:
        """How many of them are on the disk now, and why not the others."""
        if self.full:
            return 0, self.full
        try:
            written = self._write(labels)
        except (StoreError, OSError) as error:
            return 0, str(error)
        except Exception as error:
            logger.exception("labels cannot be stored")
            return 0, f"{type(error).__name__}: {error}"
        if written == len(labels):
            return written, ""
        return written, f"{self._directory} would be larger than its limit of {self._limit} bytes"

    def _settle(self, labels: Sequence[Labels], written: int, problem: str) -> None:
        """The first so many of them are on the disk, and the others never will be. With the
        lock.
        """
        del self._waiting[: len(labels)]
        for number, each in enumerate(labels):
            self._waiting_bytes -= each.nbytes
            for key in each.keys:
                if self._rows.get(key, (None,))[0] is each:
                    del self._rows[key]
            if number < written:
                self._counters.added += len(each.keys)
            else:
                self._counters.dropped += len(each.keys)
        if problem and not self.full:
            self.full = problem
            logger.warning("no more labels are stored: %s", problem)
