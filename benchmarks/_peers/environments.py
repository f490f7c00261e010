"""The Python environments of peers.py: what it compares with is not put into the user's.

Each is made on first use; what cannot be installed here is left out, with a line that says so.
"""

from __future__ import annotations

import functools
import os
import subprocess
import venv
from pathlib import Path
from typing import Optional

from _teachers import ROOT

PEERS = Path(os.environ.get("EDL_PEERS_VENV", ROOT / ".venv-peers"))
SERVING = Path(os.environ.get("EDL_SERVING_VENV", ROOT / ".venv-serving"))


@functools.cache
def with_package(package: str) -> Optional[str]:
    """The Python of an environment that has this package of the index; None if it cannot be."""
    python = PEERS / "bin/python"
    stamp = PEERS / f".has-{package}"
    if not stamp.exists():
        if not python.exists():
            venv.create(PEERS, with_pip=True)
        if not _succeeds(str(python), "-m", "pip", "install", "-q", "numpy", package):
            return None
        stamp.touch()
    return str(python)


@functools.cache
def with_paddle_serving() -> Optional[str]:
    """The Python of an environment with Paddle Serving, which scripts/paddle-serving makes."""
    installed = SERVING / ".installed"
    if not installed.exists():
        _succeeds(str(ROOT / "scripts/paddle-serving"))
    return str(SERVING / "bin/python") if installed.exists() else None


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
