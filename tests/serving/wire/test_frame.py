"""baidu_std frames: golden bytes, round trips, refusals."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.errors import WireError
from edl.serving.wire import frame
from edl.serving.wire.messages import METHOD, SERVICE, decode_request, encode_request

#: One request as the official client 0.9.0 put it on the wire.
GOLDEN = (Path(__file__).parents[2] / "vectors/official_client_request.bin").read_bytes()
IMG = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2) / 8
IDS = np.array([[1, 2, 300], [-1, 5, 70000]])


def parsed(data):
    _, meta_size = frame.parse_header(data)
    return frame.parse_body(memoryview(data)[frame.HEADER_SIZE :], meta_size)


def test_the_official_clients_request_is_understood():
    meta, payload = parsed(GOLDEN)
    assert (meta.service, meta.method) == (SERVICE, METHOD)
    request = decode_request(payload)
    assert (request.feeds["img"] == IMG).all()
    assert (request.feeds["ids"] == IDS).all()
    assert request.fetches == ["prob"]


def test_the_official_clients_request_is_reproduced_byte_for_byte():
    meta, _ = parsed(GOLDEN)
    again = frame.encode_frame(meta, encode_request({"img": IMG, "ids": IDS}, ["prob"]))
    assert b"".join(again) == GOLDEN


ids = st.integers(-(2**63), 2**63 - 1)


@given(st.text(), st.text(), ids, ids, st.binary(max_size=20), st.binary(max_size=50))
def test_request_frames_round_trip(service, method, correlation_id, log_id, token, payload):
    meta = frame.RequestMeta(service, method, correlation_id, log_id, authentication=token)
    again, body = parsed(b"".join(frame.encode_frame(meta, [payload])))
    assert again == meta
    assert body == payload


@given(ids, st.integers(-(2**31), 2**31 - 1), st.text(), st.binary(max_size=50))
def test_response_frames_round_trip(correlation_id, code, text, payload):
    meta = frame.ResponseMeta(correlation_id, code, text)
    again, body = parsed(b"".join(frame.encode_frame(meta, [payload])))
    assert again == meta
    assert body == payload


def test_an_attachment_is_not_part_of_the_payload():
    meta = frame.ResponseMeta(1, attachment_size=3)
    _, body = parsed(b"".join(frame.encode_frame(meta, [b"payload", b"abc"])))
    assert body == b"payload"


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"HTTP/1.1 200", "not a baidu_std frame"),
        (b"PRPC", "12 bytes"),
        (b"PRPC" + (2**31).to_bytes(4, "big") + bytes(4), "beyond the limit"),
        (b"PRPC" + (5).to_bytes(4, "big") + (6).to_bytes(4, "big"), "meta of 6"),
        (b"PRPC" + (2**20).to_bytes(4, "big") + (2**20).to_bytes(4, "big"), "meta of"),
    ],
)
def test_a_header_that_is_not_one_is_refused(header, complaint):
    with pytest.raises(WireError, match=complaint):
        frame.parse_header(header)


@given(st.binary(max_size=100), st.integers(0, 100))
def test_any_body_gives_a_meta_or_wire_error(body, meta_size):
    try:
        frame.parse_body(memoryview(body), min(meta_size, len(body)))
    except WireError:
        pass


def test_a_frame_of_more_than_its_header_can_say_is_refused():
    with pytest.raises(WireError, match="a frame holds at most 4 GiB, this one would be 429"):
        frame.encode_frame(frame.ResponseMeta(1), [bytes(1 << 20)] * 4096)


def test_an_attachment_that_the_frame_has_no_room_for_is_refused():
    (message,) = frame.encode_frame(frame.RequestMeta("s", "m", 1, attachment_size=1), [])
    with pytest.raises(WireError, match="attachment of 1 bytes does not fit"):
        parsed(message)
