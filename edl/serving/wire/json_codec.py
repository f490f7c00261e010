"""``Request`` and ``Response`` as JSON, the way brpc maps protobuf's fields to JSON.

Field names are those of the ``.proto`` file, ``bytes`` are base64, and the tensors' data lie in
flat lists: ``{"tensor": [{"float_data": [0.5, 1], "elem_type": 1, "shape": [1, 2], "name": "img",
"alias_name": "img"}], "fetch_var_names": ["prob"]}``. Source: brpc's json2pb, and what Paddle
Serving's ``HttpClient`` 0.9.0 sends.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Union

import numpy as np

from edl.errors import WireError
from edl.serving.wire.messages import ENGINE, Request
from edl.serving.wire.tensor import BOOL, FP32, FP64, INT32, INT64, STRING, elem_type_of, wire_dtype

#: The list that an element type's values are in; the others travel in ``tensor_content``.
_FIELDS = {
    INT64: "int64_data",
    FP32: "float_data",
    INT32: "int_data",
    FP64: "float64_data",
    BOOL: "bool_data",
    STRING: "data",
}
_CONTENT = "tensor_content"

#: Bytes of a body beyond which JSON is refused: 32 MB take a second to parse and ten times as much
#: memory. The same as ``application/proto`` takes neither.
MAX_JSON = 32 << 20

#: Values that are written in one go; below a millisecond.
_PIECE = 1024

#: What a list may hold, for each kind of dtype.
_TYPES: dict[str, set[type]] = {"i": {int}, "f": {int, float}, "b": {bool}, "O": {str}}


def decode_request(body: Union[bytes, bytearray, memoryview]) -> Request:
    """A request's arrays and fetches. Raises WireError that names what is wrong."""
    try:
        message = json.loads(str(body, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"body is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise WireError("body is not a JSON object")
    tensors, fetches = message.get("tensor", []), message.get("fetch_var_names", [])
    if not isinstance(tensors, list) or not isinstance(fetches, list):
        raise WireError("'tensor' and 'fetch_var_names' must be lists")
    if not all(isinstance(fetch, str) for fetch in fetches):
        raise WireError("'fetch_var_names' must hold strings")
    feeds: dict[str, np.ndarray] = {}
    for tensor in tensors:
        if not isinstance(tensor, dict):
            raise WireError("'tensor' must hold objects")
        name = tensor.get("alias_name") or tensor.get("name")
        if not isinstance(name, str):
            raise WireError("a tensor has neither 'alias_name' nor 'name'")
        if name in feeds:
            raise WireError(f"tensor {name!r} occurs twice")
        try:
            feeds[name] = _decode_tensor(tensor)
        except WireError as error:
            raise WireError(f"tensor {name!r}: {error}") from None
    return Request(feeds, fetches, _log_id(message.get("log_id", 0)))


def _log_id(value: Any) -> int:
    """A uint64, which JSON may also hold as a string: not every number of it fits a double."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise WireError("'log_id' must be an unsigned 64-bit number")
    return value


def encode_response(outputs: Mapping[str, np.ndarray], log_id: int = 0) -> bytes:
    """A ``Response`` with one model's outputs."""
    return b"".join(encode_response_in_pieces(outputs, log_id))


def encode_response_in_pieces(
    outputs: Mapping[str, np.ndarray], log_id: int = 0
) -> Iterator[bytes]:
    """The same in pieces that are small work each, for who has other things to do in between."""
    yield b'{"outputs": [{"tensor": ['
    for number, (name, array) in enumerate(outputs.items()):
        if number:
            yield b", "
        yield from _encode_tensor(name, array)
    end = f'], "engine_name": {json.dumps(ENGINE)}}}]'
    yield (f'{end}, "log_id": {log_id}}}' if log_id else end + "}").encode()


def _decode_tensor(tensor: Mapping[str, Any]) -> np.ndarray:
    elem_type = tensor.get("elem_type", INT64)
    if not isinstance(elem_type, int):
        raise WireError("'elem_type' must be a number")
    dtype = wire_dtype(elem_type)
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise WireError("'shape' must be a list of sizes, the rows' first")
    field = _FIELDS.get(elem_type, _CONTENT)
    present = [key for key in (*_FIELDS.values(), _CONTENT) if tensor.get(key)]
    if present not in ([], [field], [_CONTENT]):
        raise WireError(f"data of element type {elem_type} belongs in '{field}', not in {present}")
    if _CONTENT in (field, *present):
        flat = _from_base64(tensor.get(_CONTENT, ""), dtype)
    else:
        flat = _from_list(tensor.get(field) or [], dtype, field)
    if flat.size != math.prod(shape):
        raise WireError(f"shape {shape} needs {math.prod(shape)} elements, there are {flat.size}")
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise WireError(f"shape {shape} is not possible: {error}") from None


def _from_list(values: Any, dtype: np.dtype, field: str) -> np.ndarray:
    allowed = _TYPES[dtype.kind]
    if not isinstance(values, list) or not set(map(type, values)) <= allowed:
        names = " or ".join(sorted(kind.__name__ for kind in allowed))
        raise WireError(f"'{field}' must be a flat list of {names} values")
    try:
        wide = np.array(values, np.int64 if dtype.kind == "i" else dtype)
    except OverflowError:
        raise WireError(f"'{field}' holds values beyond {dtype.name}") from None
    if wide.size and wide.dtype != dtype:
        limits = np.iinfo(dtype)
        if wide.min() < limits.min or wide.max() > limits.max:
            raise WireError(f"'{field}' holds values beyond {dtype.name}")
    return wide.astype(dtype, copy=False)


def _from_base64(text: Any, dtype: np.dtype) -> np.ndarray:
    if not isinstance(text, str) or dtype.kind == "O":
        raise WireError(f"'{_CONTENT}' must be base64 of a number's bytes")
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"'{_CONTENT}' is not base64: {error}") from None
    if len(octets) % dtype.itemsize:
        raise WireError(f"'{_CONTENT}' is not a whole number of {dtype.name} elements")
    return (
        np.frombuffer(octets, np.uint8) != 0 if dtype.kind == "b" else np.frombuffer(octets, dtype)
    )


def _encode_tensor(name: str, array: np.ndarray) -> Iterator[bytes]:
    elem_type = elem_type_of(array.dtype)
    flat = np.ascontiguousarray(array).reshape(-1)
    if elem_type in _FIELDS:
        yield f'{{"{_FIELDS[elem_type]}": ['.encode()
        for start in range(0, flat.size, _PIECE):
            text = json.dumps(flat[start : start + _PIECE].tolist())[1:-1]
            yield (f", {text}" if start else text).encode()
        yield b"]"
    else:
        yield f'{{"{_CONTENT}": "'.encode()
        octets = flat.view(np.uint8)
        for start in range(0, octets.size, 3 << 16):  # a multiple of 3, so that pieces join
            yield base64.b64encode(octets[start : start + (3 << 16)].data)
        yield b'"'
    trailer = {
        "elem_type": elem_type,
        "shape": list(array.shape),
        "name": name,
        "alias_name": name,
    }
    yield f", {json.dumps(trailer)[1:]}".encode()
