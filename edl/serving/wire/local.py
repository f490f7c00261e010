"""What a teacher and a student on the same machine tell each other: where the teacher's Unix socket
is, and which memory a student has handed over there.

A description says the machine's boot id, the teacher's TCP port and the path of its socket. Who
finds the same boot id here, has asked at that very port (and so not by way of a proxy) and can
connect to the socket, may talk to the teacher by it, in the same frames.

Memory is handed over with ``edl.TeacherService/share``: the frame comes with the file descriptor of
a sealed memfd (see ``arena.Arena.create_fixed``), and its payload is {1 number}, by which requests
refer to that memory. Its answer is empty, or an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

from edl.errors import WireError
from edl.serving.wire import protobuf as pb
from edl.serving.wire.description import DESCRIBE_SERVICE, Description
from edl.serving.wire.tensor import Buffer

SHARE_SERVICE, SHARE_METHOD = DESCRIBE_SERVICE, "share"

#: Under this key a description holds it.
DESCRIBED = "local"

#: How directories begin that hold a teacher's socket, and what it is called there. Students connect
#: to no other: a description may be anybody's.
DIRECTORY, NAME = "edl-teacher-", "socket"

#: What one connection may hand over, one piece after the other.
MOST_MEMORIES = 4
LARGEST_MEMORY = 1 << 30

_NUMBER = 1
_LONGEST_PATH = 107  # of a Unix socket


@dataclass(frozen=True)
class Local:
    """Where a teacher is to be found on its own machine."""

    boot: str
    port: int
    socket: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def said(description: Description) -> Optional[Local]:
    """What a description of any origin holds; None if that makes no sense."""
    value = description.extra.get(DESCRIBED)
    if not isinstance(value, Mapping):
        return None
    boot, port, path = (value.get(name) for name in ("boot", "port", "socket"))
    if not isinstance(boot, str) or not isinstance(port, int) or not isinstance(path, str):
        return None
    directory, name = os.path.split(path)
    sound = (
        os.path.isabs(path)
        and len(os.fsencode(path)) <= _LONGEST_PATH
        and "\0" not in path
        and name == NAME
        and os.path.basename(directory).startswith(DIRECTORY)
    )
    return Local(boot, port, path) if sound else None


def encode_share(number: int) -> list[Buffer]:
    """The payload that hands over the memory of this number."""
    return [pb.integer(_NUMBER, number)]


def decode_share(message: memoryview) -> int:
    """The inverse. Raises WireError."""
    for number, _, value in pb.fields(message):
        if number == _NUMBER:
            return pb.as_int(number, value)
    raise WireError("memory was handed over without its number")
