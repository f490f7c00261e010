"""What it spares to send no padding: rows of different length, with and without ``lengths``.

python benchmarks/sequences.py

A real ``edl teacher`` with a small Transformer of Paddle, which answers with top-16 labels; rows of
16 to 512 tokens, 120 on average, in batches of 16, filled up to 512 or to the batch's longest. CPU
time is the teacher's, of all its threads, so that others on the machine disturb it little.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import threading
import time
from pathlib import Path

import numpy as np
from _teachers import teachers

from edl._endpoints import parse_endpoint
from edl.distill import DistillReader
from edl.serving import Description, TensorSpec

ROWS, WIDTH, CLASSES, MODEL = 16, 512, 1000, 64


class Encoder:
    """logits (rows, tokens, classes). ``--python sequences:Encoder``."""

    description = Description(
        {
            "ids": TensorSpec((-1,), "int64", pad=0),
            "mask": TensorSpec((-1,), "int64", pad=0),
        },
        {"logits": TensorSpec((-1, CLASSES), "float32", pad=0.0)},
    )

    def __init__(self) -> None:
        import paddle

        layer = paddle.nn.TransformerEncoderLayer(MODEL, 4, 4 * MODEL, dropout=0.0)
        self._paddle = paddle
        self._embed = paddle.nn.Embedding(CLASSES, MODEL)
        self._encode = paddle.nn.TransformerEncoder(layer, 2)
        self._head = paddle.nn.Linear(MODEL, CLASSES)
        for part in (self._embed, self._encode, self._head):
            part.eval()

    def run(self, feeds: dict[str, np.ndarray], fetches: list[str]) -> dict[str, np.ndarray]:
        paddle = self._paddle
        with paddle.no_grad():
            mask = paddle.to_tensor(feeds["mask"]).astype("float32")
            hidden = self._encode(
                self._embed(paddle.to_tensor(feeds["ids"])), (mask[:, None, None, :] - 1) * 1e9
            )
            return {"logits": self._head(hidden).numpy()}


def batches(count: int, fixed: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """ids and masks, always the same ones; as wide as WIDTH, or as the longest row."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        lengths = np.clip(generator.lognormal(4.55, 0.7, (ROWS, 1)), 16, WIDTH).astype(int)
        width = WIDTH if fixed else int(lengths.max())
        mask = (np.arange(width) < lengths).astype("int64")
        found.append((generator.integers(1, CLASSES, mask.shape) * mask, mask))
    return found


class Relay:
    """Passes bytes on between one client and the teacher, and counts them."""

    def __init__(self, behind: str) -> None:
        self.up = self.down = 0
        self._behind = parse_endpoint(behind)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._behind)
            for pair, way in (((client, server), "up"), ((server, client), "down")):
                threading.Thread(target=self._carry, args=(*pair, way), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, way: str) -> None:
        while data := source.recv(1 << 18):
            target.sendall(data)
            setattr(self, way, getattr(self, way) + len(data))
        target.close()


def cpu_seconds(pid: int) -> float:
    """Of the descendants of a process."""
    total = 0.0
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for each in map(int, child.read_text().split()):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            total += ticks / os.sysconf("SC_CLK_TCK") + cpu_seconds(each)
    return total


def measure(endpoint: str, count: int, **options: object) -> dict[str, float]:
    """One epoch; MB up and down, seconds, the teacher's CPU seconds, thousands of tokens sent."""
    fixed = bool(options.pop("fixed"))
    relay = Relay(endpoint)
    with DistillReader(
        ["ids", "mask"], ["logits"], batches(count, fixed), relay.endpoint, top_k=16, **options
    ) as reader:
        started, cpu = time.monotonic(), cpu_seconds(os.getpid())
        for ids, _, values, *_ in reader:
            assert values.shape == (*ids.shape, 16)
        took, used = time.monotonic() - started, cpu_seconds(os.getpid()) - cpu
        work = reader.stats()["work"]
    mega = {"MB up": relay.up / 1e6, "MB down": relay.down / 1e6}
    return {"s": took, "CPU s": used, **mega, "k tokens": work / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    lengths = [int(row.sum()) for _, mask in batches(arguments.batches, False) for row in mask]
    average = statistics.mean(lengths)
    print(f"rows of {min(lengths)} to {max(lengths)} tokens, {average:.0f} on average")
    cut = {"lengths": "mask"}
    four = {"teacher_batch_size": 4}
    cases = {
        "512": {"fixed": True},
        "512, lengths": {"fixed": True, **cut},
        "512, lengths, 4 rows a request": {"fixed": True, **cut, **four},
        "longest": {"fixed": False},
        "longest, 4 rows a request": {"fixed": False, **four},
        "longest, lengths, 4 rows a request": {"fixed": False, **cut, **four},
    }
    with teachers(1, ["--python", "sequences:Encoder"]) as (endpoint,):
        measure(endpoint, 5, fixed=True)  # warms up
        found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
        for _ in range(arguments.rounds):
            for name, options in cases.items():
                found[name].append(measure(endpoint, arguments.batches, **options))
    for name, rounds in found.items():
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        print(f"{name:36}", "  ".join(f"{value:7.2f} {key}" for key, value in middle.items()))


if __name__ == "__main__":
    main()
