"""Paddle Serving's ``Tensor`` message to and from numpy arrays.

Source of the format: ``general_model_service.proto`` of Paddle Serving 0.9 (field numbers and
element types are restated in the tables below).

=========  ======  ==============================  ==========================================
numpy      type    data travels in                 copy when encoding
=========  ======  ==============================  ==========================================
int64      0       1 ``int64_data`` (varints)      yes, vectorised
float32    1       2 ``float_data``                no: the array's memory is sent as it is
int32      2       3 ``int_data`` (varints)        yes, vectorised
float64    3       4 ``float64_data``              no
int16      4       15 ``tensor_content``           no
float16    5       15 ``tensor_content``           no
uint16     6       15 ``tensor_content``           no (bfloat16's bits, as Paddle hands them out)
uint8      7       15 ``tensor_content``           no
int8       8       15 ``tensor_content``           no
bool       9       6 ``bool_data``                 no
str        20      9 ``data``                      yes
=========  ======  ==============================  ==========================================

An array that is not C-contiguous or not little-endian is copied once to make it so.

Between processes on one machine the data may lie in memory that both map (see ``local``). Then the
message says where, in a field of ours: 1000 {memory's number, offset}, two varints; and an array of
any type but strings lies there as it is in numpy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Optional, Union

import numpy as np

from edl.errors import WireError
from edl.serving.wire import protobuf as pb
from edl.serving.wire.arena import ALIGNMENT, Arena

#: What a message is made of: pass the list to ``sendmsg``; array memory is referenced, not copied.
Buffer = Union[bytes, memoryview]

INT64, FP32, INT32, FP64, INT16, FP16, BF16, UINT8, INT8, BOOL = range(10)
STRING = 20

#: Linux takes at most this many buffers in one ``sendmsg``.
IOV_MAX = 1024

#: A string costs a Python object each; more than this in one tensor is refused.
MAX_STRINGS = 1 << 16
MAX_DIMENSIONS = 32

#: What a field costs in an ``Effort``.
_FIELD = 64

_DTYPES: dict[int, np.dtype] = {
    INT64: np.dtype("<i8"),
    FP32: np.dtype("<f4"),
    INT32: np.dtype("<i4"),
    FP64: np.dtype("<f8"),
    INT16: np.dtype("<i2"),
    FP16: np.dtype("<f2"),
    BF16: np.dtype("<u2"),
    UINT8: np.dtype("u1"),
    INT8: np.dtype("i1"),
    BOOL: np.dtype("?"),
}
_ELEM_TYPES = {dtype: elem_type for elem_type, dtype in _DTYPES.items()}

_INT64_DATA, _FLOAT_DATA, _INT_DATA, _FLOAT64_DATA, _BOOL_DATA = 1, 2, 3, 4, 6
_STRING_DATA, _ELEM_TYPE, _SHAPE, _NAME, _ALIAS_NAME, _CONTENT = 9, 10, 11, 13, 14, 15

_PLACE = 1000
_AS_THEY_ARE = (_CONTENT, _PLACE)

_DATA_FIELD = {
    INT64: _INT64_DATA,
    FP32: _FLOAT_DATA,
    INT32: _INT_DATA,
    FP64: _FLOAT64_DATA,
    BOOL: _BOOL_DATA,
}
#: What is converted rather than viewed.
_CONVERTED = (_INT64_DATA, _INT_DATA, _BOOL_DATA, _STRING_DATA)

#: The wire type of one element when a sender does not pack them (allowed by proto3).
_UNPACKED = {
    _INT64_DATA: pb.VARINT,
    _FLOAT_DATA: pb.FIXED32,
    _INT_DATA: pb.VARINT,
    _FLOAT64_DATA: pb.FIXED64,
    _BOOL_DATA: pb.VARINT,
}

#: Fields that hold data, packed.
_PACKED = frozenset((*_UNPACKED, _CONTENT))

#: Bytes of what follows the data, beyond which it is not remembered.
_LONGEST_TRAILER = 256


#: Where the data of an array lie: the memory's number, and the offset there.
Place = tuple[int, int]

#: Memory that both sides map, by its number.
Memories = Mapping[int, Arena]


class TooMuchEffort(Exception):
    """Decoding a message would take more than it may; nothing is wrong with it so far."""


@dataclass
class Effort:
    """What decoding may take: ``left`` bytes that are converted rather than viewed (integers,
    strings, data in pieces), a field for _FIELD of them. A mebibyte is about 20 ms.
    """

    left: int


@dataclass(frozen=True)
class NamedTensor:
    """One decoded tensor: the model's own name, the name users say, and the values."""

    name: str
    alias: str
    array: np.ndarray


def wire_dtype(elem_type: int) -> np.dtype:
    """The numpy dtype of an element type; raises WireError for one that is not supported."""
    if elem_type == STRING:
        return np.dtype(object)
    try:
        return _DTYPES[elem_type]
    except KeyError:
        raise WireError(f"element type {elem_type} is not supported") from None


def elem_type_of(dtype: np.dtype) -> int:
    """The element type that carries a numpy dtype; raises WireError if none does."""
    if dtype.kind in "US" or dtype.kind == "O":
        return STRING
    try:
        return _ELEM_TYPES[dtype if dtype.isnative else dtype.newbyteorder("<")]
    except KeyError:
        supported = ", ".join(str(known) for known in _ELEM_TYPES)
        raise WireError(
            f"dtype {dtype} cannot travel in Paddle Serving's protocol; convert it to one of "
            f"{supported} or strings"
        ) from None


def size_of(buffers: Iterable[Buffer]) -> int:
    """Total bytes of an encoded message."""
    return sum(map(len, buffers))


def drop_sent(pending: list[memoryview], sent: int) -> None:
    """Remove the first ``sent`` bytes from ``pending``, as after a ``sendmsg`` of some of them."""
    done = 0
    while done < len(pending) and sent >= len(pending[done]):
        sent -= len(pending[done])
        done += 1
    del pending[:done]
    if sent:
        pending[0] = pending[0][sent:]


def encode_tensor(
    name: str, array: np.ndarray, alias: Optional[str] = None, place: Optional[Place] = None
) -> list[Buffer]:
    """A ``Tensor`` message as a list of buffers, the array's memory among them, unless its data
    lie in a ``place`` already.

    The caller must not change the array until the buffers have been sent.
    Raises WireError if the array's dtype has no place in the protocol.
    """
    elem_type = elem_type_of(array.dtype)
    if elem_type == STRING:
        buffers: list[Buffer] = [_encode_strings(name, array)]
    elif place is not None:
        buffers = [pb.blob(_PLACE, b"".join(map(pb.encode_varint, place)))]
    else:
        buffers = _encode_data(elem_type, array)
    buffers.append(_trailer(elem_type, array.shape, name, name if alias is None else alias))
    return buffers


@functools.lru_cache(maxsize=1024)
def _trailer(elem_type: int, shape: tuple[int, ...], name: str, alias: str) -> bytes:
    """What follows the data; the same for one batch after the other."""
    trailer = pb.integer(_ELEM_TYPE, elem_type) if elem_type else b""
    if shape:
        trailer += pb.blob(_SHAPE, b"".join(pb.encode_varint(size) for size in shape))
    return trailer + pb.text(_NAME, name) + pb.text(_ALIAS_NAME, alias)


def _encode_data(elem_type: int, array: np.ndarray) -> list[Buffer]:
    flat = np.ascontiguousarray(array, dtype=_DTYPES[elem_type]).reshape(-1)
    if not flat.size:
        return []
    octets = pb.encode_varints(flat) if elem_type in (INT64, INT32) else flat.view(np.uint8)
    memory = octets.data
    return [pb.prefix(_DATA_FIELD.get(elem_type, _CONTENT), len(memory)), memory]


def _encode_strings(name: str, array: np.ndarray) -> bytes:
    encoded = []
    for item in array.reshape(-1).tolist():
        if not isinstance(item, (str, bytes)):
            raise WireError(
                f"tensor {name!r} holds Python objects of type {type(item).__name__}; "
                "only strings can travel as objects"
            )
        try:
            octets = item.encode() if isinstance(item, str) else item
        except UnicodeEncodeError as error:
            raise WireError(f"tensor {name!r} holds text that is none: {error}") from None
        encoded.append(pb.blob(_STRING_DATA, octets))
    return b"".join(encoded)


def decode_tensor(
    message: memoryview, effort: Optional[Effort] = None, memories: Optional[Memories] = None
) -> NamedTensor:
    """A ``Tensor`` message; the array is a view of ``message`` wherever the format allows, or of
    one of the ``memories``: then whoever else maps it may change it at any time.

    The view has the alignment the sender gave it: copy it if you compute on it a lot.
    Raises WireError if anything is malformed or the shape does not match the data, TooMuchEffort
    if decoding takes more than ``effort``.
    """
    found = _in_one_piece(message)
    if found is not None:
        number, octets, said = found
        if effort is not None:
            effort.left -= _FIELD + said.effort + (len(octets) if number in _CONVERTED else 0)
            if effort.left < 0:
                raise TooMuchEffort
        shape = list(said.shape)
        return _named(said.name, said.alias, said.elem_type, shape, {number: [octets]}, [])
    return _decode_fields(message, effort, memories)


def _decode_fields(
    message: memoryview, effort: Optional[Effort], memories: Optional[Memories] = None
) -> NamedTensor:
    """The same for fields in any order and number."""
    found = _read_fields(message, math.inf if effort is None else effort.left)
    if effort is not None:
        effort.left = _left_after_joining(effort.left - found.effort, found.data)
    told = found.name, found.alias, found.elem_type, found.shape
    return _named(*told, found.data, found.strings, memories)


@dataclass
class _Fields:
    """What a message says, its data by their fields, and what it takes to decode that."""

    elem_type: int = INT64
    name: str = ""
    alias: str = ""
    shape: list[int] = field(default_factory=list)
    data: dict[int, list[memoryview]] = field(default_factory=dict)
    strings: list[str] = field(default_factory=list)
    effort: int = 0


def _read_fields(message: memoryview, most: float) -> _Fields:
    """Raises WireError, and TooMuchEffort beyond ``most``."""
    found, effort = _Fields(), 0
    data, strings, shape = found.data, found.strings, found.shape
    for number, wire_type, value in pb.fields(message, limit=MAX_STRINGS):
        effort += _FIELD
        if number in _CONVERTED and not isinstance(value, int):
            effort += len(value)
        if effort > most:
            raise TooMuchEffort
        if number == _STRING_DATA:
            strings.append(pb.as_text(number, value))
        elif number in _AS_THEY_ARE or (number in _UNPACKED and wire_type == pb.LENGTH):
            data.setdefault(number, []).append(pb.as_bytes(number, value))
        elif number in _UNPACKED:
            data.setdefault(number, []).append(_unpacked(number, wire_type, value))
        elif number == _ELEM_TYPE:
            found.elem_type = pb.as_int(number, value)
        elif number == _SHAPE:
            shape.extend(_decode_shape(value, room=MAX_DIMENSIONS - len(shape)))
        elif number == _NAME:
            found.name = pb.as_text(number, value)
        elif number == _ALIAS_NAME:
            found.alias = pb.as_text(number, value)
    found.effort = effort
    return found


def _named(
    name: str,
    alias: str,
    elem_type: int,
    shape: list[int],
    data: dict[int, list[memoryview]],
    strings: list[str],
    memories: Optional[Memories] = None,
) -> NamedTensor:
    try:
        array = _assemble(elem_type, shape, data, strings, memories)
    except WireError as error:
        raise WireError(f"tensor {alias or name!r}: {error}") from None
    return NamedTensor(name, alias or name, array)


def _in_one_piece(message: memoryview) -> Optional[tuple[int, memoryview, _Fields]]:
    """The data's field, the data, and the rest, if a message begins with all of its data, as those
    made here do; None for any other, and for a malformed one.
    """
    if not len(message) or message[0] & 7 != pb.LENGTH or message[0] >> 3 not in _PACKED:
        return None
    size, start = pb.decode_varint(message, 1)
    rest = message[start + size :]
    said = _parse_trailer(bytes(rest)) if 0 < len(rest) <= _LONGEST_TRAILER else None
    return None if said is None else (message[0] >> 3, message[start : start + size], said)


@functools.lru_cache(maxsize=1024)
def _parse_trailer(trailer: bytes) -> Optional[_Fields]:
    """The inverse of ``_trailer``, which is the same for one batch after the other: not to be
    changed. None for what holds data, too, and for what is malformed.
    """
    try:
        found = _read_fields(memoryview(trailer), math.inf)
    except WireError:
        return None
    return None if found.data or found.strings else found


def _left_after_joining(left: int, data: dict[int, list[memoryview]]) -> int:
    """What is left of an effort when data that came in pieces are joined, too."""
    left -= sum(size_of(chunks) for chunks in data.values() if len(chunks) > 1)
    if left < 0:
        raise TooMuchEffort
    return left


def _unpacked(number: int, wire_type: int, value: pb.FieldValue) -> memoryview:
    if wire_type != _UNPACKED[number]:
        raise WireError(f"field {number} has wire type {wire_type}")
    return memoryview(pb.encode_varint(value)) if isinstance(value, int) else value


def _decode_shape(value: pb.FieldValue, room: int) -> list[int]:
    if isinstance(value, int):
        sizes = [value]
    elif len(value) > 10 * MAX_DIMENSIONS:
        raise WireError(f"shape has more than {MAX_DIMENSIONS} dimensions")
    else:
        sizes, at = [], 0
        while at < len(value):
            size, at = pb.decode_varint(value, at)
            sizes.append(size)
    if len(sizes) > room:
        raise WireError(f"shape has more than {MAX_DIMENSIONS} dimensions")
    signed = [pb.as_signed32(size) for size in sizes]
    if any(size < 0 for size in signed):
        raise WireError(f"shape {signed} has a negative dimension")
    return signed


def _view_of(
    memories: Memories, data: dict[int, list[memoryview]], elem_type: int, shape: list[int]
) -> np.ndarray:
    """The array whose data lie in memory that both sides map."""
    dtype = wire_dtype(elem_type)
    if len(data) > 1 or dtype.kind == "O":
        raise WireError("its data cannot be in shared memory, or are elsewhere too")
    number, at = pb.decode_varint(data[_PLACE][0], 0)
    offset, _ = pb.decode_varint(data[_PLACE][0], at)
    view = view_of(memories, (number, offset), math.prod(shape) * dtype.itemsize)
    return np.frombuffer(view, dtype).reshape(shape)


def view_of(memories: Memories, place: Place, size: int) -> memoryview:
    """``size`` bytes at a place. Raises WireError for one that is none."""
    number, offset = place
    if number not in memories:
        raise WireError(f"no memory {number} was handed over on this connection")
    if offset % ALIGNMENT:
        raise WireError(f"offset {offset} is not a multiple of {ALIGNMENT}")
    if not size:
        raise WireError("nothing of no bytes lies in shared memory")
    try:
        return memories[number].view(offset, size)
    except ValueError as error:
        raise WireError(str(error)) from None


def own_copy(array: np.ndarray) -> np.ndarray:
    """The same values in memory that nobody else can change; of bools, that are true or false."""
    return array.view(np.uint8) != 0 if array.dtype == bool else array.copy()


def _assemble(
    elem_type: int,
    shape: list[int],
    data: dict[int, list[memoryview]],
    strings: list[str],
    memories: Optional[Memories],
) -> np.ndarray:
    dtype = wire_dtype(elem_type)
    count = math.prod(shape)
    if _PLACE in data:
        return _view_of(memories or {}, data, elem_type, shape)
    if elem_type == STRING:
        if len(strings) != count:
            raise WireError(
                f"shape {shape} needs {count} strings, the message holds {len(strings)}"
            )
        return np.array(strings, dtype=object).reshape(shape)
    expected = _DATA_FIELD.get(elem_type, _CONTENT)
    if strings or any(number not in (expected, _CONTENT) for number in data) or len(data) > 1:
        raise WireError(f"data is not in the field that element type {elem_type} travels in")
    number, chunks = next(iter(data.items()), (expected, []))
    octets = chunks[0] if len(chunks) == 1 else memoryview(b"".join(chunks))
    if number == _CONTENT:
        flat = _view(octets, dtype)
    elif elem_type in (INT64, INT32):
        held = int(np.count_nonzero(np.frombuffer(octets, np.int8) >= 0))
        if held != count:  # before memory is taken for them
            raise WireError(f"shape {shape} needs {count} elements, the message holds {held}")
        flat = pb.decode_varints(octets).astype(dtype, copy=False)
    elif elem_type == BOOL:
        flat = pb.decode_varints(octets) != 0 if _wide_bools(octets) else _view(octets, dtype)
    else:
        flat = _view(octets, dtype)
    if elem_type == BOOL and number == _CONTENT and _wide_bools(octets):
        raise WireError("bool values other than 0 and 1")
    if flat.size != count:
        raise WireError(f"shape {shape} needs {count} elements, the message holds {flat.size}")
    try:
        return flat.reshape(shape)
    except ValueError as error:  # such as (0, 2**31 - 1, 2**31 - 1, 2**31 - 1): numpy's own limit
        raise WireError(f"shape {shape} is not possible: {error}") from None


def as_text_array(name: str, array: np.ndarray, limit: int) -> np.ndarray:
    """Strings as numpy's own kind of text, which has a fixed width; other arrays as they are.

    All take the width of the longest: the next power of two, so that batches of similar texts
    have the same kind. Raises WireError, before memory is taken, if that is beyond ``limit`` bytes.
    """
    if array.dtype != object:
        return array
    longest = max(map(len, array.reshape(-1)), default=1)
    width = 1 << max(0, longest - 1).bit_length()
    size = 4 * width * array.size
    if size > limit:
        raise WireError(
            f"tensor {name!r}: {array.size} strings, the longest of {longest} characters, would "
            f"take {size >> 20} MiB, since all take the width of the longest; at most "
            f"{limit >> 20} MiB are allowed: send fewer rows at a time, or cut the long ones"
        )
    return array.astype(f"<U{width}")


def _view(octets: memoryview, dtype: np.dtype) -> np.ndarray:
    if len(octets) % dtype.itemsize:
        raise WireError(f"{len(octets)} bytes are not a whole number of {dtype} elements")
    return np.frombuffer(octets, dtype)


def _wide_bools(octets: memoryview) -> bool:
    """Whether bytes other than 0 and 1 are there: legal varints, but not a view as bool."""
    return len(octets) > 0 and int(np.frombuffer(octets, np.uint8).max()) > 1
