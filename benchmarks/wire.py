"""What the wire costs: encode, decode and round trip, beside a bare socket moving the same bytes.

python benchmarks/wire.py [--rounds N]

One fp32 batch of 32x3x224x224 (19.3 MB) as a request, 32x1000 fp32 soft labels as its answer. All
rows are measured in one run, in turn, against the same peer process over loopback TCP. Medians; the
spread is the interquartile range. The second table: the same batch in narrower dtypes (``wire=``),
what that takes at the student and at the teacher, and the network that students need with it.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import sys
import time

import numpy as np
from _nothing import LABELS, Peer, bare_round_trip
from rich.console import Console
from rich.table import Table

from edl.serving import Preprocess, TeacherClient
from edl.serving.wire import frame
from edl.serving.wire.messages import (
    METHOD,
    SERVICE,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from edl.serving.wire.narrow import FEED_DTYPES, narrowed, widen

SHAPE = (32, 3, 224, 224)

#: Images/s of the original's eight V100 students, alone.
STUDENTS = 1828


def measure(actions: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each action, all in turn in every round, forwards and backwards: what one leaves
    in the caches is not always to the same other's good."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 3):
        order = list(actions) if number % 2 else list(reversed(actions))
        for name in order:
            action = actions[name]
            started = time.perf_counter()
            action()
            if number >= 3:
                times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds

    image = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    feeds = {"img": image}
    request = frame.encode_frame(frame.RequestMeta(SERVICE, METHOD, 1), encode_request(feeds, []))
    shared = any(np.shares_memory(np.frombuffer(buffer, "u1"), image) for buffer in request)
    message = b"".join(request[1:])
    response = b"".join(encode_response({"prob": LABELS}))

    peer = Peer(LABELS)

    def over_client() -> None:
        assert client.infer(feeds)["prob"].shape == LABELS.shape

    conn = peer.connect()
    answer = memoryview(bytearray(LABELS.nbytes))
    with conn, TeacherClient(peer.endpoint) as client:
        local = {
            "encode the request": lambda: encode_request(feeds, ["prob"]),
            "decode the request": lambda: decode_request(memoryview(message)),
            "encode the answer": lambda: encode_response({"prob": LABELS}),
            "decode the answer": lambda: decode_response(memoryview(response)),
            "(copy of the same array)": image.copy,
            "(pickle of the same array)": lambda: pickle.dumps(image, pickle.HIGHEST_PROTOCOL),
        }
        remote = {
            "round trip, TeacherClient": over_client,
            "round trip, bare socket": lambda: bare_round_trip(conn, image, answer),
        }
        times = {**measure(local, rounds), **measure(remote, rounds)}
    peer.close()

    table = Table(title=f"fp32 {'x'.join(map(str, SHAPE))}, {image.nbytes / 1e6:.1f} MB")
    for name, justify in (("", "left"), ("median", "right"), ("spread", "right"), ("", "right")):
        table.add_column(name, justify=justify)
    reference = statistics.median(times["round trip, bare socket"])
    for name, values in times.items():
        median = statistics.median(values)
        quarter, _, three_quarters = statistics.quantiles(values, n=4)
        share = f"{median / reference:.4f} of a bare round trip"
        table.add_row(
            name, f"{median * 1e6:,.0f} us", f"{(three_quarters - quarter) * 1e6:,.0f}", share
        )
    Console().print(table)
    Console().print(narrower(image, rounds))
    print(f"the request references the array's memory: {shared}")
    pickles = "pickle" in _imports_of("edl.serving.client.teacher")
    print(f"the student's side imports pickle: {pickles}")


def narrower(image: np.ndarray, rounds: int) -> Table:
    """The same batch in narrower dtypes: both conversions beside a copy of it."""
    raw = np.ascontiguousarray((image * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    sent = {name: narrowed(image, FEED_DTYPES[name]) for name in ("float16", "bfloat16")}
    normalise = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    copy = np.empty_like(image)
    actions = {("float32", "copy"): lambda: np.copyto(copy, image)}
    for name, array in sent.items():
        actions[name, "there"] = lambda dtype=FEED_DTYPES[name]: narrowed(image, dtype)
        actions[name, "here"] = lambda array=array: widen(array, "float32")
    actions["uint8", "here"] = lambda: widen(raw, "float32")
    actions["uint8, normalised", "here"] = lambda: normalise(raw)
    times = {key: statistics.median(each) for key, each in measure(actions, rounds).items()}

    table = Table(title="Narrower: conversions as multiples of copying the float32 batch")
    for name in ("sent as", "bytes an image", f"{STUDENTS:,} images/s", "student", "teacher"):
        table.add_column(name, justify="left" if name == "sent as" else "right")
    unit = times["float32", "copy"]
    for name in ("float32", *sent, "uint8", "uint8, normalised"):
        nbytes = sent.get(name, image if name == "float32" else raw).nbytes // len(image)
        costs = [times.get((name, side)) for side in ("there", "here")]
        table.add_row(
            name, f"{nbytes:,}", f"{nbytes * STUDENTS * 8 / 1e9:.1f} Gbit/s",
            *("" if cost is None else f"{cost / unit:.1f}" for cost in costs),
        )  # fmt: skip
    return table


def _imports_of(module: str) -> set[str]:
    """Names that the module, and EDL's modules that it imports, have at their top level."""
    found: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        for value in vars(sys.modules[name]).values():
            other = getattr(value, "__name__", "")
            if type(value).__name__ == "module" and other not in found:
                found.add(other)
                if other.startswith("edl."):
                    queue.append(other)
    return found


if __name__ == "__main__":
    main()
