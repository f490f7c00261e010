"""Where in a store's directory what is: which environments there are, and who may write which.

================  ================================================================================
``shared/``       of all processes of this machine, where its disk is the machine's own
``NAME.live/``    of the one process that has made it, where machines share the file system: LMDB
                  cannot be written, or be read while it is written, by two machines
``NAME.sealed/``  a ``live`` one that is finished: it does not change any more, and all read it
``machines``      a file that is there when several machines use the store: then nobody uses
                  ``shared``, also where the disk is a machine's own
``in-use``        locked, shared, by all who have the store open
================  ================================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import uuid
from pathlib import Path
from typing import IO, Optional

from edl._machine import boot_id
from edl.errors import StoreError

SHARED, LIVE, SEALED = "shared", ".live", ".sealed"
NEW = ".new"  # what is being made, and then given another name
DATA, _LOCK = "data.mdb", "lock.mdb"  # LMDB's files in each of them
LOCK_BYTES = 72 << 10  # for 1,024 readers and more
_OWNER, _IN_USE, _MACHINES = "owner", "in-use", "machines"

#: File systems that are one machine's own.
_LOCAL = {
    *("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs"),
    *("tmpfs", "xfs", "zfs"),
}


def is_local(path: Path) -> bool:
    """Whether the file system of ``path`` is this machine's own, as far as is known."""
    return _filesystem(path) in _LOCAL


def is_of_one_machine(directory: Path) -> bool:
    """Whether all who use a store are on this machine, as far as is known. If not, the others are
    told, of whom one may have the disk.
    """
    if is_local(directory) and not (directory / _MACHINES).exists():
        return True
    share(directory)
    return False


def share(directory: Path) -> None:
    """Let it be known that several machines use the store."""
    with contextlib.suppress(OSError):
        (directory / _MACHINES).touch()


def _filesystem(path: Path) -> str:
    """The type of the file system that ``path`` is on; empty if it is not known."""
    real, best, kind = os.path.realpath(path), "", ""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def hold(directory: Path, *, alone: bool = False) -> IO[bytes]:
    """Say that the store is in use, until the file is closed; ``alone``: by nobody else. The file
    is not ``writable`` where the store is not. Raises StoreError if it is used by others.
    """
    path = directory / _IN_USE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held: IO[bytes] = open(path, "ab")  # noqa: SIM115 (closed by who asked)
    except OSError as error:
        if alone or not path.exists():
            raise StoreError(f"no label store can be at {directory}: {error}") from error
        held = open(path, "rb")  # noqa: SIM115
    try:
        fcntl.flock(held, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held.close()
        raise StoreError(
            f"the label store {directory} is in use: wait until its readers have ended"
        ) from error
    except OSError:  # a file system without locks
        pass
    return held


def make_lock(environment: Path) -> None:
    """LMDB's lock file, with room on the disk for all of it: LMDB maps it, and what is written to a
    map without room on the disk ends the process. Raises OSError.
    """
    lock = environment / _LOCK
    if lock.exists():
        return
    part = environment / f"{uuid.uuid4().hex[:8]}.part"
    try:
        part.write_bytes(bytes(LOCK_BYTES))
        with contextlib.suppress(FileExistsError):  # somebody else's, at this moment
            os.link(part, lock)
    finally:
        part.unlink(missing_ok=True)


def new_live(directory: Path) -> tuple[Path, IO[bytes]]:
    """A directory for an environment of this process alone, and what says so while it is open."""
    name = f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    path, unowned = directory / f"{name}{LIVE}", directory / f"{name}{NEW}"
    try:
        unowned.mkdir()
        owner = open(unowned / _OWNER, "ab")  # noqa: SIM115 (closed by who asked)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unowned.rename(path)
    except OSError as error:
        raise StoreError(f"no label store can be at {directory}: {error}") from error
    return path, owner


def _machine() -> str:
    """The machine, until it is started anew. Another one may have the same host name, and where a
    file system keeps locks to each machine, it would seem to have died.
    """
    return f"{socket.gethostname()}-{boot_id()[:8]}"


def seal(live: Path) -> Path:
    """Nobody writes there any more; where it is now."""
    sealed = live.with_name(live.name[: -len(LIVE)] + SEALED)
    live.rename(sealed)
    return sealed


def seal_orphans(directory: Path) -> None:
    """Seal what processes of this machine have left behind that were killed."""
    for live in live_ones(directory):
        if not live.name.startswith(f"{_machine()}-"):
            continue  # whether a process of another machine is alive cannot be told
        with contextlib.suppress(OSError), open(live / _OWNER, "ab") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seal(live)


def tidy(directory: Path) -> None:
    """Remove what was begun and never finished, and seal all that is live, for whoever holds the
    store alone: those of other machines, too, whose processes have gone with their names.
    """
    for path in directory.glob(f"*{NEW}"):
        shutil.rmtree(path)
    for live in live_ones(directory):
        seal(live)


def live_ones(directory: Path) -> list[Path]:
    """Those that some process writes, or has written."""
    return sorted(_ending_with(LIVE, directory))


def sealed_ones(directory: Path) -> list[Path]:
    """Those that do not change any more, the newest first."""
    found = filter(Path.is_dir, _ending_with(SEALED, directory))
    return sorted(found, key=_age, reverse=True)


def _ending_with(end: str, directory: Path) -> list[Path]:
    """What has such a name; nothing, if the directory is not there, or cannot be read."""
    try:
        return [directory / name for name in os.listdir(directory) if name.endswith(end)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def shared_one(directory: Path) -> Optional[Path]:
    """That of all processes of a machine, if there is one."""
    path = directory / SHARED
    return path if path.is_dir() else None


def nbytes(directory: Path) -> int:
    """What all environments of a store take on the disk, whoever fills them."""
    total = 0
    for path in directory.glob(f"*/{DATA}"):
        with contextlib.suppress(OSError):  # sealed, or put together, at this moment
            total += path.stat().st_size
    return total
