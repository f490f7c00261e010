"""The modules of a demo, which are no package; others that tests cannot do without."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest


def need(name: str) -> None:
    """Skip a module's tests where a package is not installed. It is not imported, as it is by
    pytest.importorskip: in processes that run none of these tests, seconds.
    """
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)


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
