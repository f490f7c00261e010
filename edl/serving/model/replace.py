"""Replacing a directory as a whole: whoever looks finds the old one or the new one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux: linux/fcntl.h, linux/fs.h
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@contextlib.contextmanager
def replacing(target: Path, *stale: str) -> Iterator[Path]:
    """A directory to write into, which becomes ``target`` when the block ends.

    It has copies of what is in ``target`` now, except files with names like one of ``stale`` (as
    in ``*.json``). If the block raises, ``target`` stays as it is, and so it does if the program is
    killed: then a directory ``.NAME-...`` may be left beside it.

    The exchange is one step where the file system can do that: on Linux ext4, xfs, btrfs and tmpfs,
    not NFS. Elsewhere it is two, and a program that is killed between them leaves the old directory
    as ``.NAME-.../old`` and the new one, complete, next to that.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
        fresh = Path(beside) / "new"
        if target.exists():
            shutil.copytree(target, fresh, symlinks=True, ignore=shutil.ignore_patterns(*stale))
        else:
            fresh.mkdir()
        yield fresh
        for path in (*fresh.rglob("*"), fresh):
            if not path.is_symlink() and (path.is_file() or path.is_dir()):
                _sync(path)
        _put_in_place(fresh, target)
        _sync(target.parent)


def _put_in_place(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
    elif not _exchange(fresh, target):
        old = target.rename(fresh.with_name("old"))
        try:
            fresh.rename(target)
        except OSError:
            old.rename(target)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places, at once; False if this system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = os.fsencode(one), os.fsencode(other)
    if rename and rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno() if rename else errno.ENOSYS  # an old C library does not have it
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sync(path: Path) -> None:
    """Have it on the disk before it is shown: a power failure must not leave empty files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
