"""Tensors to bytes and back: every dtype and shape, Google's runtime, hostile input."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edl.errors import WireError
from edl.serving.wire import protobuf as pb
from edl.serving.wire import tensor as codec
from edl.serving.wire.messages import decode_request, decode_response, encode_request
from tests.support.reference import TENSOR, Request, Response

NUMBERS = [np.dtype(kind) for kind in ("i8", "f4", "i4", "f8", "i2", "f2", "u2", "u1", "i1", "?")]
NO_COPY = [np.dtype(kind) for kind in ("f4", "f8", "i2", "f2", "u2", "u1", "i1", "?")]

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
arrays = st.sampled_from(NUMBERS).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
strings = hnp.arrays(object, shapes, elements=st.text(max_size=5))


def encoded(array, name="x"):
    return b"".join(codec.encode_tensor(name, array))


def decoded(data):
    return codec.decode_tensor(memoryview(data))


def same(left, right):
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


@given(arrays)
def test_every_dtype_and_shape_round_trips(array):
    assert same(decoded(encoded(array)).array, array)


@given(strings)
def test_strings_round_trip(array):
    result = decoded(encoded(array)).array
    assert result.shape == array.shape
    assert result.tolist() == array.tolist()


@given(arrays)
def test_non_contiguous_and_big_endian_arrays_arrive_as_plain_ones(array):
    reversed_axes = array.T
    assert same(
        decoded(encoded(reversed_axes)).array,
        np.ascontiguousarray(reversed_axes).reshape(reversed_axes.shape),
    )
    big_endian = array.astype(array.dtype.newbyteorder(">"))
    assert same(decoded(encoded(big_endian)).array, array)


@given(st.sampled_from(NO_COPY).flatmap(lambda dtype: hnp.arrays(dtype, st.integers(1, 50))))
def test_fixed_size_arrays_are_sent_and_received_without_a_copy(array):
    buffers = codec.encode_tensor("x", array)
    assert any(np.shares_memory(np.frombuffer(buffer, "u1"), array) for buffer in buffers)
    message = np.frombuffer(b"".join(buffers), "u1").copy()
    result = codec.decode_tensor(memoryview(message)).array
    assert np.shares_memory(result, message)


@given(arrays | strings)
def test_what_is_encoded_google_decodes(array):
    message = TENSOR.FromString(encoded(array, "näme"))
    assert message.name == message.alias_name == "näme"
    assert list(message.shape) == list(array.shape)
    assert message.elem_type == codec.elem_type_of(array.dtype)
    field = {0: "int64_data", 1: "float_data", 2: "int_data", 3: "float64_data", 9: "bool_data"}
    if message.elem_type == codec.STRING:
        assert list(message.data) == array.reshape(-1).tolist()
    elif message.elem_type in field:
        values = np.array(getattr(message, field[message.elem_type]), array.dtype)
        assert values.tobytes() == array.tobytes()
    else:
        assert message.tensor_content == array.tobytes()


@given(arrays)
def test_what_google_encodes_is_decoded(array):
    elem_type = codec.elem_type_of(array.dtype)
    message = TENSOR(elem_type=elem_type, shape=array.shape, name="n", alias_name="a")
    field = {0: "int64_data", 1: "float_data", 2: "int_data", 3: "float64_data", 9: "bool_data"}
    if elem_type in field:
        getattr(message, field[elem_type]).extend(array.reshape(-1).tolist())
    else:
        message.tensor_content = array.tobytes()
    result = decoded(message.SerializeToString())
    assert (result.name, result.alias) == ("n", "a")
    assert same(np.nan_to_num(result.array), np.nan_to_num(array))


def test_unpacked_numbers_are_decoded_too():
    data = b"".join([b"\x15" + np.float32(value).tobytes() for value in (1.5, 2.5)])
    assert decoded(data + b"\x50\x01\x5a\x01\x02").array.tolist() == [1.5, 2.5]
    assert decoded(b"\x08\x05\x08\xac\x02" + b"\x5a\x01\x02").array.tolist() == [5, 300]


def test_unknown_fields_are_passed_over():
    array = np.arange(3, dtype="f4")
    extra = pb.text(99, "new") + pb.integer(77, 5) + b"\xbd\x06abcd"
    assert decoded(encoded(array) + extra).array.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["u4", "u8", "c8", "M8[s]", "V4"])
def test_a_dtype_without_a_place_in_the_protocol_is_refused_by_name(dtype):
    array = np.zeros(2, dtype)
    with pytest.raises(WireError, match=r"cannot travel.*float32"):
        codec.encode_tensor("x", array)


def test_objects_that_are_not_strings_are_refused_by_name():
    with pytest.raises(WireError, match=r"'x'.*dict"):
        codec.encode_tensor("x", np.array([{}], dtype=object))


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (TENSOR(elem_type=1, shape=[3], float_data=[1, 2]), r"needs 3 elements.*holds 2"),
        (TENSOR(elem_type=1, shape=[-1], float_data=[1]), "negative"),
        (TENSOR(elem_type=1, shape=[1 << 30] * 3, float_data=[1]), "needs"),
        (TENSOR(elem_type=0, shape=[1 << 30], int64_data=[1]), "needs"),
        (TENSOR(elem_type=1, shape=[1], int64_data=[1]), "field"),
        (TENSOR(elem_type=4, shape=[1], tensor_content=b"abc"), "whole number"),
        (TENSOR(elem_type=9, shape=[1], tensor_content=b"\x02"), "bool"),
        (TENSOR(elem_type=12, shape=[1]), "element type 12"),
        (TENSOR(elem_type=20, shape=[2], data=["a"]), "needs 2 strings"),
        (TENSOR(elem_type=1, shape=[0] * 40), "dimensions"),
        (TENSOR(elem_type=1, shape=[0, *[2**31 - 1] * 4]), "not possible"),
    ],
)
def test_a_shape_or_type_that_does_not_match_the_data_is_refused(message, complaint):
    with pytest.raises(WireError, match=complaint):
        decoded(message.SerializeToString())


@given(arrays, st.data())
def test_truncated_tensors_are_refused_or_smaller(array, data):
    whole = encoded(array)
    cut = data.draw(st.integers(0, len(whole)))
    try:
        result = decoded(whole[:cut]).array
    except WireError:
        return
    assert result.nbytes <= max(array.nbytes, 8)


@settings(max_examples=500)
@given(st.binary(max_size=300))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
@example(b"\x5a\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_any_bytes_give_a_message_or_wire_error(data):
    for decode in (codec.decode_tensor, decode_request, decode_response):
        try:
            result = decode(memoryview(data))
        except WireError:
            continue
        if decode is codec.decode_tensor:
            assert result.array.size == math.prod(result.array.shape)


@settings(max_examples=300)
@given(arrays, st.data())
def test_mutated_requests_give_a_message_or_wire_error(array, data):
    message = bytearray(b"".join(encode_request({"x": array, "y": np.arange(4)}, ["p"])))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_request(memoryview(message))
    except WireError:
        pass


@given(arrays, arrays)
def test_requests_and_responses_agree_with_google(one, two):
    request = Request.FromString(b"".join(encode_request({"one": one, "two": two}, ["p", "q"])))
    assert [item.alias_name for item in request.tensor] == ["one", "two"]
    assert list(request.fetch_var_names) == ["p", "q"]
    again = decode_request(memoryview(request.SerializeToString(deterministic=True)))
    assert same(again.feeds["one"], one)
    assert same(again.feeds["two"], two)
    assert again.fetches == ["p", "q"]


def test_the_error_of_a_response_is_decoded():
    message = Response(err_no=-3, err_msg="böse").SerializeToString()
    response = decode_response(memoryview(message))
    assert (response.err_no, response.err_msg) == (-3, "böse")


def test_a_name_that_occurs_twice_is_refused():
    tensor = TENSOR(elem_type=1, shape=[1], float_data=[1], alias_name="x")
    message = Request(tensor=[tensor, tensor]).SerializeToString()
    with pytest.raises(WireError, match="'x' occurs twice"):
        decode_request(memoryview(message))


@pytest.mark.parametrize(
    ("array", "effort", "quick"),
    [
        (np.zeros(1 << 20, "f4"), 1000, True),
        (np.zeros(100, "i8"), 1000, True),
        (np.zeros(1000, "i8"), 1000, False),
        (np.zeros(1000, "?"), 1000, False),
        (np.array(["x"] * 100, object), 1000, False),
        (np.array(["x" * 1000], object), 1000, False),
    ],
)
def test_what_decoding_takes_is_bounded_before_it_is_done(array, effort, quick):
    message = memoryview(b"".join(encode_request({"x": array}, [])))
    with contextlib.nullcontext() if quick else pytest.raises(codec.TooMuchEffort):
        decode_request(message, codec.Effort(effort))
    assert (decode_request(message).feeds["x"] == array).all()


def outcome(decode, message, left):
    effort = codec.Effort(left)
    try:
        tensor = decode(memoryview(message), effort)
    except (WireError, codec.TooMuchEffort) as error:
        return type(error), str(error)
    array = tensor.array
    return tensor.name, tensor.alias, array.dtype, array.shape, array.tobytes(), effort.left


@settings(max_examples=500)
@given(arrays, st.sampled_from([200, 1 << 20]), st.data())
def test_what_is_remembered_of_a_tensor_is_what_its_fields_say(array, left, data):
    message = bytearray(encoded(array))
    for _ in range(data.draw(st.integers(0, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    for _ in range(2):  # new, and remembered
        field_by_field = outcome(codec._decode_fields, message, left)
        assert outcome(codec.decode_tensor, message, left) == field_by_field


def test_data_in_pieces_are_an_effort():
    whole = b"".join(codec.encode_tensor("x", np.zeros(500, "f4")))
    pieces = memoryview(whole[: 2000 + 3] + whole)
    with pytest.raises(codec.TooMuchEffort):
        codec.decode_tensor(pieces, codec.Effort(1000))


@pytest.mark.parametrize("longest", [1, 2, 3, 100])
def test_strings_take_the_width_of_the_longest_within_a_limit(longest):
    strings = np.array(["y" * longest, "", "é"], object)
    width = codec.as_text_array("x", strings, 1 << 20).dtype.itemsize // 4
    assert longest <= width < 2 * longest + 1
    assert codec.as_text_array("x", strings, 1 << 20).tolist() == strings.tolist()
    with pytest.raises(WireError, match=f"tensor 'x': 3 strings, the longest of {longest} char"):
        codec.as_text_array("x", strings, 12 * width - 1)
