"""The protobuf subset: varints in bulk, and walking messages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edl.errors import WireError
from edl.serving.wire import protobuf as pb

int64s = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(int64s))
def test_bulk_varints_are_the_single_ones_in_a_row(values):
    bulk = pb.encode_varints(np.array(values, np.int64)).tobytes()
    assert bulk == b"".join(pb.encode_varint(value) for value in values)


@given(hnp.arrays(np.int64, st.integers(0, 50), elements=int64s))
def test_bulk_varints_round_trip(values):
    assert (pb.decode_varints(memoryview(pb.encode_varints(values))) == values).all()


@given(st.binary(max_size=60))
def test_any_bytes_decode_like_one_varint_after_the_other_or_are_refused(data):
    view, at, expected = memoryview(data), 0, []
    try:
        while at < len(view):
            value, at = pb.decode_varint(view, at)
            expected.append(value)
    except WireError:
        with pytest.raises(WireError):
            pb.decode_varints(view)
    else:
        assert pb.decode_varints(view).view(np.uint64).tolist() == expected


@given(st.binary(max_size=200))
def test_walking_any_bytes_ends_or_raises_wire_error(data):
    try:
        for _, _, value in pb.fields(memoryview(data)):
            assert isinstance(value, int) or len(value) <= len(data)
    except WireError:
        pass


def test_a_message_with_too_many_fields_is_refused():
    with pytest.raises(WireError, match="too many fields"):
        list(pb.fields(memoryview(b"\x08\x00" * (pb.MAX_FIELDS + 1))))


@pytest.mark.parametrize("data", [b"\x01" + b"\x80" * 10 + b"\x01", b"\x80" * 11 + b"\x00\x01"])
def test_an_integer_of_more_than_ten_bytes_is_refused(data):
    with pytest.raises(WireError, match="longer than 10 bytes"):
        pb.decode_varints(memoryview(data))
