"""The modules of a demo, which are no package."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace


def modules_of(directory: Path, names: Sequence[str]) -> SimpleNamespace:
    """Those of these names. Other demos have some of the same names, so none of them stays where
    they would be found.
    """
    sys.path.insert(0, str(directory))
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(directory))
        for name in names:
            sys.modules.pop(name, None)
