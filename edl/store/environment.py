"""One LMDB environment: kinds and records in a directory of its own.

LMDB is a B+ tree in a memory map: readers take no locks and copy nothing, one process writes at a
time, and what is committed stays, whenever a process is killed, for pages are never overwritten
before the commit that replaces them is on the disk. (Howard Chu, "MDB: A Memory-Mapped Database and
Backend for OpenLDAP", 2011.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from edl.errors import StoreError
from edl.store._libraries import import_lmdb
from edl.store.places import DATA, make_lock
from edl.store.records import KIND, Kind, id_of

#: What this module writes; stores of a later one are not touched.
VERSION = 1

_FIRST_MAP = 64 << 20
_MOST_READERS = 1024

#: Bytes of a record, on average, from which on the system reads ahead in the map. (Of small ones,
#: which are read here and there, most of that would be in vain.)
_LARGE = 64 << 10

#: Environments that this process has open: LMDB must not open one twice, because its locks are the
#: process's and closing one copy would end those of the other. By real path, with their users.
_open: dict[str, Environment] = {}
_opening = threading.RLock()


def _begin_anew() -> None:
    """In a process that was forked: whoever has held the lock is not here."""
    global _opening  # noqa: PLW0603
    _opening = threading.RLock()


os.register_at_fork(after_in_child=_begin_anew)


class Environment:
    """See the module. ``path``: its directory. ``sealed``: it does not change any more, so nothing
    in it needs a lock. Made by :func:`open_environment`, ended by :func:`release`.
    """

    def __init__(self, path: Path, sealed: bool, create: bool) -> None:
        self.path = path
        self.pid = os.getpid()
        self.users = 0
        self._sealed = sealed
        self._lmdb = import_lmdb()
        # No transaction of ours may run while the map grows. Taken in this order.
        self._writing, self._resizing = threading.Lock(), threading.Lock()
        self._env = self._open(create, readahead=False)
        # What was read of kinds last, and after which of all transactions.
        self._kinds_of: tuple[int, dict[bytes, Kind]] = -1, {}
        try:
            self._check_length()
            self._open_tables(create)
            if self.nbytes >= _LARGE * max(1, self.count):
                self._env.close()
                self._env = self._open(create, readahead=True)
                self._open_tables(create)
        except self._lmdb.Error as error:
            self._env.close()
            raise StoreError(f"{path} is no label store: {error}") from error
        except BaseException:
            self._env.close()
            raise

    def _open(self, create: bool, readahead: bool) -> Any:
        try:
            if not self._sealed:
                make_lock(self.path)
            return self._lmdb.open(
                str(self.path),
                map_size=max(_FIRST_MAP, 2 * self.nbytes),
                create=create,
                readonly=self._sealed,
                lock=not self._sealed,
                max_dbs=3,
                max_readers=_MOST_READERS,
                readahead=readahead,
                meminit=False,
            )
        except (self._lmdb.Error, OSError) as error:
            raise StoreError(
                f"{self.path} is no label store that can be opened: {error}"
            ) from error

    def _check_length(self) -> None:
        """Reading behind a file's end kills a process, so one that was cut off is not read."""
        pages, size = self._env.info()["last_pgno"] + 1, self._env.stat()["psize"]
        if 0 < self.nbytes < pages * size:
            raise StoreError(f"{self.path / DATA} was cut off: remove it, or restore it")

    def _open_tables(self, create: bool) -> None:
        if not self._sealed:
            self._env.reader_check()  # of processes that were killed
        about = self._env.open_db(b"about", create=create)
        with self._env.begin(write=create, db=about) as transaction:
            said = transaction.get(b"version")
            if said is None and create:
                said = str(VERSION).encode()
                transaction.put(b"version", said)
        if said is None or not bytes(said).isdigit() or int(said) > VERSION:
            raise StoreError(
                f"{self.path} is of format {said!r}, and this EDL reads up to {VERSION}: use a "
                "newer EDL, or another directory"
            )
        self._kinds = self._env.open_db(b"kinds", create=create)
        self._labels = self._env.open_db(b"labels", create=create)

    @property
    def nbytes(self) -> int:
        """What it takes on the disk."""
        try:
            return (self.path / DATA).stat().st_size
        except FileNotFoundError:
            return 0

    # --- reading ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[bytes], Optional[memoryview]]]:
        """What gives the record under a key, or None if there is none. Records are views, which are
        of no use afterwards. Raises StoreError.
        """
        with self._reading(self._labels) as transaction:
            yield transaction.get

    def has(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those of the keys that are here."""
        with self._reading(self._labels) as transaction:
            return {key for key in keys if transaction.get(key) is not None}

    def texts(self) -> dict[bytes, bytes]:
        """What is written of kinds, by id; without what is damaged."""
        with self._reading(self._kinds) as transaction:
            found = {bytes(name): bytes(text) for name, text in transaction.cursor()}
        return {name: text for name, text in found.items() if id_of(text) == name}

    def kinds(self) -> dict[bytes, Kind]:
        """By id. Those that cannot be read, as of a later EDL, are left out."""
        written = self._env.info()["last_txnid"]
        if written != self._kinds_of[0]:
            found = {}
            for name, text in self.texts().items():
                with contextlib.suppress(StoreError):
                    found[name] = Kind.parse(text)
            self._kinds_of = written, found
        return self._kinds_of[1]

    def records(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Copies of all keys and records, or of those whose key begins so, in the order of the
        keys; as they were when the iteration began, if nobody writes in between.
        """
        start = prefix
        while True:
            page: list[tuple[bytes, bytes]] = []
            nbytes = 0
            with self._reading(self._labels) as transaction:
                cursor = transaction.cursor()
                more = cursor.set_range(start) if start else cursor.first()
                while more and nbytes < 16 << 20 and cursor.key()[: len(prefix)] == prefix:
                    page.append((bytes(cursor.key()), bytes(cursor.value())))
                    nbytes += len(page[-1][1])
                    more = cursor.next()
            if not page:
                return
            yield from page
            start = page[-1][0] + b"\0"

    def walk(self) -> None:
        """Visit every key. Raises StoreError; or LMDB ends the process, see ``maintenance``."""
        with self._reading(self._labels) as transaction:
            for _ in transaction.cursor().iternext(keys=True, values=False):
                pass

    def sizes(self) -> dict[bytes, tuple[int, int]]:
        """Records and their bytes, by the kind's id."""
        found: dict[bytes, tuple[int, int]] = {}
        with self._reading(self._labels) as transaction:
            for key, record in transaction.cursor():
                kind = bytes(key[:KIND])
                rows, nbytes = found.get(kind, (0, 0))
                found[kind] = rows + 1, nbytes + len(record)
        return found

    @contextlib.contextmanager
    def _reading(self, table: Any) -> Iterator[Any]:
        """A transaction. Raises StoreError for what LMDB cannot make sense of."""
        try:
            while True:
                with self._resizing:
                    try:
                        begun = self._env.begin(db=table, buffers=True)
                    except self._lmdb.MapResizedError:  # another process has let the map grow
                        begun = None
                    if begun is not None:
                        with begun:
                            yield begun
                        return
                with self._writing:
                    self._resize(0)
        except self._lmdb.Error as error:
            raise StoreError(f"{self.path} cannot be read: {error}") from error

    def _resize(self, nbytes: int) -> None:
        """Let the map have so many bytes; 0: as many as others have given it. While writing."""
        with self._resizing:
            self._env.set_mapsize(nbytes)

    # --- writing ----------------------------------------------------------------------------

    def write(
        self,
        records: Sequence[tuple[bytes, bytes]],
        texts: Mapping[bytes, bytes],
        append: bool = False,
        limit: Optional[int] = None,
    ) -> bool:
        """Add records, all or none; they are on the disk when it returns true. ``texts``: of their
        kinds, as far as these may be new. ``append``: keys come in their order, which fills pages.
        ``limit``: bytes that it may take on the disk; if it would take more, nothing is added, and
        it returns false. Raises StoreError if there is no room on the disk.
        """
        first = True
        with self._writing:
            while True:
                try:
                    if limit is not None and self._env.info()["map_size"] > limit:
                        self._resize(max(1, limit))
                    self._put(records, texts, append)
                    return True
                except self._lmdb.MapFullError:
                    if not (first and self._env.reader_check()):  # pages of processes killed
                        size = self._env.info()["map_size"]
                        if limit is not None and size >= limit:
                            return False
                        need = sum(len(record) for _, record in records)
                        self._resize(max(2 * size, size + 4 * need))
                    first = False
                except self._lmdb.MapResizedError:
                    self._resize(0)
                except (self._lmdb.Error, OSError) as error:
                    free = shutil.disk_usage(self.path).free >> 20
                    raise StoreError(
                        f"{self.path} takes no more labels: {error} ({free} MiB are free there)"
                    ) from error

    def _put(
        self, records: Sequence[tuple[bytes, bytes]], texts: Mapping[bytes, bytes], append: bool
    ) -> None:
        with self._env.begin(write=True) as transaction:
            for name, text in texts.items():
                transaction.put(name, text, db=self._kinds)
            transaction.cursor(self._labels).putmulti(records, append=append)

    def remove(self, keys: Iterable[bytes]) -> None:
        """Remove records. Raises StoreError."""
        try:
            with self._writing, self._env.begin(write=True, db=self._labels) as transaction:
                for key in keys:
                    transaction.delete(key)
        except (self._lmdb.Error, OSError) as error:
            raise StoreError(f"{self.path} cannot be written: {error}") from error

    @property
    def count(self) -> int:
        """How many records it has."""
        with self._reading(self._labels) as transaction:
            return int(transaction.stat(self._labels)["entries"])

    def forget(self) -> None:
        """In a forked process: the parent's is not ours. Takes no lock, which may be held there."""
        self._env.close()

    def close(self) -> None:
        """For ``release``. What reads is waited for: what it reads is unmapped."""
        with self._writing, self._resizing:
            self._env.close()


def open_environment(path: Path, *, sealed: bool = False, create: bool = False) -> Environment:
    """The environment in this directory; the same object for all who have it open in this process.
    Raises StoreError for what is none, was cut off, or is of a later format.
    """
    name = os.path.realpath(path)
    with _opening:
        found = _open.get(name)
        if found is not None and found.pid != os.getpid():
            found.forget()  # the parent's: its memory, but nothing of its file, is here
            del _open[name]
            found = None
        if found is None:
            found = _open[name] = Environment(path, sealed, create)
        found.users += 1
        return found


def release(environment: Environment) -> None:
    """One of those who have it open does not need it any more."""
    with _opening:
        if environment.pid != os.getpid():
            return
        environment.users -= 1
        if not environment.users:
            environment.close()
            _open.pop(os.path.realpath(environment.path), None)
