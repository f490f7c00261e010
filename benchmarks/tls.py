"""What TLS costs: requests to an ``edl teacher``, beside a bare TLS socket moving the same bytes.

python benchmarks/tls.py [--rounds N] [--rows N [N ...]] [--requests N] [--json FILE]

fp32 batches of Nx3x224x224 as requests, Nx1000 fp32 soft labels as answers, over loopback TCP; so
many requests are under way at a time as a reader has at one teacher. The teacher's model costs
nothing. The bare socket is Python's ``ssl`` in a process that receives the same bytes into one
buffer and answers from another; both have the same certificate. All are measured in turn, in one
run. The ratio is the bare socket's time to the teacher's, round by round; its spread is the
interquartile range.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import queue
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import trustme
from _teachers import teachers
from rich.console import Console
from rich.table import Table

from edl.serving import TeacherClient, Trust

_CLASSES = 1000
_WARMING = 3


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4, help="Under way at a time.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        files = _certificate(Path(directory))
        found = [_measure(rows, options.requests, options.rounds, files) for rows in options.rows]
    if options.json:
        options.json.write_text(json.dumps(found))
    _show(found)


def _certificate(directory: Path) -> dict[str, str]:
    """Files of an authority, and of a certificate for 127.0.0.1 and its key."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = {name: str(directory / f"{name}.pem") for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(files["ca"])
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    return files


def _measure(rows: int, requests: int, rounds: int, files: Mapping[str, str]) -> dict[str, Any]:
    """Seconds of so many requests of so many rows, each way."""
    images = np.random.default_rng(0).random((rows, 3, 224, 224), dtype=np.float32)
    answer = np.random.default_rng(1).random((rows, _CLASSES), dtype=np.float32)
    common = ["--python", "_nothing:Nothing", "--no-local"]
    secured = [*common, "--tls-cert", files["cert"], "--tls-key", files["key"]]
    with contextlib.ExitStack() as stack:
        actions = {}
        for name, arguments, trust in (
            ("teacher, TLS", secured, Trust(files["ca"])),
            ("teacher, plain text", common, Trust()),
        ):
            (endpoint,) = stack.enter_context(teachers(1, arguments))
            client = stack.enter_context(TeacherClient(endpoint, trust=trust))
            actions[name] = lambda client=client: _ask(client, {"img": images}, requests)
        for name, those in (("bare socket, TLS", files), ("bare socket, plain text", None)):
            sizes = images.nbytes * requests, answer.nbytes * requests
            conn = stack.enter_context(_bare_peer(*sizes, those))
            received = memoryview(bytearray(sizes[1]))
            sent = [images.data.cast("B")] * requests
            actions[name] = lambda c=conn, s=sent, r=received: _round_trip(c, s, r)
        times = _in_turn(actions, rounds)
    return {"rows": rows, "requests": requests, "bytes": images.nbytes, "times": times}


def _ask(client: TeacherClient, feeds: Mapping[str, np.ndarray], requests: int) -> None:
    """So many requests at once, until all are answered."""
    answers: queue.SimpleQueue = queue.SimpleQueue()
    for number in range(requests):
        client.submit(feeds, ["prob"], answers.put, more=number < requests - 1)
    for _ in range(requests):
        answer = answers.get(timeout=60)
        if not isinstance(answer, dict):
            raise answer


def _in_turn(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, all in turn in every round, forwards and backwards."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(_WARMING + rounds):
        for name in list(actions) if number % 2 else reversed(list(actions)):
            started = time.perf_counter()
            actions[name]()
            if number >= _WARMING:
                times[name].append(time.perf_counter() - started)
    return times


@contextlib.contextmanager
def _bare_peer(
    size: int, answer: int, files: Optional[Mapping[str, str]]
) -> Iterator[socket.socket]:
    """A connection to a process that receives so many bytes, and answers with so many."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = multiprocessing.get_context("fork")
        process = context.Process(
            target=_answer_all, args=(listener, size, answer, files), daemon=True
        )
        process.start()
        conn = socket.create_connection(listener.getsockname())
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if files is not None:
        conn = ssl.create_default_context(cafile=files["ca"]).wrap_socket(
            conn, server_hostname="127.0.0.1"
        )
    try:
        yield conn
    finally:
        conn.close()
        process.kill()
        process.join()


def _answer_all(
    listener: socket.socket, size: int, answer: int, files: Optional[Mapping[str, str]]
) -> None:
    conn, _ = listener.accept()
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if files is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files["cert"], files["key"])
        conn = context.wrap_socket(conn, server_side=True)
    buffer, labels = memoryview(bytearray(size)), bytes(answer)
    while _receive(conn, buffer):
        conn.sendall(labels)


def _round_trip(conn: socket.socket, sent: Sequence[memoryview], received: memoryview) -> None:
    for each in sent:
        conn.sendall(each)
    _receive(conn, received)


def _receive(conn: socket.socket, view: memoryview) -> bool:
    while len(view):
        size = conn.recv_into(view)
        if not size:
            return False
        view = view[size:]
    return True


def _show(found: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="Of the bare socket's speed (spread)")
    names = ("requests", "MB", "teacher, TLS", "bare, TLS", "ratio", "teacher, plain", "ratio")
    for name in names:
        table.add_column(name, justify="right")
    for each in found:
        times = each["times"]
        megabytes = each["requests"] * each["bytes"] / 1e6
        cells = [f"{each['requests']} of {each['rows']} rows", f"{megabytes:.1f}"]
        for kind in ("TLS", "plain text"):
            ours, bare = times[f"teacher, {kind}"], times[f"bare socket, {kind}"]
            ratios = [theirs / own for theirs, own in zip(bare, ours)]
            quarter, median, three_quarters = statistics.quantiles(ratios, n=4)
            cells.append(f"{statistics.median(ours) * 1e3:.2f} ms")
            if kind == "TLS":
                cells.append(f"{statistics.median(bare) * 1e3:.2f} ms")
            cells.append(f"{median:.2f} ({three_quarters - quarter:.2f})")
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
