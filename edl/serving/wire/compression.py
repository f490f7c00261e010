"""Compressed bodies. What they unpack to is limited: nothing is trusted for its length."""

from __future__ import annotations

import gzip
import zlib
from typing import Union

from edl.errors import WireError
from edl.serving.wire import protobuf as pb
from edl.serving.wire.tensor import Buffer

#: brpc's compress_type (src/brpc/options.proto) in words.
_KINDS = {1: "snappy", 2: "gzip", 3: "zlib"}

#: zlib's window bits for each format.
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "zlib": zlib.MAX_WBITS}


def compression_of(compress_type: int) -> str:
    """The kind of compression that brpc numbers so. Raises WireError for one it does not have."""
    if compress_type not in _KINDS:
        raise WireError(f"compression {compress_type} is not known; {_listed()} are")
    return _KINDS[compress_type]


def decompress(data: Union[Buffer, bytearray], kind: str, limit: int) -> memoryview:
    """``data`` unpacked; ``kind``: "gzip", "zlib" or "snappy".

    Raises WireError if it is not of that kind, is cut short, unpacks to more than ``limit`` bytes,
    or if a library for it is not installed.
    """
    if kind == "snappy":
        return _unsnap(memoryview(data), limit)
    unpacker = zlib.decompressobj(_WINDOW[kind])
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error as error:
        raise WireError(f"body is not valid {kind}: {error}") from None
    if unpacker.unconsumed_tail:
        raise WireError(f"body unpacks to more than {limit} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise WireError(f"body is not one whole {kind} stream")
    return memoryview(unpacked)


def compress(buffers: list[Buffer]) -> bytes:
    """``buffers`` as one gzip stream. Fast rather than small: floats hardly shrink."""
    return gzip.compress(b"".join(buffers), compresslevel=1)


def _unsnap(data: memoryview, limit: int) -> memoryview:
    """Snappy's raw format, which begins with the length of what is in it.

    Source: https://github.com/google/snappy/blob/main/format_description.txt
    """
    try:
        from cramjam import snappy
    except ImportError:
        raise WireError(
            "the body is compressed with snappy: pip install cramjam, or set another compression"
        ) from None
    size, _ = pb.decode_varint(data, 0)
    if size > limit:
        raise WireError(f"body unpacks to {size} bytes, more than {limit}")
    try:
        unpacked = snappy.decompress_raw(data, output_len=size)
    except Exception as error:  # cramjam's own, and what its Rust says
        raise WireError(f"body is not valid snappy: {error}") from None
    return memoryview(unpacked)


def _listed() -> str:
    return ", ".join(f"{kind} ({number})" for number, kind in _KINDS.items())
