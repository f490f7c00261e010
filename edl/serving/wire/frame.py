"""brpc's native frame, ``baidu_std``: what surrounds a message on a TCP connection.

Source: https://github.com/apache/brpc/blob/master/docs/en/baidu_std.md

``"PRPC"``, body size (u32, big-endian), meta size (u32, big-endian), RpcMeta, payload.
The body is RpcMeta and payload together.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple, Union

from edl.errors import WireError
from edl.serving.wire import protobuf as pb
from edl.serving.wire.tensor import Buffer, size_of

MAGIC = b"PRPC"
HEADER_SIZE = 12
_HEADER = struct.Struct("!4sII")

#: Frames beyond these sizes are refused before anything is allocated for them.
MAX_BODY_SIZE = 1 << 30
MAX_META_SIZE = 1 << 16

# Error codes of brpc (src/brpc/errno.proto) that this project sends and understands.
ENOSERVICE, ENOMETHOD, EREQUEST, ERPCAUTH = 1001, 1002, 1003, 1004
ESSL = 1016
EINTERNAL, ELOGOFF, ELIMIT = 2001, 2003, 2004

#: Bytes of a meta's first part beyond which it is not remembered; it is mostly the same.
_LONGEST_HEAD = 256

_REQUEST, _RESPONSE, _COMPRESS_TYPE, _CORRELATION_ID, _ATTACHMENT_SIZE, _AUTH = 1, 2, 3, 4, 5, 7


class RequestMeta(NamedTuple):
    """RpcMeta of a request. ``authentication`` is the credential field, empty when unused."""

    service: str
    method: str
    correlation_id: int
    log_id: int = 0
    compress_type: int = 0
    attachment_size: int = 0
    authentication: bytes = b""


class ResponseMeta(NamedTuple):
    """RpcMeta of a response. ``error_code`` is 0 when the payload is a good answer."""

    correlation_id: int
    error_code: int = 0
    error_text: str = ""
    compress_type: int = 0
    attachment_size: int = 0


Meta = Union[RequestMeta, ResponseMeta]


def encode_frame(meta: Meta, payload: list[Buffer]) -> list[Buffer]:
    """A whole frame as buffers; ``payload``'s buffers are passed on, not copied."""
    head = _encode_meta(meta)
    body_size = len(head) + size_of(payload)
    if body_size > 0xFFFF_FFFF:
        raise WireError(f"a frame holds at most 4 GiB, this one would be {body_size} bytes")
    return [_HEADER.pack(MAGIC, body_size, len(head)) + head, *payload]


def _encode_meta(meta: Meta) -> bytes:
    if isinstance(meta, RequestMeta):
        head = _request_head(meta.service, meta.method, meta.log_id)
    else:
        head = _response_head(meta.error_code, meta.error_text)
    head += pb.integer(_COMPRESS_TYPE, meta.compress_type)
    head += pb.integer(_CORRELATION_ID, meta.correlation_id)
    if meta.attachment_size:
        head += pb.integer(_ATTACHMENT_SIZE, meta.attachment_size)
    if isinstance(meta, RequestMeta) and meta.authentication:
        head += pb.blob(_AUTH, meta.authentication)
    return head


@functools.lru_cache(maxsize=64)
def _request_head(service: str, method: str, log_id: int) -> bytes:
    inner = pb.text(1, service) + pb.text(2, method) + pb.integer(3, log_id)
    return pb.blob(_REQUEST, inner)


@functools.lru_cache(maxsize=64)
def _response_head(error_code: int, error_text: str) -> bytes:
    inner = pb.integer(1, error_code)
    if error_text:
        inner += pb.text(2, error_text)
    return pb.blob(_RESPONSE, inner)


def parse_header(
    header: Union[bytes, bytearray, memoryview], limit: int = MAX_BODY_SIZE
) -> tuple[int, int]:
    """(body size, meta size) from a frame's first 12 bytes.

    Raises WireError if they are not a frame's, or claim a body beyond ``limit`` bytes.
    """
    if len(header) < HEADER_SIZE:
        raise WireError(f"a frame header has {HEADER_SIZE} bytes, got {len(header)}")
    magic, body_size, meta_size = _HEADER.unpack_from(header)
    if magic != MAGIC:
        raise WireError(f"not a baidu_std frame: it starts with {bytes(magic)!r}")
    if body_size > limit:
        raise WireError(f"frame of {body_size} bytes is beyond the limit of {limit}")
    if meta_size > body_size or meta_size > MAX_META_SIZE:
        raise WireError(f"meta of {meta_size} bytes in a body of {body_size} bytes")
    return body_size, meta_size


def parse_body(body: memoryview, meta_size: int) -> tuple[Meta, memoryview]:
    """A frame's body: its meta, and the payload as a slice of ``body``."""
    meta = parse_meta(body[:meta_size])
    if not 0 <= meta.attachment_size <= len(body) - meta_size:
        raise WireError(f"attachment of {meta.attachment_size} bytes does not fit the frame")
    return meta, body[meta_size : len(body) - meta.attachment_size]


def parse_meta(message: memoryview) -> Meta:
    """RpcMeta. Raises WireError if it is neither a request's nor a response's."""
    meta: Union[RequestMeta, ResponseMeta, None] = None
    correlation_id = compress_type = attachment_size = 0
    authentication = b""
    for number, _, value in pb.fields(message):
        if number == _REQUEST:
            meta = _request_meta(pb.as_bytes(number, value))
        elif number == _RESPONSE:
            meta = _response_meta(pb.as_bytes(number, value))
        elif number == _COMPRESS_TYPE:
            compress_type = pb.as_signed32(pb.as_int(number, value))
        elif number == _CORRELATION_ID:
            correlation_id = _signed64(pb.as_int(number, value))
        elif number == _ATTACHMENT_SIZE:
            attachment_size = pb.as_signed32(pb.as_int(number, value))
        elif number == _AUTH:
            authentication = bytes(pb.as_bytes(number, value))
    if meta is None:
        raise WireError("frame is neither a request nor a response")
    common = (compress_type, attachment_size)
    if isinstance(meta, RequestMeta):
        said = (meta.service, meta.method, correlation_id, meta.log_id)
        return RequestMeta(*said, *common, authentication)
    return ResponseMeta(correlation_id, meta.error_code, meta.error_text, *common)


def _request_meta(message: memoryview) -> RequestMeta:
    if len(message) > _LONGEST_HEAD:
        return _decode_request_meta(message)
    return _known_request_meta(bytes(message))


def _response_meta(message: memoryview) -> ResponseMeta:
    if len(message) > _LONGEST_HEAD:
        return _decode_response_meta(message)
    return _known_response_meta(bytes(message))


@functools.lru_cache(maxsize=256)
def _known_request_meta(message: bytes) -> RequestMeta:
    return _decode_request_meta(memoryview(message))


@functools.lru_cache(maxsize=256)
def _known_response_meta(message: bytes) -> ResponseMeta:
    return _decode_response_meta(memoryview(message))


def _decode_request_meta(message: memoryview) -> RequestMeta:
    service = method = ""
    log_id = 0
    for number, _, value in pb.fields(message):
        if number == 1:
            service = pb.as_text(number, value)
        elif number == 2:
            method = pb.as_text(number, value)
        elif number == 3:
            log_id = _signed64(pb.as_int(number, value))
    return RequestMeta(service, method, 0, log_id)


def _decode_response_meta(message: memoryview) -> ResponseMeta:
    code, error_text = 0, ""
    for number, _, value in pb.fields(message):
        if number == 1:
            code = pb.as_signed32(pb.as_int(number, value))
        elif number == 2:
            error_text = pb.as_text(number, value)
    return ResponseMeta(0, code, error_text)


def _signed64(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
