"""LabelStore: what teachers have said of rows, in a directory that many processes read and fill."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Optional, Union

from edl.errors import StoreError
from edl.store import places
from edl.store.environment import Environment, open_environment, release
from edl.store.memory import Memory
from edl.store.records import Gathered, Kind, Labels, is_sound
from edl.store.writing import Counters, Writer

logger = logging.getLogger(__name__)

#: What is sealed at once is at least one in so many of the bytes that were sealed before.
_MUCH = 4


@dataclass
class Recalled:
    """What a store has of some rows: their labels, but for those that are ``missing`` (numbers,
    rising).
    """

    missing: Sequence[int]
    labels: Gathered


class LabelStore:
    """Labels by what rows hold, in ``directory``, which is made if need be. Safe to use from
    several threads; a forked process opens its own.

    ``limit``: bytes on the disk, of all processes together, from which on nothing more is added.
    ``local``: whether all who use it are on this machine; None: that is seen by the file system,
    and by what others say. If so, they share one environment. Otherwise each process fills one of
    its own, which others read when it is sealed: see :meth:`seal`.

    Raises StoreError for a directory that is none, or holds what a later EDL has written, and
    MissingDependencyError without lmdb and xxhash.
    """

    def __init__(
        self,
        directory: Union[str, Path],
        limit: Optional[int] = None,
        *,
        local: Optional[bool] = None,
    ) -> None:
        self.directory = Path(directory)
        self.counters = Counters()
        self._memory = Memory()
        self._pid = os.getpid()
        self._limit = limit
        self._held = places.hold(self.directory)
        full = "" if self._held.writable() else f"{directory} cannot be written"
        self._writer = Writer(self.directory, self._write, limit, self.counters, full)
        if full:
            self._local = False  # what others may write is not read without a lock
        elif local is None:
            self._local = places.is_of_one_machine(self.directory)
        else:
            self._local = local
        if local is False:
            places.share(self.directory)
        self._lock = threading.Lock()
        self._own: Optional[Environment] = None
        self._owner: Optional[IO[bytes]] = None
        self._others: dict[Path, Environment] = {}
        self._left_out: set[Path] = set()
        self._known: set[bytes] = set()  # kinds that our environment has
        self._shared = self._sealed_bytes = 0
        self._ended = False
        try:
            places.seal_orphans(self.directory)
            if self._local:
                path = self.directory / places.SHARED
                try:
                    path.mkdir(exist_ok=True)
                except OSError as error:
                    words = f"no label store can be at {directory}: {error}"
                    raise StoreError(words) from error
                self._own = open_environment(path, create=True)
            self.refresh()
        except BaseException:
            self._release_all()
            raise

    # --- reading ----------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look for environments that others have sealed since."""
        paths = places.sealed_ones(self.directory)
        shared = None if self._local else places.shared_one(self.directory)
        with self._lock:
            if shared is not None and shared not in self._left_out:
                self._left_out.add(shared)
                logger.warning(
                    "%s is of one machine, and left out: edl labels compact %s there lets others "
                    "read it",
                    shared,
                    self.directory,
                )
            for path in self._others.keys() - set(paths):  # they were put together
                release(self._others.pop(path))
            for path in paths:
                if path in self._others or path in self._left_out:
                    continue
                try:
                    self._others[path] = open_environment(path, sealed=True)
                except StoreError as error:
                    self._leave_out(path, error)

    def _leave_out(self, path: Path, error: StoreError) -> None:
        if path not in self._left_out and not self._ended:
            self._left_out.add(path)
            logger.warning("its labels are left out: %s", error)

    def kinds(self) -> list[Kind]:
        """The kinds of labels that there are."""
        found = self._writer.kinds()
        for environment in self.environments():
            found.update(environment.kinds())
        return list(found.values())

    def recall(self, kind: Kind, keys: Sequence[bytes], width: int = 0) -> Recalled:
        """The labels that there are under these keys. ``width``: see Gathered. A record that is
        damaged is none; that is logged.
        """
        gathered = Gathered(kind, len(keys), width, self._memory)

        def reject(key: bytes, record: memoryview) -> None:
            if not is_sound(kind, key, record):
                self._note_damage(key)

        missing: Sequence[int] = range(len(keys))
        waiting = self._writer.records(keys)
        if waiting:
            missing = gathered.fill(missing, keys, map(waiting.get, missing), reject)
        for environment in self.environments():
            if not missing:
                break
            try:
                with environment.reading() as find:
                    records = map(find, [keys[row] for row in missing])
                    missing = gathered.fill(missing, keys, records, reject)
            except StoreError as error:
                self._leave_out(environment.path, error)
        return Recalled(missing, gathered)

    def environments(self) -> list[Environment]:
        """Those that are open, this process's own first."""
        with self._lock:
            own = [] if self._own is None else [self._own]
            return own + list(self._others.values())

    def _note_damage(self, key: bytes) -> None:
        self.counters.damaged += 1
        if self.counters.damaged == 1:
            logger.error(
                "%s holds a record (%s) that is not what was written; it is asked for anew, and so "
                "are others like it: edl labels verify %s says how many there are",
                self.directory,
                key.hex(),
                self.directory,
            )

    @property
    def nbytes(self) -> int:
        """What all of it takes on the disk, of other processes too."""
        return places.nbytes(self.directory)

    # --- adding -----------------------------------------------------------------------------

    def add(self, labels: Labels) -> None:
        """Add labels soon; until then they can be recalled by this process. Waits for nothing. The
        arrays must not change any more.

        They are on the disk, whatever happens then to this process or the machine, after a second
        or 64 MiB, or when :meth:`flush` has returned.
        """
        self._writer.add(labels)

    @property
    def full(self) -> str:
        """Why nothing is added any more; empty if it is."""
        return self._writer.full

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until what has been added is on the disk; whether that was within ``timeout``."""
        return self._writer.flush(timeout)

    def _write(self, labels: Sequence[Labels]) -> int:
        """Write them, or as many as the limit has room for; how many these are. Raises StoreError,
        OSError.
        """
        if self._own is None and self._room() == 0:
            return 0
        if self._write_all(labels):
            return len(labels)
        for written, each in enumerate(labels):
            if not self._write_all([each]):
                return written
        return len(labels)

    def _write_all(self, labels: Sequence[Labels]) -> bool:
        """Whether there was room for all of them; otherwise none is written."""
        own = self._own_environment()
        records: list[tuple[bytes, bytes]] = []
        for each in labels:
            records += zip(each.keys, each.records())
        kinds = {each.kind for each in labels if each.kind.id not in self._known}
        texts = {kind.id: kind.text.encode() for kind in kinds}
        if not own.write(records, texts, limit=self._room()):
            return False
        self._known |= texts.keys()
        self.counters.bytes += sum(len(record) for _, record in records)
        return True

    def _room(self) -> Optional[int]:
        """What this process's own environment may take, with what it has; None: no limit."""
        if self._limit is None:
            return None
        own = 0 if self._own is None else self._own.nbytes
        return max(0, self._limit - places.nbytes(self.directory) + own)

    def write(self, records: Sequence[tuple[bytes, bytes]], texts: Mapping[bytes, bytes]) -> None:
        """Add records as they are, and what is written of their kinds; they are on the disk when it
        returns. Raises StoreError.
        """
        self._own_environment().write(records, texts)

    def _own_environment(self) -> Environment:
        """The one that this process writes to; made now if need be."""
        own = self._own
        if own is None:
            path, owner = places.new_live(self.directory)
            own = open_environment(path, create=True)
            with self._lock:
                self._own, self._owner, self._known = own, owner, set()
        return own

    # --- the end ----------------------------------------------------------------------------

    def share(self, timeout: float = 10.0) -> None:
        """Seal what was added, if it is much beside what this process has sealed before, or nothing
        was added since the last call; otherwise later. Everything that is sealed is an open file of
        everybody's, so there had better not be one for each of hundreds of epochs.
        """
        with self._lock:
            own, added, before = self._own, self.counters.added, self._shared
            self._shared = added
        if own is not None and (added == before or _MUCH * own.nbytes >= self._sealed_bytes):
            self.seal(timeout)

    def seal(self, timeout: float = 10.0) -> None:
        """Let other machines read what this process has added, where they share the file system;
        where they do not, nothing is to be done. When an epoch ends, see :meth:`share`.
        """
        if self._local or not self.flush(timeout) or not self._writer.idle:
            return
        with self._lock:
            own, owner, self._own, self._owner = self._own, self._owner, None, None
        if own is None:
            return
        self._sealed_bytes += own.nbytes
        release(own)
        with contextlib.suppress(OSError):
            places.seal(own.path)
        if owner is not None:
            owner.close()
        self.refresh()

    def close(self, timeout: float = 10.0) -> None:
        """Write what is to be written, for so many seconds at most, and close everything. In a
        process that was forked it does nothing. What is not on the disk then is lost; that is
        logged.
        """
        if self._pid != os.getpid():
            return
        self._ended = True
        if not self._writer.end(timeout):
            logger.warning("%s: what was added last is not on the disk", self.directory)
            return
        self.seal(0.0)
        self._release_all()

    def _release_all(self) -> None:
        with self._lock:
            environments = list(self._others.values())
            environments += [] if self._own is None else [self._own]
            self._own, self._others = None, {}
        for environment in environments:
            release(environment)
        self._held.close()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
