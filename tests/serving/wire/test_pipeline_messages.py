"""The messages of Paddle Serving's pipelines, against Google's runtime."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edl.errors import WireError
from edl.serving.wire.array_text import format_array, parse_array
from edl.serving.wire.pipeline_messages import KEY_VALUE, TENSORS, decode_response, encode_request
from tests.support.reference import PipelineRequest, PipelineResponse

FIELDS = {
    "i8": (0, "int64_data"), "f4": (1, "float_data"), "i4": (2, "int_data"),
    "f8": (3, "float64_data"), "i2": (4, "int_data"), "f2": (5, "float_data"),
    "u2": (6, "uint32_data"), "u1": (7, "uint32_data"), "i1": (8, "int_data"),
    "?": (9, "bool_data"),
}  # fmt: skip
arrays = st.sampled_from(list(FIELDS)).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
)


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype.hasobject)
    return file.getvalue()


def decoded(**fields):
    return decode_response(memoryview(PipelineResponse(**fields).SerializeToString()))


@given(st.dictionaries(st.text("abc", min_size=1), arrays, min_size=1, max_size=3))
def test_requests_of_tensors_are_npy_files_by_name(feeds):
    message = PipelineRequest.FromString(encode_request(feeds, TENSORS))
    assert [tensor.name for tensor in message.tensors] == list(feeds)
    for tensor, array in zip(message.tensors, feeds.values()):
        assert tensor.elem_type == 13
        loaded = np.load(io.BytesIO(tensor.byte_data), allow_pickle=False)
        assert loaded.dtype == array.dtype
        np.testing.assert_array_equal(loaded, array)


@given(st.dictionaries(st.text("abc", min_size=1), arrays, min_size=1, max_size=3))
def test_requests_of_keys_and_values_are_numpys_text(feeds):
    message = PipelineRequest.FromString(encode_request(feeds, KEY_VALUE))
    assert list(message.key) == list(feeds)
    for text, array in zip(message.value, feeds.values()):
        np.testing.assert_array_equal(parse_array(text), array)


def test_strings_are_refused_with_the_feeds_name():
    with pytest.raises(WireError, match="feed 'words' holds"):
        encode_request({"words": np.array(["a"])}, TENSORS)


@given(arrays)
def test_responses_of_elements(array):
    elem_type, name = FIELDS[array.dtype.str[1:] if array.dtype != bool else "?"]
    tensor = {
        "name": "y",
        "elem_type": elem_type,
        "shape": array.shape,
        name: array.ravel().tolist(),
    }
    output = decoded(tensors=[tensor]).outputs["y"]
    assert output.dtype == array.dtype
    np.testing.assert_array_equal(output, array)


@given(arrays, st.booleans())
def test_responses_of_npy_files(array, fortran):
    array = np.asfortranarray(array) if fortran else array
    tensor = {"name": "y", "elem_type": 13, "byte_data": npy(array)}
    np.testing.assert_array_equal(decoded(tensors=[tensor]).outputs["y"], array)


@given(arrays)
def test_responses_of_text(array):
    response = decoded(key=["y"], value=[format_array(array)])
    np.testing.assert_array_equal(response.outputs["y"], array)


def test_a_refusal_carries_its_code_and_text():
    response = decoded(err_no=5000, err_msg="no such feed", key=["x"], value=["not an array"])
    assert (response.err_no, response.err_msg) == (5000, "no such feed")


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"elem_type": 13, "byte_data": npy(np.array([{}]))}, "array of numbers"),
        ({"elem_type": 13, "byte_data": b"\x93NUMPY"}, "tensor 'y'"),
        ({"elem_type": 13, "byte_data": npy(np.ones(4))[:-3]}, "tensor 'y'"),
        ({"elem_type": 13, "byte_data": b"PK\x03\x04 a zip file"}, "tensor 'y'"),
        ({"elem_type": 12, "str_data": ["a"]}, "element type 12"),
        ({"elem_type": 1, "float_data": [1.0], "shape": [2]}, "tensor 'y'"),
    ],
)
def test_a_malformed_tensor_is_named(tensor, complaint):
    with pytest.raises(WireError, match=complaint):
        decoded(tensors=[{"name": "y", **tensor}])


def test_a_value_that_is_no_array_is_named():
    with pytest.raises(WireError, match="value of 'y': not an array"):
        decoded(key=["y"], value=["hello"])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_response_or_a_wire_error(data):
    try:
        decode_response(memoryview(data))
    except WireError:
        pass


@given(arrays, st.data())
def test_a_response_with_a_changed_byte_is_a_response_or_a_wire_error(array, data):
    tensor = {"name": "y", "elem_type": 13, "byte_data": npy(array)}
    message = bytearray(PipelineResponse(tensors=[tensor]).SerializeToString())
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_response(memoryview(message))
    except WireError:
        pass


@given(arrays, st.binary(max_size=80))
def test_a_npy_file_with_any_header_is_an_array_or_a_wire_error(array, header):
    whole = npy(array)
    size = len(header).to_bytes(2, "little")
    tensor = {"name": "y", "elem_type": 13, "byte_data": whole[:8] + size + header + whole[128:]}
    try:
        decoded(tensors=[tensor])
    except WireError:
        pass
