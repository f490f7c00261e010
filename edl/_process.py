"""Child processes, and how a process is told to stop."""

from __future__ import annotations

import ctypes
import signal
import socket
import threading

_PR_SET_PDEATHSIG = 1


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT (Ctrl-C) set from now on. Call it in the main thread.

    A thread of its own sets it: a handler runs in the main thread, which may be waiting for this
    very event, or for something else in C where a signal to another thread does not wake it.
    """
    stop = threading.Event()
    arrived, signals = socket.socketpair()
    signals.setblocking(False)
    signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: None)

    def listen() -> None:
        while arrived.recv(
            64
        ):  # for ever: signals may well come twice, and must not find it closed
            signals.fileno()  # held open for as long as this thread lives
            stop.set()

    threading.Thread(target=listen, name="edl-signals", daemon=True).start()
    return stop


def die_with_parent() -> None:
    """In a child between fork and exec: be killed when the thread that forked it ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
