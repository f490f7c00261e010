"""What the teacher server costs, beside bare sockets and a bare Predictor.

python benchmarks/server.py [--rounds N]

Everything is measured in turn in one run, on the same cores. Medians over the rounds; the spread is
(max - min) / median.

- ResNet-18, 16x3x224x224: images/s of ``edl teacher`` with a client that keeps two requests in
  flight, beside a loop around ``paddle.inference.Predictor`` in a process of its own.
- A model that does nothing: round trips per second for one small row, and MB/s for 16x3x224x224,
  beside a bare socket that moves the same bytes; and Paddle Serving's own HttpClient with the same
  requests, if scripts/paddle-serving has set one up.
- 8 clients with single-row requests to the ResNet-18, with and without dynamic batching.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

import numpy as np
from _nothing import LABELS, Peer, bare_round_trip
from _teachers import ROOT, teachers
from rich.console import Console
from rich.table import Table

from edl.serving import TeacherClient

SERVING = Path(os.environ.get("EDL_SERVING_VENV", ROOT / ".venv-serving")) / "bin/python"
BATCH = np.random.default_rng(0).random((16, 3, 224, 224), dtype=np.float32)
ROW = np.ones((1, 1, 2, 2), np.float32)
SECONDS = 4.0

_EXPORT = """
import sys
from edl.serving import export_model
from edl._paddle import import_paddle
paddle = import_paddle("the benchmark")
net = paddle.vision.models.resnet18()
export_model(net, sys.argv[1], {"img": ((3, 224, 224), "float32")}, ["logits"])
"""

#: The bare loop: says "ready", then for each line on stdin runs for so many seconds.
_BARE = """
import sys, time
import numpy as np
from edl.serving.model.predictor import PredictorOptions, load_predictor
predictor = load_predictor(PredictorOptions(model=sys.argv[1]))
image = np.random.default_rng(0).random((16, 3, 224, 224), dtype=np.float32)
predictor.run({"img": image}, ["logits"])
print("ready", flush=True)
for line in sys.stdin:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < float(line):
        predictor.run({"img": image}, ["logits"])
        count += 16
    print(count / (time.perf_counter() - started), flush=True)
"""

#: The official client: for each line on stdin, requests per second for that kind of request.
_OFFICIAL = """
import sys, time
import numpy as np
from paddle_serving_client.httpclient import HttpClient
client = HttpClient()
client.load_client_config(sys.argv[2])
client.connect([sys.argv[1]])
feeds = {"row": np.ones((1, 1, 2, 2), np.float32),
         "batch": np.random.default_rng(0).random((16, 3, 224, 224)).astype(np.float32)}
print("ready", flush=True)
for line in sys.stdin:
    kind, seconds = line.split()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < float(seconds):
        answer = client.predict({"img": feeds[kind]}, fetch=["prob"], batch=True)
        assert answer is not None
        count += 1
    print(count / (time.perf_counter() - started), flush=True)
"""

_CONF = """
feed_var { name: "img" alias_name: "img" is_lod_tensor: false feed_type: 1 shape: 3 }
fetch_var { name: "prob" alias_name: "prob" is_lod_tensor: false fetch_type: 1 shape: 1000 }
"""


class Helper:
    """A Python process that answers a number to each line."""

    def __init__(self, python: str, code: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline()) != "ready\n":
            assert line, "the helper process has ended"

    def ask(self, question: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def in_flight(client: TeacherClient, image: np.ndarray, depth: int, seconds: float) -> float:
    """Requests per second with ``depth`` requests in flight."""
    slots = threading.Semaphore(depth)
    failures: list[object] = []
    count, started = 0, time.perf_counter()

    def on_answer(answer: object) -> None:
        if not isinstance(answer, dict):
            failures.append(answer)
        slots.release()

    while time.perf_counter() - started < seconds:
        slots.acquire()
        client.submit({"img": image}, [], on_answer)
        count += 1
    for _ in range(depth):
        slots.acquire()
    assert not failures, failures[0]
    return count / (time.perf_counter() - started)


def repeat(action: Callable[[], object], seconds: float) -> float:
    """Calls per second."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        action()
        count += 1
    return count / (time.perf_counter() - started)


def clients(endpoint: str, number: int, image: np.ndarray, seconds: float) -> float:
    """Requests per second of ``number`` clients, each with one request at a time."""
    with ExitStack() as stack:
        each = [stack.enter_context(TeacherClient(endpoint)) for _ in range(number)]
        results = [0.0] * number

        def run(index: int) -> None:
            client = each[index]
            results[index] = repeat(lambda: client.infer({"img": image}), seconds)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(results)


def measure(rounds: int) -> dict[str, list[float]]:
    """Every row of the table, in turn in every round."""
    model = tempfile.mkdtemp(prefix="edl-benchmark-")
    conf = Path(model) / "serving_client_conf.prototxt"
    conf.write_text(_CONF)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _EXPORT, model], check=True, capture_output=True
    )
    with ExitStack() as stack:
        (resnet,) = stack.enter_context(teachers(1, ["--model", model]))
        (single,) = stack.enter_context(teachers(1, ["--model", model, "--max-batch-rows", "1"]))
        (nothing,) = stack.enter_context(teachers(1, ["--python", "_nothing:Nothing"]))
        peer = Peer(LABELS[:16])
        stack.callback(peer.close)
        small = Peer(LABELS[:1])
        stack.callback(small.close)
        bare = Helper(sys.executable, _BARE, model)
        stack.callback(bare.close)
        client = stack.enter_context(TeacherClient(resnet))
        idle = stack.enter_context(TeacherClient(nothing))
        conn = stack.enter_context(peer.connect())
        small_conn = stack.enter_context(small.connect())
        answer = memoryview(bytearray(LABELS[:16].nbytes))
        small_answer = memoryview(bytearray(LABELS[:1].nbytes))
        row = BATCH[:1]
        actions: dict[str, Callable[[], float]] = {
            "ResNet-18, bare Predictor": lambda: bare.ask(str(SECONDS)),
            "ResNet-18, edl teacher": lambda: 16 * in_flight(client, BATCH, 2, SECONDS),
            "one row, bare socket": lambda: repeat(
                lambda: bare_round_trip(small_conn, ROW, small_answer), 1.0
            ),
            "one row, edl teacher": lambda: repeat(lambda: idle.infer({"img": ROW}), 1.0),
            "one row, edl teacher, 32 in flight": lambda: in_flight(idle, ROW, 32, 1.0),
            "batch, bare socket": lambda: repeat(lambda: bare_round_trip(conn, BATCH, answer), 1.0),
            "batch, edl teacher": lambda: repeat(lambda: idle.infer({"img": BATCH}), 1.0),
            "batch, edl teacher, 2 in flight": lambda: in_flight(idle, BATCH, 2, 1.0),
            "8 clients, no batching": lambda: clients(single, 8, row, SECONDS),
            "8 clients, dynamic batching": lambda: clients(resnet, 8, row, SECONDS),
        }
        if SERVING.exists():
            official = Helper(str(SERVING), _OFFICIAL, nothing, str(conf))
            stack.callback(official.close)
            actions["one row, HttpClient"] = lambda: official.ask("row 1")
            actions["batch, HttpClient"] = lambda: official.ask("batch 3")
        times: dict[str, list[float]] = {name: [] for name in actions}
        for number in range(rounds + 1):
            order = list(actions) if number % 2 else list(reversed(actions))
            for name in order:
                value = actions[name]()
                if number:
                    times[name].append(value)
        return times


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    times = measure(parser.parse_args().rounds)
    references = {
        "ResNet-18": "ResNet-18, bare Predictor",
        "one row": "one row, bare socket",
        "batch": "batch, bare socket",
        "8 clients": "8 clients, no batching",
    }
    megabytes = (BATCH.nbytes + LABELS[:16].nbytes) / 1e6
    units = {"ResNet-18": ("images/s", 1.0), "batch": ("MB/s", megabytes)}
    table = Table(title="The teacher server, beside what it is made of")
    for name, justify in (("", "left"), ("", "right"), ("", "left"), ("spread", "right"),
                          ("of the bare one", "right")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    order = sorted(times, key=lambda name: list(references).index(name.partition(",")[0]))
    for name in order:
        group = name.partition(",")[0]
        unit, factor = units.get(group, ("requests/s", 1.0))
        median = statistics.median(times[name])
        spread = (max(times[name]) - min(times[name])) / median
        ratios = [a / b for a, b in zip(times[name], times[references[group]])]
        ratio = "" if name == references[group] else f"{statistics.median(ratios):.3f}"
        table.add_row(name, f"{median * factor:,.0f}", unit, f"{spread:.0%}", ratio)
    Console().print(table)
    print(json.dumps({name: [round(value, 1) for value in times[name]] for name in order}))


if __name__ == "__main__":
    main()
