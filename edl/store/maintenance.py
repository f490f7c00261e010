"""What is done to whole stores: looking, checking, putting together."""

from __future__ import annotations

import contextlib
import heapq
import operator
import os
import shutil
import signal
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional, TypeVar

from edl.errors import StoreError
from edl.store import places
from edl.store.environment import Environment, open_environment, release
from edl.store.records import KIND, Kind, is_sound
from edl.store.store import LabelStore

#: Bytes that are written at once.
_PAGE = 16 << 20

Record = TypeVar("Record")

#: Told how many records have been looked at so far, of how many.
Progress = Callable[[int, int], None]

#: Records from one time that is told to the next.
_TELL_EVERY = 1000


@dataclass(frozen=True)
class Holding:
    """The labels of one kind: how many, and their bytes."""

    kind: Kind
    rows: int
    nbytes: int


@dataclass
class Verdict:
    """What was found: records, those that are ``damaged``, by the environment's name, and
    environments that cannot be read, with why.
    """

    records: int = 0
    damaged: dict[str, list[bytes]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """How many records are damaged."""
        return sum(map(len, self.damaged.values()))


class Watched:
    """Records that go by, for whoever wants to know how far it is."""

    def __init__(self, progress: Optional[Progress], total: int) -> None:
        self._progress = progress
        self._total = total
        self._seen = 0

    def through(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same ones."""
        for record in records:
            if self._progress is not None and self._seen % _TELL_EVERY == 0:
                self._progress(self._seen, self._total)
            self._seen += 1
            yield record


def _count(paths: Iterable[Path]) -> int:
    """Records in the environments that can be read, damaged or not."""
    count = 0
    for path in paths:
        with contextlib.suppress(StoreError):
            environment = open_environment(path, sealed=path.name.endswith(places.SEALED))
            try:
                count += environment.count
            finally:
                release(environment)
    return count


def open_existing(directory: Path) -> LabelStore:
    """The store in a directory. Raises StoreError if there is none, or reading it would end us."""
    _check_there(directory)
    for path in _environments_in(directory):
        _check_walkable(path)
    return LabelStore(directory)


def _check_there(directory: Path) -> None:
    places.seal_orphans(directory)
    if not _environments_in(directory) and not places.live_ones(directory):
        raise StoreError(f"there is no label store at {directory}")


def _environments_in(directory: Path) -> list[Path]:
    """Of those that have ended, and of all processes of this machine."""
    shared = places.shared_one(directory)
    return [*places.sealed_ones(directory), *([shared] if shared is not None else [])]


def holdings(directory: Path) -> list[Holding]:
    """What a store has, by model and prediction. A row that is in several environments counts in
    each. Raises StoreError.
    """
    kinds: dict[bytes, Kind] = {}
    sizes: dict[bytes, tuple[int, int]] = {}
    with open_existing(directory) as store:
        for environment in store.environments():
            kinds.update(environment.kinds())
            for kind, (rows, nbytes) in environment.sizes().items():
                before = sizes.get(kind, (0, 0))
                sizes[kind] = before[0] + rows, before[1] + nbytes
    found = [Holding(kind, *sizes.get(name, (0, 0))) for name, kind in kinds.items()]
    return sorted(found, key=lambda each: (each.kind.model, each.kind.text))


def verify(directory: Path, remove: bool = False, progress: Optional[Progress] = None) -> Verdict:
    """Read everything. ``remove``: what is damaged is removed, where something can be; otherwise it
    stays, and counts as missing. Raises StoreError if there is no store.
    """
    verdict = Verdict()
    _check_there(directory)
    with contextlib.closing(places.hold(directory)):
        paths = _environments_in(directory)
        watched = Watched(progress, _count(paths))
        for path in paths:
            sealed = path.name.endswith(places.SEALED)
            try:
                _check_walkable(path)
                environment = open_environment(path, sealed=sealed)
            except StoreError as error:
                verdict.unreadable[path.name] = str(error)
                continue
            bad: list[bytes] = []
            try:
                bad += _damaged(environment, verdict, watched)
            except StoreError as error:
                verdict.unreadable[path.name] = str(error)
            else:
                if bad and remove and not sealed:
                    environment.remove(bad)
            finally:
                release(environment)
            if bad:
                verdict.damaged[path.name] = bad
    return verdict


def _check_walkable(path: Path) -> None:
    """Raises StoreError if somebody who reads all of an environment is killed by that: LMDB aborts
    when a page is not what it should be. So that is tried by another process.
    """
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            Environment(path, path.name.endswith(places.SEALED), create=False).walk()
        os._exit(0)  # what it raises is raised here again
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise StoreError(
            f"{path} is damaged: reading it ends with {name}; remove it, or restore it"
        )


def _damaged(environment: Environment, verdict: Verdict, watched: Watched) -> Iterator[bytes]:
    kinds = environment.kinds()
    for key, record in watched.through(environment.records()):
        verdict.records += 1
        if not is_sound(kinds.get(key[:KIND]), key, record):
            yield key


def compact(directory: Path, progress: Optional[Progress] = None) -> tuple[int, int]:
    """Put everything that is sound into one environment of full pages, and remove the others; the
    bytes before and after. Whenever this ends, the store is whole. Raises StoreError if somebody
    uses the store, there is none, one of its environments cannot be opened, or the disk is full.
    """
    _check_there(directory)
    with contextlib.closing(places.hold(directory, alone=True)):
        try:
            places.tidy(directory)
            before = places.nbytes(directory)
            paths = _environments_in(directory)
            for path in paths:
                _check_walkable(path)
            new = directory / f"{uuid.uuid4().hex[:8]}{places.NEW}"
            new.mkdir()
            try:
                _put_together(paths, new, Watched(progress, _count(paths)))
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            new.rename(new.with_suffix(places.SEALED))
            _sync(directory)
            for path in paths:
                shutil.rmtree(path)
        except OSError as error:
            raise StoreError(f"{directory} cannot be written: {error}") from error
        return before, places.nbytes(directory)


def _put_together(paths: Iterable[Path], new: Path, watched: Watched) -> None:
    with contextlib.ExitStack() as stack:
        environments = []
        for path in paths:
            environment = open_environment(path, sealed=path.name.endswith(places.SEALED))
            stack.callback(release, environment)
            environments.append(environment)
        target = open_environment(new, create=True)
        stack.callback(release, target)
        kinds = {name: kind for each in environments for name, kind in each.kinds().items()}
        texts = {name: text for each in environments for name, text in each.texts().items()}
        streams = [environment.records() for environment in environments]
        sorted_records = watched.through(heapq.merge(*streams, key=operator.itemgetter(0)))
        sound = sound_ones(kinds, sorted_records)
        _write(sound, texts, lambda page, new: target.write(page, new, append=True))


def sound_ones(
    kinds: dict[bytes, Kind], records: Iterable[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    """Those that are what was written, each key once."""
    last = b""
    for key, record in records:
        if key != last and is_sound(kinds.get(key[:KIND]), key, record):
            last = key
            yield key, record


def _write(
    records: Iterable[tuple[bytes, bytes]],
    texts: Mapping[bytes, bytes],
    write: Callable[[Sequence[tuple[bytes, bytes]], Mapping[bytes, bytes]], object],
) -> int:
    """Write records a page at a time; how many there were."""
    page: list[tuple[bytes, bytes]] = []
    nbytes = count = 0
    write([], texts)
    for item in records:
        page.append(item)
        nbytes += len(item[1])
        count += 1
        if nbytes >= _PAGE:
            write(page, {})
            page, nbytes = [], 0
    write(page, {})
    return count


def merge(directory: Path, sources: Sequence[Path], progress: Optional[Progress] = None) -> int:
    """Add what other stores have to one, which is made if need be; how many records that were.
    Raises StoreError, for a source that is none or the store itself, too.
    """
    added = 0
    watched = Watched(progress, sum(_count(_environments_in(source)) for source in sources))
    for source in sources:
        if os.path.realpath(source) == os.path.realpath(directory):
            raise StoreError(f"{source} cannot be merged into itself")
        with open_existing(source) as theirs, LabelStore(directory) as ours:
            for environment in theirs.environments():
                records = watched.through(environment.records())
                sound = sound_ones(environment.kinds(), records)
                added += _write(_missing(ours, sound), environment.texts(), ours.write)
    return added


def _missing(
    store: LabelStore, records: Iterable[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    for key, record in records:
        if not any(environment.has([key]) for environment in store.environments()):
            yield key, record


def _sync(directory: Path) -> None:
    """Let a renaming be on the disk."""
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
