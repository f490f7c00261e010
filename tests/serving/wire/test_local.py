"""What a teacher and a student on one machine tell each other, and tensors that lie elsewhere."""

import json

import numpy as np
import pytest

from edl._machine import boot_id
from edl.errors import WireError
from edl.serving.wire import protobuf as pb
from edl.serving.wire.arena import Arena
from edl.serving.wire.description import Description, TensorSpec
from edl.serving.wire.local import (
    DESCRIBED,
    Local,
    decode_share,
    encode_share,
    said,
)
from edl.serving.wire.messages import (
    Room,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from edl.serving.wire.tensor import encode_tensor, own_copy

SPECS = {"x": TensorSpec((2,), "float32")}
GOOD = {"boot": "b", "port": 9292, "socket": "/run/user/1/edl-teacher-ab12/socket"}


@pytest.fixture
def memory():
    arena = Arena.create(1 << 16, "test")
    yield arena
    arena.close()


def place(memory, offset, array):
    memory.view(offset, array.nbytes)[:] = array.tobytes()


def request(x, places, room=None):
    return memoryview(b"".join(encode_request({"x": x}, ["y"], places, room)))


def response(y, places):
    return memoryview(b"".join(encode_response({"y": y}, places=places)))


def test_a_description_says_where_the_socket_is():
    local = Local(**GOOD)
    description = Description(SPECS, SPECS, extra={DESCRIBED: local.to_json()})
    assert said(Description.from_json(description.to_json())) == local
    assert len(boot_id()) == 36


@pytest.mark.parametrize(
    "value",
    [
        None,
        "socket",
        [],
        {},
        {**GOOD, "boot": 1},
        {**GOOD, "port": "9292"},
        {**GOOD, "socket": None},
        {**GOOD, "socket": "edl-teacher-ab12/socket"},
        {**GOOD, "socket": "/run/docker.sock"},
        {**GOOD, "socket": "/run/edl-teacher-ab12/other"},
        {**GOOD, "socket": "/run/elsewhere/socket"},
        {**GOOD, "socket": "/edl-teacher-\0/socket"},
        {**GOOD, "socket": "/edl-teacher-" + "x" * 100 + "/socket"},
    ],
)
def test_what_makes_no_sense_says_of_no_socket(value):
    text = json.dumps({**json.loads(Description(SPECS, SPECS).to_json()), DESCRIBED: value})
    assert said(Description.from_json(text)) is None


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "?"])
def test_a_tensor_of_any_numbers_may_lie_elsewhere(memory, dtype):
    x = (np.arange(6) % 2).astype(dtype).reshape(3, 2)
    place(memory, 128, x)
    message = request(x, {"x": (3, 128)}, Room(3, 256, 64))
    assert len(message) < 60
    decoded = decode_request(message, memories={3: memory})
    assert decoded.feeds["x"].dtype == x.dtype
    assert decoded.feeds["x"].tolist() == x.tolist()
    assert memory.offset_of(decoded.feeds["x"]) == 128
    assert (decoded.fetches, decoded.room) == (["y"], Room(3, 256, 64))
    outputs = decode_response(response(x, {"y": (3, 128)}), {3: memory}).outputs
    assert outputs["y"].tolist() == x.tolist()


def test_the_bytes_of_a_tensor_that_lies_elsewhere(memory):
    golden = bytes.fromhex("c23e020340" + "5001" + "5a020302" + "6a0178" + "720178")
    assert b"".join(encode_tensor("x", np.zeros((3, 2), "f4"), place=(3, 64))) == golden


@pytest.mark.parametrize(
    ("at", "said_of_it"),
    [
        ((4, 128), "no memory 4"),
        ((3, 130), "not a multiple of 64"),
        ((3, 1 << 16), "outside the arena"),
        ((3, (1 << 16) - 64), "outside the arena"),
        ((3, 1 << 63), "outside the arena"),
    ],
)
def test_places_that_are_none_are_refused(memory, at, said_of_it):
    x = np.zeros((5, 4), "f4")  # 80 bytes
    with pytest.raises(WireError, match=said_of_it):
        decode_request(request(x, {"x": at}), memories={3: memory})
    with pytest.raises(WireError, match=said_of_it):
        decode_request(request(x, {}, Room(*at, 80)), memories={3: memory})
    with pytest.raises(WireError, match=said_of_it):
        decode_response(response(x, {"y": at}), {3: memory})


def test_places_are_refused_where_nothing_was_handed_over():
    x = np.zeros((5, 4), "f4")
    with pytest.raises(WireError, match="no memory 3 was handed over"):
        decode_request(request(x, {"x": (3, 0)}))
    with pytest.raises(WireError, match="no memory 3 was handed over"):
        decode_request(request(x, {}, Room(3, 0, 64)))
    with pytest.raises(WireError, match="no memory 3 was handed over"):
        decode_response(response(x, {"y": (3, 0)}))


def tensor_at(*fields):
    return memoryview(pb.blob(1, b"".join(fields) + pb.text(14, "x")))


PLACE, SHAPE, FP32 = pb.blob(1000, b"\x03\x00"), pb.blob(11, b"\x02"), pb.integer(10, 1)


@pytest.mark.parametrize(
    "fields",
    [
        (FP32, SHAPE, PLACE, pb.blob(2, bytes(8))),  # in two places
        (pb.integer(10, 20), SHAPE, PLACE),  # strings
        (FP32, pb.blob(11, b"\x00"), PLACE),  # nothing
        (FP32, SHAPE, pb.blob(1000, b"")),
        (FP32, SHAPE, pb.blob(1000, b"\x03")),
        (FP32, SHAPE, pb.integer(1000, 3)),
        (FP32, pb.blob(11, b"\xff\xff\xff\x07" * 4), PLACE),
    ],
)
def test_tensors_that_make_no_sense_are_refused(memory, fields):
    with pytest.raises(WireError):
        decode_request(tensor_at(*fields), memories={3: memory})


def test_a_copy_of_ones_own_does_not_change_with_the_memory(memory):
    octets = np.frombuffer(memory.view(0, 3), np.uint8)
    octets[:] = [0, 1, 255]
    numbers, bools = own_copy(octets), own_copy(octets.view(bool))
    octets[:] = 7
    assert numbers.tolist() == [0, 1, 255]
    assert bools.view(np.uint8).tolist() == [0, 1, 1]


def test_the_number_of_what_is_handed_over_travels_with_it():
    assert decode_share(memoryview(b"".join(encode_share(300)))) == 300
    for wrong in (b"", pb.text(1, "x"), b"\x08"):
        with pytest.raises(WireError):
            decode_share(memoryview(wrong))
