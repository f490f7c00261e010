"""Control messages between the front process and a worker: JSON, one length-prefixed object each.

Tensors do not pass here: a message says where in an arena they are.
"""

from __future__ import annotations

import json
import math
import signal
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np

from edl.serving.wire.arena import Arena
from edl.serving.wire.description import TensorSpec
from edl.serving.wire.narrow import widen
from edl.serving.wire.tensor import own_copy

LENGTH = struct.Struct("!I")

#: Bytes that are received in one system call, at most.
READ_SIZE = 64 << 10

#: Memory of clients on this machine by its number, which is not 0.
Shared = Mapping[int, Arena]

_encode = json.JSONEncoder(separators=(",", ":")).encode


def pack(message: dict[str, Any]) -> bytes:
    """One message as bytes."""
    body = _encode(message).encode()
    return LENGTH.pack(len(body)) + body


class Inbox:
    """Messages out of bytes, as these come."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """More bytes have come."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def next(self) -> Optional[dict[str, Any]]:
        """The next message, if all of it has come."""
        start = self._at + LENGTH.size
        if len(self._data) < start:
            return None
        stop = start + LENGTH.unpack_from(self._data, self._at)[0]
        if len(self._data) < stop:
            return None
        self._at = stop
        return json.loads(self._data[start:stop])


class Front:
    """The front process, as its children see it: a blocking socket. One thread receives, any of
    them may send.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._inbox = Inbox()
        self._sending = threading.Lock()

    def receive(self) -> Optional[dict[str, Any]]:
        """Its next message; None when it has gone."""
        while (message := self._inbox.next()) is None:
            data = self._socket.recv(READ_SIZE)
            if not data:
                return None
            self._inbox.feed(data)
        return message

    def receive_now(self) -> Optional[dict[str, Any]]:
        """Its next message, if that is there already."""
        message = self._inbox.next()
        if message is None:
            try:
                self._inbox.feed(self._socket.recv(READ_SIZE, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return None
            message = self._inbox.next()
        return message

    def send(self, message: dict[str, Any]) -> None:
        """Say something to it. Raises OSError if it has gone."""
        with self._sending:
            self._socket.sendall(pack(message))


def ignore_signals() -> None:
    """The front decides when its processes end. A Ctrl-C in a terminal, or a service manager's
    SIGTERM, reaches all processes of a group.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def tensor_ref(offset: int, array: np.ndarray, number: int = 0) -> list[Any]:
    """What a message says of an array that lies at ``offset`` of an arena: that of the two sides,
    or the memory of a client that has this number.
    """
    ref = [offset, array.dtype.str, list(array.shape)]
    return [*ref, number] if number else ref


def size_of(ref: Sequence[Any]) -> int:
    """Bytes of the array that a message speaks of."""
    return math.prod(ref[2]) * np.dtype(ref[1]).itemsize


def number_of(ref: Sequence[Any]) -> int:
    """The number of the client's memory that a message speaks of; 0 if it is none."""
    return ref[3] if len(ref) > 3 else 0


def resolve(arena: Arena, ref: Sequence[Any]) -> np.ndarray:
    """The array that a message speaks of, as a view of the arena."""
    offset, dtype, shape = ref[:3]
    return np.ndarray(shape, np.dtype(dtype), arena.view(offset, size_of(ref)))


def feed(inputs: Arena, ref: Sequence[Any], shared: Shared) -> np.ndarray:
    """The same of a feed, wherever it lies. A client may change its own memory at any time, so what
    a model may use as indices is copied before anybody looks at it: all but floats.
    """
    number = number_of(ref)
    if not number:
        return resolve(inputs, ref)
    array = resolve(shared[number], ref)
    return array if array.dtype.kind == "f" else own_copy(array)


def gather(
    inputs: Arena,
    requests: Sequence[Mapping[str, Sequence[Any]]],
    specs: Mapping[str, TensorSpec],
    shared: Shared,
) -> dict[str, np.ndarray]:
    """The feeds of a batch, those in ``specs``: the requests' rows one after the other. The arrays
    of a single request are views of the memory they lie in, unless they came narrower than the
    model takes them. Sequences are filled up to the longest.
    """
    feeds = {}
    for name, spec in specs.items():
        if name in requests[0] or not spec.optional:
            arrays = [widen(feed(inputs, each[name], shared), spec.dtype) for each in requests]
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
