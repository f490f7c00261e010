"""The little of protobuf's wire format that the hot path needs, without message objects.

Source: https://protobuf.dev/programming-guides/encoding/. Integers are base-128 varints;
negative int32/int64 values travel as the ten bytes of their 64-bit two's complement.
Arrays of integers are converted with numpy, never element by element.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Union

import numpy as np

from edl.errors import WireError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

#: A message with more fields than this is hostile: every message here has a few dozen at most.
MAX_FIELDS = 4096

FieldValue = Union[int, memoryview]


def encode_varint(value: int) -> bytes:
    """One integer (negative ones as 64-bit two's complement) as a varint."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer that starts at ``at``, and the position behind it."""
    if at < len(data) and data[at] < 0x80:  # nearly always
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise WireError("message ends inside a varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise WireError("varint longer than 10 bytes")


@functools.lru_cache(maxsize=256)
def tag(number: int, wire_type: int) -> bytes:
    """The varint that precedes a field."""
    return encode_varint(number << 3 | wire_type)


def integer(number: int, value: int) -> bytes:
    """A varint field, written even when it is zero."""
    return tag(number, VARINT) + encode_varint(value)


@functools.lru_cache(maxsize=4096)
def prefix(number: int, size: int) -> bytes:
    """What precedes a length-delimited field of ``size`` bytes."""
    return tag(number, LENGTH) + encode_varint(size)


def blob(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return prefix(number, len(data)) + data


@functools.lru_cache(maxsize=4096)
def text(number: int, value: str) -> bytes:
    """A string field."""
    return blob(number, value.encode())


def fields(message: memoryview, limit: int = MAX_FIELDS) -> Iterator[tuple[int, int, FieldValue]]:
    """Walk a message: (field number, wire type, value).

    A varint's value is an unsigned int; every other value is a slice of ``message``, not a copy.
    Raises WireError for anything that does not parse, and for more than ``limit`` fields.
    """
    at, end = 0, len(message)
    while at < end:
        limit -= 1
        if limit < 0:
            raise WireError("message has too many fields")
        key, at = (message[at], at + 1) if message[at] < 0x80 else decode_varint(message, at)
        number, wire_type = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise WireError(f"field number {number} is out of range")
        if wire_type == LENGTH:
            size, at = decode_varint(message, at)
        elif wire_type == VARINT:
            value, at = decode_varint(message, at)
            yield number, wire_type, value
            continue
        elif wire_type == FIXED32:
            size = 4
        elif wire_type == FIXED64:
            size = 8
        else:
            raise WireError(f"field {number} has wire type {wire_type}, which is not supported")
        if size > end - at:
            raise WireError(f"field {number} claims {size} bytes but {end - at} are left")
        yield number, wire_type, message[at : at + size]
        at += size


def as_int(number: int, value: FieldValue) -> int:
    """A field that must be a varint."""
    if not isinstance(value, int):
        raise WireError(f"field {number} should be an integer")
    return value


def as_bytes(number: int, value: FieldValue) -> memoryview:
    """A field that must be length-delimited (string, bytes, message)."""
    if isinstance(value, int):
        raise WireError(f"field {number} should be length-delimited")
    return value


def as_text(number: int, value: FieldValue) -> str:
    """A field that must be a UTF-8 string."""
    try:
        return str(as_bytes(number, value), "utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"field {number} is not valid UTF-8") from error


def as_signed32(value: int) -> int:
    """An int32 field's value: the low 32 bits, as two's complement."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def encode_varints(values: np.ndarray) -> np.ndarray:
    """A one-dimensional int32/int64 array as concatenated varints (uint8 array)."""
    unsigned = values.astype(np.int64, copy=False).view(np.uint64)
    largest = int(unsigned.max()) if unsigned.size else 0
    if largest < 0x80:
        return unsigned.astype(np.uint8)
    widest = (largest.bit_length() + 6) // 7
    sizes = np.ones(unsigned.shape, np.int64)
    for index in range(1, widest):
        sizes += unsigned >= np.uint64(1 << 7 * index)
    starts = np.cumsum(sizes)
    out = np.empty(int(starts[-1]), np.uint8)
    starts -= sizes
    for index in range(widest):
        if index:
            longer = sizes > index
            starts, sizes, unsigned = starts[longer], sizes[longer], unsigned[longer]
        septet = (unsigned >> np.uint64(7 * index)).astype(np.uint8) & np.uint8(0x7F)
        out[starts + index] = septet | (sizes > index + 1).astype(np.uint8) << 7
    return out


def decode_varints(data: memoryview) -> np.ndarray:
    """Concatenated varints as a one-dimensional int64 array.

    Raises WireError if the last one is cut short or one is longer than 10 bytes. Allocates in
    proportion to ``len(data)``, never to a length that the message claims.
    """
    octets = np.frombuffer(data, np.uint8)
    if not octets.size:
        return np.empty(0, np.int64)
    if octets[-1] >= 0x80:
        raise WireError("packed integers end inside a varint")
    ends = np.flatnonzero(octets < 0x80)
    if ends.size == octets.size:
        return octets.astype(np.int64)
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    sizes = ends - starts + 1
    widest = int(sizes.max())
    if widest > 10:
        raise WireError("varint longer than 10 bytes")
    values = (octets[starts] & np.uint8(0x7F)).astype(np.uint64)
    rows = np.arange(values.size)
    for index in range(1, widest):
        longer = sizes > index
        rows, starts, sizes = rows[longer], starts[longer], sizes[longer]
        septet = (octets[starts + index] & np.uint8(0x7F)).astype(np.uint64)
        values[rows] |= septet << np.uint64(7 * index)
    return values.view(np.int64)
