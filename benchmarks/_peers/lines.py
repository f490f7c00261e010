"""What peers.py measures: the groups, and the lines of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: For each model that does nothing: its teacher's predictor, and rows that are computed together:
#: of small batches as many as the other lines have in flight. Two large batches are not: a model
#: that makes one of them would copy them.
HOSTED = {
    "3x224x224": ("images", 32),
    "1x28x28": ("digits", 128),
    "8x2048": ("tokens", 8),
    "row": ("row", 64),
}

GROUPS = (*HOSTED, "sentences", "ResNet-18")

#: What a group's lines count, and how many of these a batch has.
UNITS = {
    "3x224x224": ("images", 32),
    "1x28x28": ("images", 32),
    "8x2048": ("rows", 8),
    "row": ("requests", 1),
    "sentences": ("requests", 1),
    "ResNet-18": ("images", 8),
}

#: How a teacher is reached: by its Unix socket and shared memory, or not so.
SAME_HOST, OVER_TCP = "same host", "TCP"
WAYS = (SAME_HOST, OVER_TCP)

MEMCPY = "memcpy"
SHARED = "shared memory, doorbell"
UNIX, TCP = "bare Unix socket", "bare TCP"
RAY = "Ray actor"
GRPC = "gRPC"
ZEROMQ = "ZeroMQ"
HTTP = "HttpClient, edl teacher"
ORIGINAL = "paddle_edl 0.3.1"
LOOP = "loop in one process"
INFER, SUBMIT = "TeacherClient.infer", "TeacherClient.submit"


def reader(teachers: int, way: str) -> str:
    """The line of a DistillReader. ``way``: "same host" or "TCP"."""
    return f"DistillReader, {teachers} edl teacher{'s' if teachers > 1 else ''}, {way}"


def asked(what: str, way: str) -> str:
    """The line of requests to an ``edl teacher``."""
    return f"{what}, {way}"


def students(number: int) -> str:
    """The line of so many students, processes of their own, with one ``edl teacher``."""
    return f"edl teacher, {number} student{'s' if number > 1 else ''}"


def in_flight(line: str, number: int) -> str:
    """The line with so many requests in flight; one after the other needs no saying."""
    return f"{line}, {number} in flight" if number > 1 else line


@dataclass
class Line:
    """One line of a group. ``package``: what its Python must have; "serving" is Paddle Serving."""

    name: str
    pipeline: str
    options: dict[str, Any]
    package: str = ""


def lines(group: str, endpoints: list[str], peers: bool) -> list[Line]:
    """What is measured with a model that does nothing."""
    found = [
        Line(MEMCPY, "memcpy", {}),
        Line(SHARED, "shared memory", {}),
        Line(UNIX, "bare socket", {"family": "unix"}),
        Line(TCP, "bare socket", {"family": "tcp"}),
    ]
    if peers:
        for window in (1, 32) if group == "row" else (4,):
            found += _libraries(group, window)
        found.append(Line(HTTP, "http client", {"endpoint": endpoints[0]}, "serving"))
    for way in WAYS:
        found += _requests(endpoints[0], way) if group == "row" else _readers(endpoints, way)
    return found


def _libraries(group: str, window: int) -> list[Line]:
    found = [Line(in_flight(RAY, window), "ray", {"window": window, "name": group}, "ray")]
    for name, pipeline, package in ((GRPC, "grpc", "grpcio"), (ZEROMQ, "zeromq", "pyzmq")):
        for address in ("Unix socket", "TCP"):
            line = in_flight(f"{name}, {address}", window)
            found.append(Line(line, pipeline, {"window": window, "address": address}, package))
    return found


def _readers(endpoints: list[str], way: str) -> list[Line]:
    return [
        Line(reader(number, way), "reader", {"endpoints": endpoints[:number], "way": way})
        for number in range(1, len(endpoints) + 1)
    ]


def _requests(endpoint: str, way: str) -> list[Line]:
    return [
        Line(
            in_flight(asked(name, way), window),
            pipeline,
            {"endpoint": endpoint, "window": window, "way": way},
        )
        for name, pipeline, window in (
            (INFER, "client", 1),
            ("TeacherPool.infer", "pool", 1),
            (SUBMIT, "client", 32),
            ("TeacherPool.map", "pool", 32),
        )
    ]
