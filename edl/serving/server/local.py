"""The Unix socket that a teacher listens on for students on its own machine.

It is in a directory of its own that only its user may enter. (An abstract socket would need no
directory, and anybody in the network namespace could connect to it.) The directory goes with the
teacher; one that was killed leaves it, locked by nobody, and the next teacher removes it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import Optional

from edl.serving.wire.local import DIRECTORY, NAME

logger = logging.getLogger(__name__)

#: Seconds for which a directory that nobody has locked may be one that is just being made.
_NEW = 10.0

_BACKLOG = (1 << 31) - 1


class LocalListener:
    """A listening socket at ``path``, until it is closed. Raises OSError if there can be none."""

    def __init__(self) -> None:
        base = _runtime_directory()
        _remove_left_behind(base)
        self._directory = tempfile.mkdtemp(prefix=DIRECTORY, dir=base)  # mode 0700
        self.path = os.path.join(self._directory, NAME)
        self._lock = -1
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.socket.setblocking(False)
            self.socket.bind(self.path)
            self.socket.listen(_BACKLOG)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening, and leave nothing behind."""
        self.socket.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def listen() -> Optional[LocalListener]:
    """A listener; None if there can be none, which harms nobody: students use TCP."""
    try:
        return LocalListener()
    except OSError as error:
        logger.warning("no Unix socket for students on this machine, they use TCP: %s", error)
        return None


def peer_of(sock: socket.socket) -> str:
    """What to call the process at the other end of a Unix socket."""
    size = struct.calcsize("i")  # of struct ucred's first field
    (pid,) = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return f"process {pid}" if pid else "a process of another container"


def _runtime_directory() -> str:
    """Where sockets belong: $XDG_RUNTIME_DIR, or the temporary directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK)
    return runtime if usable else tempfile.gettempdir()


def _remove_left_behind(base: str) -> None:
    """Remove the directories of teachers of this user that were killed."""
    for directory in Path(base).glob(f"{DIRECTORY}*"):
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone
            continue
        try:
            state = os.fstat(lock)
            if state.st_uid == os.getuid() and time.time() - state.st_mtime > _NEW:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except OSError:  # locked: its teacher lives
            pass
        finally:
            os.close(lock)
