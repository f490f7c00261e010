"""Teachers and students that are played: entries in a registry, and figures on one port.

Each has an address of its own in 127.0.0.0/8, and one process answers for all of them: a port that
listens everywhere sees which address was asked. What they say grows with the clock as that of real
ones does.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from edl.discovery import Etcd, StudentRecord
from edl.discovery.keys import ASSIGNMENTS, BALANCE, LEADER, NODES, RATES, STUDENTS, service_prefix
from edl.discovery.records import format_assignment, format_rate


@dataclass
class Mood:
    """How things go: shares of the time, and of requests."""

    busy: float = 0.95
    waits: float = 0.31
    errors: float = 0.0


@dataclass
class Played:
    """A service of played teachers and students."""

    etcd: Etcd
    service: str
    teachers: int
    students: int
    mood: Mood = field(default_factory=Mood)
    rate: float = 1200.0
    spread: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = time.time() - 3000
        self.server = _Server(("0.0.0.0", 0), _handler(self))
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, name="played", daemon=True).start()

    def __enter__(self) -> Played:
        self.register()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.etcd.call(lambda client: client.delete_prefix(service_prefix(self.service)))

    def teacher(self, number: int) -> str:
        """The endpoint of one."""
        return f"127.1.{number // 200}.{number % 200 + 1}:{self.port}"

    def student(self, number: int) -> str:
        """The name of one."""
        return f"{number * 2654435761 % (1 << 32):08x}{number:024x}"

    def users(self, number: int) -> list[int]:
        """The teachers of a student."""
        if not self.teachers:
            return []
        if self.teachers < self.students:
            return [number % self.teachers]
        return list(range(number, self.teachers, self.students))

    def register(self) -> None:
        """Write everybody's entries, and what a leader writes."""
        entries: dict[str, str] = {LEADER: "played"}
        for number in range(self.teachers):
            endpoint = self.teacher(number)
            entries[NODES + endpoint] = json.dumps(
                {
                    "protocol": "baidu_std",
                    "device": f"gpu:{number % 8}" if number % 5 else "cpu",
                    "precision": "fp16" if number % 5 else "fp32",
                    "hostname": f"teacher-{number // 8}",
                    "feeds": {"img": {"shape": [3, 224, 224], "dtype": "float32"}},
                    "fetches": {"logits": {"shape": [1000], "dtype": "float32"}},
                    "fingerprint": "model:6b0cd7b4e37ea6a2a9d2b3cb0b8a4f10",
                    "since": round(self.started + 7 * (number % 60), 3),
                    "workers": 1,
                    **self.extra,
                }
            )
            entries[RATES + endpoint] = format_rate(self.rate)
        for number in range(self.students):
            mine = [self.teacher(teacher) for teacher in self.users(number)]
            record = StudentRecord(
                max_teachers=16,
                rows_per_second=800.0,
                ways=dict.fromkeys(mine, "tcp"),
                metrics=f"127.2.0.{number + 1}:{self.port}",
            )
            entries[STUDENTS + self.student(number)] = record.to_json(
                hostname=f"student-{number}",
                pid=2000 + number,
                since=round(self.started + number, 3),
            )
            entries[ASSIGNMENTS + self.student(number)] = format_assignment(frozenset(mine))
        supply = self.rate * self.teachers
        entries[BALANCE] = json.dumps(
            {"teachers": self.teachers, "students": self.students, "supply": supply,
             "demand": supply}
        )  # fmt: skip
        for key, value in entries.items():
            self.put(key, value)

    def put(self, key: str, value: str) -> None:
        """Write an entry of the service."""
        name = service_prefix(self.service) + key
        self.etcd.call(lambda client: client.put(name, value))

    def exposition(self, address: str) -> bytes:
        """What the one at ``address`` says now."""
        kind, high, low = (int(part) for part in address.split(".")[1:])
        seconds = time.time() - self.started
        number = high * 200 + low - 1
        uneven = 1 - 0.25 * (number * 7 % 11) / 11 if self.spread else 1.0
        if kind == 1:
            return self._teacher_figures(seconds, uneven, number)
        return self._student_figures(seconds, uneven, number)

    def _teacher_figures(self, seconds: float, uneven: float, number: int) -> bytes:
        busy = min(1.0, self.mood.busy * uneven)
        rows = self.rate * busy * seconds
        requests = rows / 32
        failed = self.mood.errors * requests if number == 0 else 0.0
        buckets = "".join(
            f'edl_{name}_bucket{{le="{le}",protocol="baidu_std"}} {requests}\n'
            for name in ("request_seconds", "batch_rows", "queue_seconds", "compute_seconds")
            for le in range(16)
        )
        return (
            f'edl_requests_total{{protocol="baidu_std",outcome="ok"}} {requests - failed}\n'
            f'edl_requests_total{{protocol="baidu_std",outcome="failed"}} {failed}\n'
            f"{buckets}"
            f'edl_request_seconds_count{{protocol="baidu_std"}} {requests}\n'
            f'edl_request_seconds_sum{{protocol="baidu_std"}} {0.018 * requests}\n'
            f"edl_compute_seconds_sum {busy * seconds}\n"
            f"edl_rows_total {rows}\n"
            f"edl_queued_rows {32 * (number % 4)}\n"
            "edl_workers_ready 1\n" + ("# last error: out of memory on gpu:0\n" if failed else "")
        ).encode()

    def _student_figures(self, seconds: float, uneven: float, number: int) -> bytes:
        labels = f'{{service="{self.service}",student="{self.student(number)}"}}'
        rows = self.rate * self.mood.busy * max(1, self.teachers) / max(1, self.students) * seconds
        figures = {
            "rows_total": rows,
            "seconds_total": seconds,
            "wait_seconds_total": min(1.0, self.mood.waits * uneven) * seconds,
            "store_hit_rows_total": 0.2 * rows,
            "store_miss_rows_total": 0.8 * rows,
            "volume_batches": 3 + number % 9,
            "volume_low_batches": 4,
            "volume_high_batches": 16,
            "epoch": int(rows // 320_000),
            "epoch_batches": int(rows % 320_000) // 32,
            "epoch_length_batches": 10_000,
        }
        return "".join(
            f"edl_student_{name}{labels} {value}\n" for name, value in figures.items()
        ).encode()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def _handler(played: Played) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = played.exposition(self.connection.getsockname()[0])
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
