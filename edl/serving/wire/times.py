"""Where a request's time went at its server, said in the answer to a client that wants to know.

Clocks of two machines differ, so these are durations; the client lays them between its own times.
Two fields, ours: Request {1001 wants times: bool}, and Response {1000 times}: {1 decode, 2 queue,
3 compute, 4 encode, in whole microseconds; 5 rows, 6 requests, 7 worker}, all varints. A server
says in its description that it has them, under the key ``times``; only such a one is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from edl.serving.wire import protobuf as pb
from edl.serving.wire.description import Description

#: Under this key a description says that its server tells times.
DESCRIBED = "times"
VERSION = 1

#: The field of a Request, and that of a Response.
WANTED, TIMES = 1001, 1000

_DURATIONS = 4  # of the fields, which are numbered as they are declared
_MOST_FIELDS = 64
_MOST = (1 << 31) - 1  # rows, requests and workers


@dataclass(frozen=True)
class ServerTimes:
    """Of one request, in seconds, one after the other from its last byte's arrival to its answer's
    first byte: ``decode`` until it was understood and in the queue; ``queue`` until a worker began
    with its batch; ``compute`` of the batch, as seen from outside the worker; ``encode`` until the
    answer could be sent. The batch had so many ``rows`` and ``requests``. ``worker``: which one of
    the server's, from 0.
    """

    decode: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    encode: float = 0.0
    rows: int = 0
    requests: int = 0
    worker: int = 0

    @property
    def seconds(self) -> float:
        """All together."""
        return self.decode + self.queue + self.compute + self.encode


_NAMES = tuple(field.name for field in fields(ServerTimes))


def are_told(description: Description) -> bool:
    """Whether the server that says this tells times."""
    said = description.extra.get(DESCRIBED)
    return isinstance(said, int) and not isinstance(said, bool) and said >= VERSION


def encode_wish() -> bytes:
    """The field of a Request that asks for times."""
    return pb.integer(WANTED, 1)


def encode_times(times: ServerTimes) -> bytes:
    """The field of a Response. Durations are rounded down, so that they exceed nothing."""
    durations = [max(0, int(getattr(times, name) * 1e6)) for name in _NAMES[:_DURATIONS]]
    numbers = [getattr(times, name) for name in _NAMES[_DURATIONS:]]
    return pb.blob(
        TIMES,
        b"".join(pb.integer(at, value) for at, value in enumerate([*durations, *numbers], 1)),
    )


def decode_times(message: memoryview) -> ServerTimes:
    """The inverse, of that field's content. Durations are finite and not negative, and numbers
    at most 2**31 - 1, whatever is said. Raises WireError for what is malformed.
    """
    said: dict[str, float] = {}
    for number, _, value in pb.fields(message, _MOST_FIELDS):
        if number <= len(_NAMES):
            whole = pb.as_int(number, value)
            figure = whole / 1e6 if number <= _DURATIONS else min(whole, _MOST)
            said[_NAMES[number - 1]] = figure
    return ServerTimes(**said)  # type: ignore[arg-type]


def server_timing(times: ServerTimes) -> str:
    """The same as the value of an HTTP header (https://www.w3.org/TR/server-timing/)."""
    durations = [f"{name};dur={1e3 * getattr(times, name):.3f}" for name in _NAMES[:_DURATIONS]]
    batch = f'batch;desc="{times.rows} rows of {times.requests} requests"'
    return ", ".join([*durations, batch, f'worker;desc="{times.worker}"'])
