"""Control messages between the front process and a worker: JSON, one length-prefixed object each.

Tensors do not pass here: a message says where in an arena they are.
"""

from __future__ import annotations

import json
import math
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np

from edl.serving.wire.description import TensorSpec
from edl.serving.worker.arena import Arena

LENGTH = struct.Struct("!I")


def pack(message: dict[str, Any]) -> bytes:
    """One message as bytes."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def receive(front: socket.socket) -> Optional[dict[str, Any]]:
    """The front's next message, in a process of its; None when it has gone."""
    head = _receive_exactly(front, LENGTH.size)
    if head is None:
        return None
    body = _receive_exactly(front, *LENGTH.unpack(head))
    return None if body is None else json.loads(body)


def _receive_exactly(front: socket.socket, size: int) -> Optional[bytes]:
    data = b""
    while len(data) < size:  # once, nearly always
        more = front.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            return None
        data += more
    return data


def ignore_signals() -> None:
    """The front decides when its processes end. A Ctrl-C in a terminal, or a service manager's
    SIGTERM, reaches all processes of a group.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def tensor_ref(offset: int, array: np.ndarray) -> list[Any]:
    """What a message says of an array that lies at ``offset`` of an arena."""
    return [offset, array.dtype.str, list(array.shape)]


def address(array: np.ndarray) -> int:
    """Where an array's memory begins in this process."""
    return array.__array_interface__["data"][0]


def resolve(arena: Arena, ref: Sequence[Any]) -> np.ndarray:
    """The array that a message speaks of, as a view of the arena."""
    offset, dtype, shape = ref
    kind = np.dtype(dtype)
    return np.frombuffer(arena.view(offset, math.prod(shape) * kind.itemsize), kind).reshape(shape)


def gather(
    inputs: Arena,
    requests: Sequence[Mapping[str, Sequence[Any]]],
    specs: Mapping[str, TensorSpec],
) -> dict[str, np.ndarray]:
    """The feeds of a batch, those in ``specs``: the requests' rows one after the other. The arrays
    of a single request are views of the arena. Sequences are filled up to the longest.
    """
    feeds = {}
    for name, spec in specs.items():
        if name in requests[0] or not spec.optional:
            arrays = [resolve(inputs, request[name]) for request in requests]
            feeds[name] = arrays[0] if len(arrays) == 1 else _joined(arrays, spec.pad)
    return feeds


def _joined(arrays: Sequence[np.ndarray], pad: Union[int, float, None]) -> np.ndarray:
    if pad is None or len({array.shape[1] for array in arrays}) == 1:
        return np.concatenate(arrays)
    rows, longest = sum(map(len, arrays)), max(array.shape[1] for array in arrays)
    joined = np.full((rows, longest, *arrays[0].shape[2:]), pad, arrays[0].dtype)
    start = 0
    for array in arrays:
        joined[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return joined
