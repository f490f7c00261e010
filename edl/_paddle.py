"""Importing Paddle, where it is needed and not before."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from edl.errors import MissingDependencyError

_collecting = threading.Lock()


def import_paddle(purpose: str) -> Any:
    """The paddle module. Raises MissingDependencyError, naming ``purpose``, if it is not installed.

    If this is what imports it, Paddle's handler for SIGTERM is taken away again: how a process ends
    is not a library's business.
    """
    if "paddle" in sys.modules:
        return sys.modules["paddle"]
    os.environ.setdefault("GLOG_minloglevel", "2")
    with warnings.catch_warnings(), _uncollected():
        warnings.simplefilter("ignore")  # about compilers that are not needed here
        try:
            import paddle
        except ImportError as error:
            raise MissingDependencyError(
                f"{purpose} needs Paddle: pip install paddlepaddle, or paddlepaddle-gpu "
                f"({error}; python is {sys.executable})"
            ) from error
    paddle.disable_signal_handler()
    return paddle


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """What is made in here stays as long as the process, so that the garbage collector leaves it
    alone: while it is made, later, and at the process's end. Paddle's hundreds of thousands of
    objects cost half a second of 1.3 s otherwise.
    """
    with _collecting:  # else one thread may find it off, and another turn it on too early
        enabled = gc.isenabled()
        gc.collect()  # what is garbage already would never be found
        gc.disable()
        try:
            yield
            gc.freeze()
        finally:
            if enabled:
                gc.enable()
