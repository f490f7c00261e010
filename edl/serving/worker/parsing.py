"""A process that parses requests: JSON, compressed bodies, long lists of strings and integers.

Parsing these takes up to seconds, most of it in single calls that hold the GIL; a thread beside the
server's loop would stall everybody else as long. One runs when it is first needed.

Started as ``python -m edl.serving.worker.parsing CONTROL_FD INPUT_FD``, with both inherited. A
request goes through two steps, each a message and an answer (see ``control``):

======================================================  ========================================
from the front                                          the answer
======================================================  ========================================
``{"parse": [offset, size], "json", "kind", "limit"}``  ``{"room": bytes}`` or ``{"error": text}``
``{"store": offset}``                                   ``{"feeds": refs, "fetches", "log_id",
                                                        "times"}``
``{"drop": true}``                                      ``{}``
======================================================  ========================================

The body lies in the input arena, and so do the arrays afterwards: where they were, if they are
views of an uncompressed body, or in the room that the front has reserved in between.
"""

from __future__ import annotations

import resource
import socket
import sys
from dataclasses import dataclass
from typing import Any, Optional

from edl.errors import WireError
from edl.serving.wire import json_codec
from edl.serving.wire.arena import Arena, aligned
from edl.serving.wire.compression import decompress
from edl.serving.wire.messages import Request, decode_request
from edl.serving.wire.tensor import as_text_array
from edl.serving.worker import control

#: Bytes of private memory that parsing may take; beyond it, a request is refused.
_MEMORY = 4 << 30


@dataclass
class _Parsed:
    """A request whose arrays are not all in the arena yet: at which offset, or None."""

    request: Request
    offsets: dict[str, Optional[int]]


class ParserLoop:
    """The loop of the process."""

    def __init__(self, front: control.Front, inputs: Arena) -> None:
        self._front = front
        self._inputs = inputs
        self._parsed: Optional[_Parsed] = None

    def serve(self) -> None:
        """Answer messages until the front goes away."""
        while (message := self._front.receive()) is not None:
            self._front.send(self._answer(message))

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        if "parse" in message:
            return self._parse(**message)
        parsed, self._parsed = self._parsed, None
        if parsed is None or "drop" in message:
            return {}
        return self._store(parsed, message["store"])

    def _parse(self, parse: list[int], json: bool, kind: str, limit: int) -> dict[str, Any]:
        try:
            body = self._inputs.view(*parse)
            if kind:
                body = decompress(body, kind, limit)
            request = json_codec.decode_request(body) if json else decode_request(body)
            offsets: dict[str, Optional[int]] = {}
            room = 0
            for name, array in request.feeds.items():
                request.feeds[name] = as_text_array(name, array, limit)
                offsets[name] = self._inputs.offset_of(request.feeds[name])
                if offsets[name] is None:
                    room += aligned(request.feeds[name].nbytes)
        except WireError as error:
            return {"error": str(error)}
        except MemoryError:
            return {"error": f"parsing it takes more than {_MEMORY >> 20} MiB of memory"}
        self._parsed = _Parsed(request, offsets)
        return {"room": room}

    def _store(self, parsed: _Parsed, offset: int) -> dict[str, Any]:
        refs = {}
        for name, array in parsed.request.feeds.items():
            where = parsed.offsets[name]
            if where is None:
                refs[name] = control.tensor_ref(offset, array)
                control.resolve(self._inputs, refs[name])[...] = array
                offset += aligned(array.nbytes)
            else:
                refs[name] = control.tensor_ref(where, array)
        request = parsed.request
        said = {"fetches": request.fetches, "log_id": request.log_id, "times": request.times}
        return {"feeds": refs, **said}


def main() -> None:
    """Entry point of the process."""
    control.ignore_signals()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(
        resource.RLIMIT_DATA,
        (_MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard), hard),
    )
    control_fd, input_fd = (int(argument) for argument in sys.argv[1:3])
    with socket.socket(fileno=control_fd) as sock:
        try:
            ParserLoop(control.Front(sock), Arena.attach(input_fd)).serve()
        except OSError:  # the front died in mid-message
            pass


if __name__ == "__main__":
    main()
