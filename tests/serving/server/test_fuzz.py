"""Hostile clients against a real teacher: it goes on answering, and holds on to nothing.

CI runs a short one with a random seed that is printed; ``scripts/fuzz 300000 [seed]`` a long one.
"""

import contextlib
import gzip
import json
import os
import random
import socket
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from edl.serving import TeacherClient
from edl.serving.wire import frame
from edl.serving.wire.description import DESCRIBE_METHOD, DESCRIBE_SERVICE
from edl.serving.wire.messages import METHOD, SERVICE, encode_request
from tests.support.processes import children_of, eventually, python_teacher

MESSAGES = int(os.environ.get("EDL_FUZZ_MESSAGES", "20000"))
SEED = int(os.environ.get("EDL_FUZZ_SEED", "0")) or random.randrange(1 << 20)
VECTORS = Path(__file__).parents[2] / "vectors"
IMG = np.arange(12, dtype="f4").reshape(3, 4)


def rpc(payload, **meta):
    fields = {"service": SERVICE, "method": METHOD, "correlation_id": 7, **meta}
    return b"".join(frame.encode_frame(frame.RequestMeta(**fields), [payload]))


def post(body, headers=""):
    head = f"POST /GeneralModelService/inference HTTP/1.1\r\nHost: x\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


PAYLOAD = b"".join(encode_request({"img": IMG}, ["prob"]))
JSON = json.dumps(
    {
        "tensor": [
            {"float_data": IMG.ravel().tolist(), "elem_type": 1, "shape": [3, 4], "name": "img"}
        ],
        "fetch_var_names": ["prob"],
    }
).encode()
SEEDS = [
    rpc(PAYLOAD),
    rpc(gzip.compress(PAYLOAD), compress_type=2),
    rpc(b"", service=DESCRIBE_SERVICE, method=DESCRIBE_METHOD),
    (VECTORS / "official_client_request.bin").read_bytes(),
    post(PAYLOAD, "Content-Type: application/proto\r\n"),
    post(JSON, "Content-Type: application/json\r\n"),
    post(gzip.compress(JSON), "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"),
    b"POST /GeneralModelService/inference HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\n{}  \r\n0\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n",
]


class Mutator:
    """Makes messages that are nearly right."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def frame(self):
        """A frame whose sizes are right, with a changed payload."""
        kind = self.random.choice([0, 0, 0, 0, 0, 0, 1, 2, 3, 9])
        return rpc(
            self.change(gzip.compress(PAYLOAD) if kind == 2 else PAYLOAD), compress_type=kind
        )

    def post(self):
        """An HTTP request whose body is changed."""
        body = self.random.choice([PAYLOAD, JSON])
        kind = "application/proto" if body is PAYLOAD else "application/json"
        return post(self.change(body), f"Content-Type: {kind}\r\n")

    def anything(self):
        """A message that is changed anywhere."""
        return self.change(self.random.choice(SEEDS))

    def change(self, message):
        message = bytearray(message)
        for _ in range(self.random.choice([1, 1, 1, 2, 5, 20])):
            self.change_once(message)
        return bytes(message)

    def change_once(self, message):
        choose = self.random
        at = choose.randrange(len(message) + 1)
        kind = choose.randrange(7)
        if kind == 0 and message:
            message[at % len(message)] = choose.randrange(256)
        elif kind == 1 and message:
            message[at % len(message)] ^= 1 << choose.randrange(8)
        elif kind == 2:
            del message[at:]
        elif kind == 3:
            del message[at : at + choose.randrange(1, 16)]
        elif kind == 4:
            message[at:at] = choose.randbytes(choose.randrange(1, 16))
        elif kind == 5:
            start = choose.randrange(len(message) + 1)
            message[at:at] = message[start : start + choose.randrange(1, 64)]
        else:
            number = choose.choice([0, 1, 127, 128, 2**31 - 1, 2**31, 2**32 - 1])
            message[at : at + 4] = struct.pack(">I", number)


def attack(port, mutator, messages):
    """Send ``messages`` of them over as many connections as it takes, each of one kind."""
    while messages > 0:
        make = mutator.random.choice([mutator.frame, mutator.post, mutator.anything])
        count = min(messages, mutator.random.randrange(1, 3 if make == mutator.anything else 30))
        messages -= count
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(10)
            ending = mutator.random.random()
            for _ in range(count):
                sock.sendall(make())
            if ending < 0.8:  # otherwise in mid-message, without a word
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass


def memory(pids):
    """Bytes that the processes have to themselves (shared memory is counted once, by them all)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1]) * 1024
    return total


@pytest.mark.slow
@pytest.mark.timeout(max(120, MESSAGES // 200))
def test_hostile_clients_leave_a_teacher_as_it_was():
    print(f"\nfuzz: seed {SEED}, {MESSAGES} messages")
    mutator = Mutator(SEED)
    with python_teacher("Sums", "--max-queued", 100, verbose=False) as teacher:
        pids = [teacher.process.pid, *children_of(teacher.process.pid)]

        def open_files():
            return len(os.listdir(f"/proc/{teacher.process.pid}/fd"))

        files_before = open_files()
        rounds, warmed = 20, 0
        for number in range(rounds):
            attack(teacher.port, mutator, MESSAGES // rounds)
            half = [socket.create_connection(("127.0.0.1", teacher.port)) for _ in range(50)]
            for sock in half:
                message = mutator.random.choice(SEEDS)
                sock.sendall(message[: mutator.random.randrange(len(message))])
            with TeacherClient(teacher.endpoint) as client:
                assert (client.infer({"img": IMG})["prob"][:, 0] == IMG.sum(axis=1)).all()
            for sock in half:
                sock.close()
            if number == rounds // 4:
                warmed = memory(pids)
        assert teacher.process.poll() is None
        with urllib.request.urlopen(f"http://{teacher.endpoint}/metrics") as page:
            lines = page.read().decode().splitlines()
        print(*(line for line in lines if line.startswith("edl_requests_total")), sep="\n")
        assert [teacher.process.pid, *children_of(teacher.process.pid)] == pids, "no worker died"
        eventually(lambda: open_files() <= files_before + 1, 40)
        growth = memory(pids) - warmed
        print(f"fuzz: memory {warmed / 1e6:.0f} MB after a quarter, grown by {growth / 1e6:.1f} MB")
        assert growth < 40e6
