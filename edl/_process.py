"""Child processes, and how a process is told to stop."""

from __future__ import annotations

import ctypes
import signal
import threading

_PR_SET_PDEATHSIG = 1


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT (Ctrl-C) set from now on."""
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    return stop


def die_with_parent() -> None:
    """In a child between fork and exec: be killed when the thread that forked it ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
