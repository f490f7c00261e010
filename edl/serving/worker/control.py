"""Control messages between the front process and a worker: JSON, one length-prefixed object each.

Tensors do not pass here: a message says where in an arena they are.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edl.serving.worker.arena import Arena

LENGTH = struct.Struct("!I")


def pack(message: dict[str, Any]) -> bytes:
    """One message as bytes."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def tensor_ref(offset: int, array: np.ndarray) -> list[Any]:
    """What a message says of an array that lies at ``offset`` of an arena."""
    return [offset, array.dtype.str, list(array.shape)]


def resolve(arena: Arena, ref: Sequence[Any]) -> np.ndarray:
    """The array that a message speaks of, as a view of the arena."""
    offset, dtype, shape = ref
    kind = np.dtype(dtype)
    return np.frombuffer(arena.view(offset, math.prod(shape) * kind.itemsize), kind).reshape(shape)


def gather(inputs: Arena, requests: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, np.ndarray]:
    """The feeds of a batch: the requests' rows one after the other, by feed name. The arrays of a
    single request are views of the arena.
    """
    feeds = {}
    for name in requests[0]:
        arrays = [resolve(inputs, request[name]) for request in requests]
        feeds[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return feeds
