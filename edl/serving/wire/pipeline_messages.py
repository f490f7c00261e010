"""The messages of Paddle Serving's Python pipelines (``PipelineService/inference``).

Source: ``pipeline_service.proto`` of Paddle Serving 0.9. Field numbers: Request {1 key*, 2 value*,
3 tensors*, 6 logid}, Response {1 err_no, 2 err_msg, 3 key*, 4 value*, 5 tensors*}, Tensor {1 to 6
data by kind, 9 str_data*, 10 byte_data, 20 elem_type, 21 shape*, 23 name}. Two forms of the same
request exist: *tensors*, and the older *key_value* with every array as numpy's text.

In the tensors form an array travels as ``.npy`` in ``byte_data`` (element type 13): a pipeline
otherwise takes its elements one by one into Python lists.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edl.errors import WireError
from edl.serving.wire import protobuf as pb
from edl.serving.wire.array_text import format_array, parse_array
from edl.serving.wire.tensor import Buffer, wire_dtype

SERVICE = "baidu.paddle_serving.pipeline_serving.PipelineService"
METHOD = "inference"

TENSORS, KEY_VALUE = "tensors", "key_value"
FORMS = (TENSORS, KEY_VALUE)

_KEY, _VALUE, _TENSORS = 1, 2, 3
_ERR_NO, _ERR_MSG, _OUT_KEY, _OUT_VALUE, _OUT_TENSORS = 1, 2, 3, 4, 5
_BYTE_DATA, _ELEM_TYPE, _SHAPE, _NAME = 10, 20, 21, 23
_BYTES = 13

#: Which field holds the elements of a type, and whether they are varints.
_VARINT_FIELDS = {0: 1, 2: 3, 4: 3, 6: 5, 7: 5, 8: 3, 9: 6}
_FIXED_FIELDS = {1: (2, "<f4"), 3: (4, "<f8"), 5: (2, "<f4")}

_NPY_START, _MAX_HEADER = 10, 1 << 10
_NPY_HEADER = re.compile(
    r"\{'descr': '([<>|][biuf][1248])', 'fortran_order': (True|False), "
    r"'shape': \(([0-9, ]*)\), \}\s*"
)


@dataclass
class PipelineResponse:
    """Arrays by name; ``err_no`` other than 0 is the pipeline's refusal."""

    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    err_no: int = 0
    err_msg: str = ""


def encode_request(feeds: Mapping[str, np.ndarray], form: str) -> bytes:
    """A request. Raises WireError for an array that cannot travel."""
    for name, array in feeds.items():
        if array.dtype.kind not in "biuf":
            raise WireError(f"feed {name!r} holds {array.dtype}; a pipeline takes numbers only")
    if form == KEY_VALUE:
        return b"".join(
            pb.text(_KEY, name) + pb.blob(_VALUE, format_array(array).encode())
            for name, array in feeds.items()
        )
    return b"".join(_encode_npy(name, array) for name, array in feeds.items())


def decode_response(message: memoryview) -> PipelineResponse:
    """A response. Raises WireError if it is malformed."""
    response = PipelineResponse()
    keys: list[str] = []
    values: list[str] = []
    for number, _, value in pb.fields(message):
        if number == _ERR_NO:
            response.err_no = pb.as_signed32(pb.as_int(number, value))
        elif number == _ERR_MSG:
            response.err_msg = pb.as_text(number, value)
        elif number == _OUT_KEY:
            keys.append(pb.as_text(number, value))
        elif number == _OUT_VALUE:
            values.append(pb.as_text(number, value))
        elif number == _OUT_TENSORS:
            name, array = _decode_tensor(pb.as_bytes(number, value))
            response.outputs[name] = array
    if response.err_no:
        return response
    for name, text in itertools.zip_longest(keys, values, fillvalue=""):
        try:
            response.outputs.setdefault(name, parse_array(text))
        except WireError as error:
            raise WireError(f"value of {name!r}: {error}") from None
    return response


def _encode_npy(name: str, array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    size = header.tell() + array.nbytes
    trailer = pb.integer(_ELEM_TYPE, _BYTES) + pb.text(_NAME, name)
    prefix = pb.prefix(_BYTE_DATA, size)
    parts: list[Buffer] = [
        pb.prefix(_TENSORS, len(prefix) + size + len(trailer)),
        prefix,
        header.getvalue(),
        array.reshape(-1).view(np.uint8).data,
        trailer,
    ]
    return b"".join(parts)


def _decode_tensor(message: memoryview) -> tuple[str, np.ndarray]:
    elem_type, name, npy = 0, "", memoryview(b"")
    shape: list[int] = []
    data: dict[int, memoryview] = {}
    for number, _, value in pb.fields(message):
        if number == _ELEM_TYPE:
            elem_type = pb.as_int(number, value)
        elif number == _NAME:
            name = pb.as_text(number, value)
        elif number == _SHAPE:
            shape = [pb.as_signed32(int(n)) for n in pb.decode_varints(pb.as_bytes(number, value))]
        elif number == _BYTE_DATA:
            npy = pb.as_bytes(number, value)
        elif number <= 6:
            data[number] = pb.as_bytes(number, value)
    try:
        if elem_type == _BYTES:
            return name, _read_npy(npy)
        return name, _elements(elem_type, data).reshape(shape)
    except ValueError as error:  # WireError is one
        raise WireError(f"tensor {name!r}: {error}") from None


def _elements(elem_type: int, data: dict[int, memoryview]) -> np.ndarray:
    if elem_type in _VARINT_FIELDS:
        values = pb.decode_varints(data.get(_VARINT_FIELDS[elem_type], memoryview(b"")))
        return values.astype(wire_dtype(elem_type))
    if elem_type in _FIXED_FIELDS:
        number, dtype = _FIXED_FIELDS[elem_type]
        return np.frombuffer(data.get(number, b""), dtype).astype(wire_dtype(elem_type))
    raise WireError(f"element type {elem_type} is not supported")


def _read_npy(npy: memoryview) -> np.ndarray:
    """A view of the array in a ``.npy`` file: magic, version, header size, header, elements.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. The header is a
    Python literal; here it is matched, not evaluated, so only arrays of numbers are read.
    """
    if bytes(npy[:6]) != b"\x93NUMPY" or len(npy) < _NPY_START:
        raise WireError("not a .npy file")
    width = 2 if npy[6] == 1 else 4
    start = 8 + width
    end = start + int.from_bytes(npy[8:start], "little")
    if end > min(len(npy), _MAX_HEADER):
        raise WireError(f".npy header of {end - start} bytes")
    header = _NPY_HEADER.fullmatch(bytes(npy[start:end]).decode("latin-1"))
    if header is None:
        raise WireError("the .npy header is not that of an array of numbers")
    descr, fortran, sizes = header.groups()
    shape = [int(size) for size in sizes.split(",") if size.strip()]
    flat = np.frombuffer(npy[end:], np.dtype(descr))
    return flat.reshape(shape[::-1]).T if fortran == "True" else flat.reshape(shape)
