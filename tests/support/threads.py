"""Threads whose end takes its time after Python is done with them, as the end of those does that a
library has something to clear up for.
"""

import ctypes
import os
import threading

_libc = ctypes.CDLL(None)


class SlowEnds:
    """Threads that take ``seconds`` to end in the system."""

    def __init__(self, seconds):
        self._microseconds = int(seconds * 1e6)
        self._key = ctypes.c_uint()
        # The destructor of this thread-local value is usleep, which is called with the value.
        assert _libc.pthread_key_create(ctypes.byref(self._key), _libc.usleep) == 0
        self.threads = set()

    def here(self):
        """Let the calling thread be one."""
        assert _libc.pthread_setspecific(self._key, ctypes.c_void_p(self._microseconds)) == 0
        self.threads.add(threading.current_thread())

    def ending(self):
        """Those that have ended for Python, and not for the system."""
        tasks = {int(task) for task in os.listdir("/proc/self/task")}
        return [
            thread for thread in self.threads if not thread.is_alive() and thread.native_id in tasks
        ]
