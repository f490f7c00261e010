"""Importing Paddle, where it is needed and not before."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from edl.errors import MissingDependencyError


def import_paddle(purpose: str) -> Any:
    """The paddle module. Raises MissingDependencyError, naming ``purpose``, if it is not installed.

    If this is what imports it, Paddle's handler for SIGTERM is taken away again: how a process ends
    is not a library's business.
    """
    if "paddle" in sys.modules:
        return sys.modules["paddle"]
    os.environ.setdefault("GLOG_minloglevel", "2")
    with warnings.catch_warnings():
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
