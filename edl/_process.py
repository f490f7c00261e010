"""Child processes, and how a process is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

#: Arguments: the process that has started this one, then the program and its own.
_BECOME = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
os.setsid()
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


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


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program, in a session of its own, that is killed when the thread that starts it ends
    (Linux). ``options`` are Popen's: where its output goes, its environment.

    It asks for that itself: what is started is a Python that does so, and then becomes the program.
    A ``preexec_fn`` would need a fork (and so would ``close_fds`` in Python 3.9). gRPC starts its
    threads anew after each, also in what is to become another program in a moment: they find their
    files closed, and abort it.
    """
    tied = [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command]
    return subprocess.Popen(tied, close_fds=False, **options)
