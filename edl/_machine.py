"""Which machine this is."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.lru_cache(maxsize=1)
def boot_id() -> str:
    """The same for all processes of a machine until it is started anew; empty if it is not known.
    Containers have their machine's.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
