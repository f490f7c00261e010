"""Background loops that say what goes wrong, go on, and never die silently."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

from edl._forking import note_thread

logger = logging.getLogger(__name__)

_REMIND_EVERY = 30.0


class Loop:
    """Calls ``step`` again and again on a daemon thread of its own, ``pause`` seconds apart.

    What ``step`` raises is logged, the same words at most every half minute, and the loop goes on:
    one bad entry in a registry, or a bug, must not end what a program relies on. ``step`` may wait
    on ``stopped``, which ``stop`` sets. ``finish`` is called once, at the end, on that thread too:
    what takes time there keeps nobody waiting who does not want to.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], None],
        pause: float,
        finish: Optional[Callable[[], None]] = None,
    ) -> None:
        self.stopped = threading.Event()
        self._step = step
        self._pause = pause
        self._finish = finish
        self._said: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether its thread is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        note_thread(self._thread, self.stopped, threading.Event.is_set)

    def stop(self) -> None:
        """End after the current step. Does not wait: safe with any lock held, and in a step."""
        self.stopped.set()

    def join(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for the thread to end; whether it has."""
        if self.alive and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self.alive

    def _run(self) -> None:
        while not self.stopped.is_set():
            self._try(self._step)
            self.stopped.wait(self._pause)
        if self._finish is not None:
            self._try(self._finish)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        said = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if now - self._said.get(said, -_REMIND_EVERY) >= _REMIND_EVERY:
            self._said = {said: now}
            logger.error("%s failed and goes on: %s", self._thread.name, said, exc_info=error)
