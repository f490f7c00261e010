"""The state of numpy's global random numbers as plain values."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from edl.errors import ConfigError


def numpy_state() -> dict[str, Any]:
    """The state of numpy's global generator, by which Paddle's samplers shuffle."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "kind": str(kind),
        "keys": base64.b64encode(np.asarray(keys, "<u4").tobytes()).decode(),
        "position": int(position),
        "gauss": [int(has_gauss), float(cached)],
    }


def set_numpy_state(state: Mapping[str, Any]) -> None:
    """The inverse. Raises ConfigError for something else."""
    try:
        keys = np.frombuffer(base64.b64decode(state["keys"], validate=True), "<u4")
        has_gauss, cached = state["gauss"]
        np.random.set_state((state["kind"], keys, state["position"], has_gauss, cached))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"not a state of numpy's generator: {error}") from error
