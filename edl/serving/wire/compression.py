"""Compressed bodies. What they unpack to is limited: nothing is trusted for its length."""

from __future__ import annotations

import gzip
import zlib
from typing import Union

from edl.errors import WireError
from edl.serving.wire.tensor import Buffer

#: zlib's window bits for each format.
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "zlib": zlib.MAX_WBITS}


def decompress(data: Union[Buffer, bytearray], kind: str, limit: int) -> memoryview:
    """``data`` unpacked; ``kind``: "gzip" or "zlib".

    Raises WireError if it is not of that kind, is cut short, or unpacks to more than ``limit``
    bytes.
    """
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
