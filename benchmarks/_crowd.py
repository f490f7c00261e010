"""Many students, or many connections, of one process: what many.py puts in front of a teacher.

    python -m _crowd students '{"endpoint": ..., "number": 50}'
    python -m _crowd connections '{"endpoint": ..., "number": 2000}'

say "ready". Students then measure for each line ``[seconds, pause]`` on standard input: each asks
one batch after the other, and waits so many seconds after each answer, from its own thread. Idle
connections stay until standard input ends, which answers each line with how many still are there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import resource
import select
import socket
import sys
import threading
import time
from contextlib import ExitStack

from _peers.work import NOTHING

WORK = NOTHING["1x28x28"]


def students(endpoint: str, number: int) -> None:
    """So many pools, each with one connection."""
    from edl.distill import TeacherPool

    with ExitStack() as stack:
        pools = [
            stack.enter_context(TeacherPool(["prob"], endpoint, feeds=["img"], return_tensors="np"))
            for _ in range(number)
        ]
        for pool in pools:
            ask(pool, 0)
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            seconds, pause = json.loads(line)
            print(json.dumps(ask_all(pools, seconds, pause)), flush=True)


def ask_all(pools: list, seconds: float, pause: float) -> list[list[float]]:
    """The latencies of each student's requests, in seconds."""
    latencies: list[list[float]] = [[] for _ in pools]
    failures: list[Exception] = []
    until = time.perf_counter() + seconds

    def run(index: int) -> None:
        try:
            time.sleep(random.random() * pause)
            count = 0
            while not count or time.perf_counter() < until:
                begun = time.perf_counter()
                ask(pools[index], count)
                latencies[index].append(time.perf_counter() - begun)
                count += 1
                time.sleep(pause)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(pools))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return latencies


def ask(pool, number: int) -> None:  # type: ignore[no-untyped-def]
    """Ask a batch. Raises RuntimeError if the answer is another's."""
    if not WORK.matches(number, [pool.infer(WORK.batch(number))["prob"]]):
        raise RuntimeError("an answer is not its batch's")


def connections(endpoint: str, number: int) -> None:
    """So many that have asked what the teacher serves, and nothing since."""
    from edl._endpoints import parse_endpoint
    from edl.serving.client.teacher import receive_exactly, send_all
    from edl.serving.wire import frame
    from edl.serving.wire.description import DESCRIBE_METHOD, DESCRIBE_SERVICE

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asking = frame.encode_frame(frame.RequestMeta(DESCRIBE_SERVICE, DESCRIBE_METHOD, 1), [])
    header = memoryview(bytearray(frame.HEADER_SIZE))
    with ExitStack() as stack:
        held = []
        for _ in range(number):
            conn = stack.enter_context(socket.create_connection(parse_endpoint(endpoint)))
            send_all(conn, asking)
            receive_exactly(conn, header)
            body_size, _ = frame.parse_header(header)
            receive_exactly(conn, memoryview(bytearray(body_size)))
            held.append(conn)
        print(json.dumps("ready"), flush=True)
        for _ in sys.stdin:
            print(json.dumps(sum(map(is_open, held))), flush=True)


def is_open(conn: socket.socket) -> bool:
    """Whether the other side has not closed it: it owes us nothing that could be read."""
    poll = select.poll()
    poll.register(conn, select.POLLIN)
    return not poll.poll(0)


if __name__ == "__main__":
    logging.getLogger("edl").setLevel(logging.WARNING)
    with contextlib.suppress(KeyboardInterrupt):
        {"students": students, "connections": connections}[sys.argv[1]](**json.loads(sys.argv[2]))
