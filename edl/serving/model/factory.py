"""Objects that users name on the command line as ``MODULE:FACTORY``."""

from __future__ import annotations

import importlib
from typing import Any

from edl.errors import ConfigError


def make(target: str, kind: str) -> Any:
    """What ``target``'s factory returns. ``kind``: what is wanted, for the error.

    Raises ConfigError if there is no such factory, or if it cannot be called without arguments.
    """
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot make a {kind} from {target!r}: {error}") from error
