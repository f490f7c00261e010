"""Peers that cost nothing: what the reader and the wire are measured against.

A peer is a process that answers every request frame with the same soft labels, computed beforehand.
A message that starts with "RAWB" is a bare one: so many bytes in, the labels' bytes out.
"""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time

import numpy as np

from edl.serving import Description, TensorSpec
from edl.serving.client.teacher import receive_exactly, send_all
from edl.serving.wire import frame
from edl.serving.wire.description import DESCRIBE_SERVICE
from edl.serving.wire.messages import encode_response

RAW = b"RAWB"

#: Soft labels for a batch.
LABELS = np.random.default_rng(0).random((32, 1000), dtype=np.float32)

#: For as many rows as a teacher computes together.
_MANY = np.tile(LABELS, (2, 1))
_DIGITS = np.ascontiguousarray(_MANY[:, :10])


class Nothing:
    """A predictor that does nothing, for ``edl teacher --python _nothing:Nothing``."""

    description = Description(
        {"img": TensorSpec((-1, -1, -1), "float32")}, {"prob": TensorSpec((1000,), "float32")}
    )

    def run(self, feeds: dict, fetches: list) -> dict:
        """The labels, whatever the images."""
        return {"prob": _MANY[: len(feeds["img"])]}


class Digits:
    """The same for ten classes."""

    description = Description(
        {"img": TensorSpec((-1, -1, -1), "float32")}, {"prob": TensorSpec((10,), "float32")}
    )

    def run(self, feeds: dict, fetches: list) -> dict:
        """The labels, whatever the images."""
        return {"prob": _DIGITS[: len(feeds["img"])]}


class Peer:
    """One peer process. ``delay``: seconds a request takes, as if it were computed elsewhere."""

    def __init__(self, labels: np.ndarray, delay: float = 0.0) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.endpoint = f"127.0.0.1:{self.address[1]}"
        context = multiprocessing.get_context("fork")
        self._process = context.Process(
            target=_serve, args=(self._listener, labels, delay), daemon=True
        )
        self._process.start()
        self._listener.close()

    def connect(self) -> socket.socket:
        """A socket for bare messages."""
        conn = socket.create_connection(self.address)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return conn

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def bare_round_trip(conn: socket.socket, array: np.ndarray, answer: memoryview) -> None:
    """As many bytes as ``array`` there, as ``answer`` back, and nothing else."""
    send_all(conn, [RAW + array.nbytes.to_bytes(8, "big"), array.data.cast("B")])
    receive_exactly(conn, answer)


def _serve(listener: socket.socket, labels: np.ndarray, delay: float) -> None:
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=_answer_all, args=(conn, labels, delay), daemon=True).start()


def _answer_all(conn: socket.socket, labels: np.ndarray, delay: float) -> None:
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    spec = TensorSpec(labels.shape[1:], str(labels.dtype))
    feeds = {"img": TensorSpec((-1, -1, -1), "float32")}
    description = Description(feeds, {"prob": spec}).to_json().encode()
    payload = encode_response({"prob": labels})
    buffer = memoryview(bytearray(32 << 20))
    header = memoryview(bytearray(frame.HEADER_SIZE))
    while True:
        try:
            receive_exactly(conn, header)
        except (EOFError, OSError):
            return
        if header[:4] == RAW:
            receive_exactly(conn, buffer[: int.from_bytes(header[4:], "big")])
            send_all(conn, [labels.data.cast("B")])
            continue
        body_size, meta_size = frame.parse_header(header)
        receive_exactly(conn, buffer[:body_size])
        meta, _ = frame.parse_body(buffer[:body_size], meta_size)
        assert isinstance(meta, frame.RequestMeta)
        time.sleep(delay) if delay else None
        answer = frame.ResponseMeta(meta.correlation_id)
        describing = meta.service == DESCRIBE_SERVICE
        send_all(conn, frame.encode_frame(answer, [description] if describing else payload))
