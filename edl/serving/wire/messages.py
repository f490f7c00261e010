"""Paddle Serving's ``Request`` and ``Response`` messages of ``GeneralModelService/inference``.

Plain functions between arrays and bytes; no socket is touched here. Field numbers:
Request {1 tensor*, 2 fetch_var_names*, 4 log_id}, Response {1 outputs*, 4 log_id, 5 err_no,
6 err_msg}, ModelOutput {1 tensor*, 2 engine_name}. ``log_id`` is an unsigned 64-bit number that a
server gives back; RpcMeta has another of its own.

More are ours. Between processes on one machine (see ``local``): Tensor 1000 (see ``tensor``), and
Request {1000 room}: {memory's number, offset, bytes}, three varints, where the answer may be laid.
For a timeline (see ``times``): Request {1001} and Response {1000}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import numpy as np

from edl.errors import WireError
from edl.serving.wire import protobuf as pb
from edl.serving.wire.tensor import (
    Buffer,
    Effort,
    Memories,
    Place,
    decode_tensor,
    encode_tensor,
    size_of,
    view_of,
)
from edl.serving.wire.times import TIMES, WANTED, ServerTimes, decode_times, encode_wish

SERVICE = "baidu.paddle_serving.predictor.general_model.GeneralModelService"
METHOD = "inference"

#: Paddle Serving declares two methods with the same messages; ``debug`` computes the same.
METHODS = (METHOD, "debug")

#: What Paddle Serving's own server calls the one model of its usual pipeline.
ENGINE = "general_infer_0"

_TENSOR, _FETCH_NAMES, _ENGINE_NAME, _LOG_ID = 1, 2, 2, 4
_OUTPUTS, _ERR_NO, _ERR_MSG = 1, 5, 6
_ROOM = 1000

_NO_PLACES: Mapping[str, Place] = {}


class Room(NamedTuple):
    """Memory of the client's where an answer may be laid: the memory's number, offset, bytes."""

    number: int
    offset: int
    size: int


@dataclass
class Request:
    """Arrays by feed name (alias), and the outputs that are wanted (all when empty).

    ``room``: where the answer may be laid, if it fits. ``times``: whether it is to say where its
    time went.
    """

    feeds: dict[str, np.ndarray]
    fetches: list[str] = field(default_factory=list)
    log_id: int = 0
    room: Optional[Room] = None
    times: bool = False


@dataclass
class Response:
    """Arrays by fetch name (alias); ``err_no`` other than 0 is the server's refusal."""

    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    err_no: int = 0
    err_msg: str = ""
    log_id: int = 0
    times: Optional[ServerTimes] = None


def encode_request(
    feeds: Mapping[str, np.ndarray],
    fetches: Sequence[str],
    places: Mapping[str, Place] = _NO_PLACES,
    room: Optional[Room] = None,
    times: bool = False,
) -> list[Buffer]:
    """A ``Request`` as buffers that reference the arrays' memory (see ``encode_tensor``).
    ``places``: where the data of some of them lie. ``times``: ask where its time goes.
    """
    buffers = _encode_tensors(feeds, places)
    buffers.append(b"".join(pb.text(_FETCH_NAMES, name) for name in fetches))
    if room is not None:
        buffers.append(pb.blob(_ROOM, b"".join(map(pb.encode_varint, room))))
    if times:
        buffers.append(encode_wish())
    return buffers


def decode_request(
    message: memoryview, effort: Optional[Effort] = None, memories: Optional[Memories] = None
) -> Request:
    """A ``Request``; arrays are views of ``message`` where the format allows, or of one of the
    ``memories`` that its sender maps, too.

    Raises WireError for what is malformed, TooMuchEffort for what takes more than ``effort``.
    """
    feeds: dict[str, np.ndarray] = {}
    fetches = []
    log_id = 0
    room: Optional[Room] = None
    times = False
    for number, _, value in pb.fields(message):
        if number == _TENSOR:
            _add(feeds, pb.as_bytes(number, value), effort, memories)
        elif number == _FETCH_NAMES:
            fetches.append(pb.as_text(number, value))
        elif number == _LOG_ID:
            log_id = pb.as_int(number, value)
        elif number == _ROOM:
            room = _decode_room(pb.as_bytes(number, value), memories or {})
        elif number == WANTED:
            times = bool(pb.as_int(number, value))
    return Request(feeds, fetches, log_id, room, times)


def _decode_room(value: memoryview, memories: Memories) -> Room:
    number, at = pb.decode_varint(value, 0)
    offset, at = pb.decode_varint(value, at)
    size, _ = pb.decode_varint(value, at)
    view_of(memories, (number, offset), size)
    return Room(number, offset, size)


def encode_response(
    outputs: Mapping[str, np.ndarray],
    log_id: int = 0,
    places: Mapping[str, Place] = _NO_PLACES,
) -> list[Buffer]:
    """A ``Response`` with one model's outputs, as buffers that reference the arrays' memory.
    ``places``: where the data of some of them lie.
    """
    tensors = [*_encode_tensors(outputs, places), pb.text(_ENGINE_NAME, ENGINE)]
    buffers = [pb.prefix(_OUTPUTS, size_of(tensors)), *tensors]
    if log_id:
        buffers.append(pb.integer(_LOG_ID, log_id))
    return buffers


def encode_error(err_no: int, err_msg: str) -> list[Buffer]:
    """A ``Response`` that refuses the request."""
    return [pb.integer(_ERR_NO, err_no) + pb.text(_ERR_MSG, err_msg)]


def decode_response(
    message: memoryview, memories: Optional[Memories] = None, times: bool = False
) -> Response:
    """A ``Response``; arrays are views of ``message`` where the format allows, or of one of the
    ``memories`` that its sender maps, too. ``times``: they were asked for; else nobody looks.
    """
    response = Response()
    for number, _, value in pb.fields(message):
        if number == _OUTPUTS:
            for inner, _, tensor in pb.fields(pb.as_bytes(number, value)):
                if inner == _TENSOR:
                    _add(response.outputs, pb.as_bytes(inner, tensor), None, memories)
        elif number == _LOG_ID:
            response.log_id = pb.as_int(number, value)
        elif number == _ERR_NO:
            response.err_no = pb.as_signed32(pb.as_int(number, value))
        elif number == _ERR_MSG:
            response.err_msg = pb.as_text(number, value)
        elif times and number == TIMES:
            response.times = decode_times(pb.as_bytes(number, value))
    return response


def _encode_tensors(arrays: Mapping[str, np.ndarray], places: Mapping[str, Place]) -> list[Buffer]:
    buffers: list[Buffer] = []
    for name, array in arrays.items():
        tensor = encode_tensor(name, array, place=places.get(name))
        buffers.append(pb.prefix(_TENSOR, size_of(tensor)))
        buffers.extend(tensor)
    return buffers


def _add(
    arrays: dict[str, np.ndarray],
    message: memoryview,
    effort: Optional[Effort],
    memories: Optional[Memories],
) -> None:
    tensor = decode_tensor(message, effort, memories)
    if tensor.alias in arrays:
        raise WireError(f"tensor {tensor.alias!r} occurs twice in one message")
    arrays[tensor.alias] = tensor.array
