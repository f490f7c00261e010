"""Requests and responses as JSON, the way brpc has them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edl.errors import WireError
from edl.serving.wire.json_codec import (
    decode_request,
    encode_response,
    encode_response_in_pieces,
)

VECTORS = Path(__file__).parents[2] / "vectors"
KINDS = ("i8", "f4", "i4", "f8", "i2", "f2", "u2", "u1", "i1", "?")


def request(**tensor):
    tensor = {"float_data": [1, 2], "elem_type": 1, "shape": [1, 2], "alias_name": "img", **tensor}
    return json.dumps({"tensor": [tensor], "fetch_var_names": ["prob"]}).encode()


TENSOR = b'{"float_data": [1, 2], "elem_type": 1, "shape": [1, 2], "name": "x"}'
TWICE = b'{"tensor": [%s, %s]}' % (TENSOR, TENSOR)


def test_the_official_clients_request():
    decoded = decode_request((VECTORS / "official_http_request.json").read_bytes())
    assert decoded.fetches == ["prob"]
    assert (decoded.feeds["img"] == np.arange(8, dtype="f4").reshape(2, 1, 2, 2) / 8).all()
    assert decoded.feeds["ids"].tolist() == [[1, 2, 300], [-1, 5, 70000]]
    assert (decoded.feeds["img"].dtype, decoded.feeds["ids"].dtype) == (np.float32, np.int64)


@given(
    st.sampled_from(KINDS).flatmap(
        lambda kind: hnp.arrays(
            kind, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
        )
    )
)
def test_arrays_come_back_as_they_were(array):
    tensor = json.loads(encode_response({"x": array}))["outputs"][0]["tensor"][0]
    decoded = decode_request(json.dumps({"tensor": [tensor]}).encode()).feeds["x"]
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


def test_strings_come_back_as_they_were():
    array = np.array([["a", ""], ["ü", "b" * 1000]], dtype=object)
    tensor = json.loads(encode_response({"x": array}))["outputs"][0]["tensor"][0]
    assert (decode_request(json.dumps({"tensor": [tensor]}).encode()).feeds["x"] == array).all()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"tensor": {}}', "must be lists"),
        (b'{"tensor": [1]}', "must hold objects"),
        (b'{"tensor": [], "fetch_var_names": [1]}', "must hold strings"),
        (b'{"tensor": [{}]}', "neither 'alias_name' nor 'name'"),
        (TWICE, "tensor 'x' occurs twice"),
        (b'{"log_id": -1}', "'log_id' must be an unsigned 64-bit number"),
        (b'{"log_id": "18446744073709551616"}', "'log_id' must be an unsigned 64-bit number"),
        (b'{"log_id": true}', "'log_id' must be an unsigned 64-bit number"),
        (request(elem_type=99), "'img': element type 99"),
        (request(elem_type="1"), "'elem_type' must be a number"),
        (request(elem_type=0), r"belongs in 'int64_data', not in \['float_data'\]"),
        (request(shape=None), "'shape' must be a list"),
        (request(shape=[-1, 2]), "'shape' must be a list"),
        (request(shape=[1, 3]), "needs 3 elements, there are 2"),
        (request(shape=[1] * 100 + [2]), "is not possible"),
        (request(float_data=[[1], [2]]), "must be a flat list of float or int"),
        (request(float_data=[1, "2"]), "must be a flat list of float or int"),
        (request(float_data={"1": 2}), "must be a flat list of float or int"),
        (request(float_data=[], int_data=[1.5, 2], elem_type=2), "must be a flat list of int"),
        (request(float_data=[], int_data=[2**31, 0], elem_type=2), "beyond int32"),
        (request(float_data=[], int64_data=[2**63, 0], elem_type=0), "beyond int64"),
        (request(float_data=[], tensor_content="%%", elem_type=5), "not base64"),
        (request(float_data=[], tensor_content="AAA=", elem_type=6), "2 elements, there are 1"),
        (request(float_data=[], tensor_content="AA==", elem_type=6), "not a whole number"),
        (request(float_data=[], tensor_content="AA==", elem_type=20), "must be base64 of a number"),
    ],
)
def test_what_is_wrong_is_named(body, complaint):
    with pytest.raises(WireError, match=complaint):
        decode_request(body)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(
                        ["tensor", "shape", "elem_type", "alias_name", "float_data", "int_data",
                         "tensor_content", "data", "bool_data", "fetch_var_names"]),
                        inner, max_size=6), max_leaves=20))  # fmt: skip
def test_any_json_is_a_request_or_a_wire_error(value):
    try:
        decode_request(json.dumps({"tensor": [value], "x": value}).encode())
    except WireError:
        pass


def test_a_log_id_beyond_what_a_double_holds_may_be_text():
    assert decode_request(b'{"log_id": "18446744073709551615"}').log_id == 2**64 - 1
    assert decode_request(b'{"log_id": 18446744073709551615}').log_id == 2**64 - 1


def test_a_json_answer_in_pieces_is_the_answer():
    outputs = {
        "a": np.random.default_rng(0).random((300, 11), dtype="f4"),
        "b": np.arange(400_000, dtype="u1"),
        "c": np.zeros((0, 3), "f4"),
        "d": np.array(["x", 'q"'], object),
    }
    pieces = list(encode_response_in_pieces(outputs, 2**64 - 1))
    assert max(map(len, pieces)) < 1 << 20
    message = json.loads(b"".join(pieces))
    assert message["log_id"] == 2**64 - 1
    tensors = message["outputs"][0]["tensor"]
    decoded = decode_request(json.dumps({"tensor": tensors}).encode()).feeds
    for name, array in outputs.items():
        assert (decoded[name] == array).all()
        assert decoded[name].shape == array.shape
