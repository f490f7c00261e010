"""Importing the store's libraries, where they are needed and not before."""

from __future__ import annotations

import functools
from typing import Any

from edl.errors import MissingDependencyError


@functools.cache
def import_lmdb() -> Any:
    """The lmdb module. Raises MissingDependencyError if it is not installed."""
    try:
        import lmdb
    except ImportError as error:
        raise _missing(error) from error
    return lmdb


@functools.cache
def import_xxhash() -> Any:
    """The xxhash module. Raises MissingDependencyError if it is not installed."""
    try:
        import xxhash
    except ImportError as error:
        raise _missing(error) from error
    return xxhash


def _missing(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"a label store needs lmdb and xxhash: pip install 'paddle-edl[store]' ({error})"
    )
