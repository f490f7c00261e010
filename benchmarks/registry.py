"""The registry at cluster size: a real etcd, many readers, thousands of registered teachers.

python benchmarks/registry.py [--teachers N] [--readers N] [--seconds S]

Readers are what a DistillReader has in the registry: it watches the teachers, is registered as a
student, gets its assignment, may lead, and reports every second what it measures, with noise. They
live in a few processes. Teachers are entries with addresses of their own in 127.0.0.0/8; one
process plays them all, a hundred to a lease, and measures their rates every five seconds as
``edl teacher`` does, with noise. One teacher that joins and leaves is a real Registration.

``settled``: seconds until every reader knows every teacher, and every teacher that is there, and no
other, is assigned. ``writes/s``, and the share of a core that etcd, the average reader and the
busiest process of readers (the leader is in one) take: from the event until a second after it has
settled, or, in the steady state, for S seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from rich.console import Console
from rich.table import Table

from edl.discovery import Etcd, Registration, StudentRecord
from edl.discovery.embedded import EmbeddedEtcd
from edl.discovery.keys import NODES, RATES, service_prefix
from edl.discovery.records import differs, format_rate
from edl.distill.teachers import service_teachers

SERVICE = "benchmark"
PROCESSES = 4  # of readers
PER_LEASE = 100
SPEEDS = (100.0, 200.0, 500.0, 1000.0)
NOISE = 0.05
TTL = 10
PATIENCE = 120.0  # seconds for an event to settle
TICKS = os.sysconf("SC_CLK_TCK")
FEED = {"shape": [3, 224, 224], "dtype": "float32"}
ENTRY = json.dumps(
    {
        "protocol": "baidu_std",
        "feeds": {"image": FEED},
        "fetches": {"prediction": {"shape": [1000], "dtype": "float32"}},
        "device": "gpu:0",
        "hostname": "teacher-host-0000.cluster.example",
        "pid": 12345,
        "workers": 1,
        "since": 1700000000.123,
    }
)


# --- teachers -------------------------------------------------------------------------------


@dataclass
class Lease:
    """A lease and its teachers: endpoint to the rate that was written last."""

    lease: Any
    told: dict[str, float] = field(default_factory=dict)


class Cluster:
    """The teachers: registered, kept alive, measured."""

    def __init__(self, etcd: Etcd, count: int) -> None:
        self._etcd = etcd
        self._prefix = service_prefix(SERVICE)
        self._random = random.Random(0)
        self._leases: list[Lease] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.speeds = {
            f"127.{1 + n // 62500}.{n // 250 % 250}.{1 + n % 250}:9000": self._random.choice(SPEEDS)
            for n in range(count)
        }
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._keep, self._measure)
        ]

    def start(self) -> None:
        """Register all teachers, and keep them."""
        endpoints = list(self.speeds)
        size = max(1, min(PER_LEASE, len(endpoints) // 20))
        for first in range(0, len(endpoints), size):
            self._register(endpoints[first : first + size])
        for thread in self._threads:
            thread.start()

    def leave(self, part: float) -> None:
        """Revoke the leases of a part of the teachers, at once."""
        with self._lock:
            count = max(1, round(part * len(self._leases)))
            gone, self._leases = self._leases[:count], self._leases[count:]
        for one in gone:
            self._etcd.call(lambda client, one=one: client.revoke_lease(one.lease.id))
            for endpoint in one.told:
                del self.speeds[endpoint]

    def close(self) -> None:
        """End the threads."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _register(self, endpoints: Sequence[str]) -> None:
        one = Lease(self._etcd.call(lambda client: client.lease(TTL)))
        for first in range(0, len(endpoints), 50):

            def put(client: Any, some: Sequence[str] = endpoints[first : first + 50]) -> None:
                puts = []
                for endpoint in some:
                    one.told[endpoint] = self.speeds[endpoint]
                    rate = format_rate(self.speeds[endpoint])
                    for kind, value in ((NODES, ENTRY), (RATES, rate)):
                        key = self._prefix + kind + endpoint
                        puts.append(client.transactions.put(key, value, one.lease))
                client.transaction(compare=[], success=puts, failure=[])

            self._etcd.call(put)
        self._leases.append(one)

    def _keep(self) -> None:
        while not self._ended.wait(TTL / 3):
            with self._lock:
                for one in self._leases:
                    self._etcd.call(
                        lambda client, one=one: list(client.refresh_lease(one.lease.id))
                    )

    def _measure(self) -> None:
        while not self._ended.wait(5.0):
            with self._lock:
                leases = list(self._leases)
            for one in leases:
                for endpoint, told in list(one.told.items()):
                    rate = self.speeds.get(endpoint, told) * self._random.gauss(1.0, NOISE)
                    if differs(told, rate):
                        self._tell(one, endpoint, rate)

    def _tell(self, one: Lease, endpoint: str, rate: float) -> None:
        one.told[endpoint] = rate
        key = self._prefix + RATES + endpoint
        with contextlib.suppress(Exception):  # its lease has just been revoked
            self._etcd.call(lambda client: client.put(key, format_rate(rate), one.lease))


# --- readers --------------------------------------------------------------------------------


class Reader:
    """One student's part in the registry. What it sees goes to four numbers of a shared board: how
    many teachers it knows, how many it is assigned, how many of those it knows, and when that
    changed.
    """

    def __init__(self, etcd: str, name: str, board: Any, place: int) -> None:
        self._board, self._place = board, 4 * place
        self._random = random.Random(name)
        self._found: dict[str, str] = {}
        self._assigned: frozenset[str] = frozenset()
        teachers = service_teachers(etcd, SERVICE)
        self._joined = teachers.join(name, StudentRecord(), self._on_found, self._on_assigned)
        self.close = self._joined.close

    def report(self) -> None:
        """Say what it measures."""
        noise = self._random.gauss
        rates = {teacher: round(300 * noise(1.0, NOISE), 1) for teacher in self._assigned}
        consumed = round(1000 * noise(1.0, NOISE), 1)
        self._joined.report(StudentRecord(None, None, rates, (), consumed))

    def _on_found(self, found: Any) -> None:
        self._found = found
        self._show()

    def _on_assigned(self, teachers: frozenset[str]) -> None:
        self._assigned = teachers
        self._show()

    def _show(self) -> None:
        known = sum(teacher in self._found for teacher in self._assigned)
        numbers = [len(self._found), len(self._assigned), known, time.monotonic()]
        self._board[self._place : self._place + 4] = numbers


def read(etcd: str, places: Sequence[int], board: Any, end: Any) -> None:
    """A process of readers; reports for each once a second, until the pipe ``end`` says so."""
    readers = [Reader(etcd, f"student{place}", board, place) for place in places]
    while not end.poll(1.0):
        for reader in readers:
            reader.report()
    threads = [threading.Thread(target=reader.close) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Readers:
    """All readers, in a few processes."""

    def __init__(self, etcd: str, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.count = count
        self.board = spawn.Array("d", 4 * count, lock=False)
        self._ends, self._processes = [], []
        for number in range(min(PROCESSES, count)):
            ours, theirs = spawn.Pipe()
            places = range(number, count, PROCESSES)
            process = spawn.Process(target=read, args=(etcd, places, self.board, theirs))
            self._ends.append(ours)
            self._processes.append(process)

    def start(self) -> None:
        """Let all of them join."""
        for process in self._processes:
            process.start()

    def have_settled(self, teachers: int) -> bool:
        """Whether every reader knows all teachers, and together they are assigned all of them, and
        no other.
        """
        rows = [self.board[place : place + 4] for place in range(0, 4 * self.count, 4)]
        return (
            all(known == teachers for known, _, _, _ in rows)
            and all(assigned == there > 0 for _, assigned, there, _ in rows)
            and sum(there for _, _, there, _ in rows) >= teachers
        )

    def changed_at(self) -> float:
        """When anything changed last, in ``time.monotonic``."""
        return max(self.board[3::4])

    def pids(self) -> list[int]:
        """Their processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """Let all of them leave."""
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join()


# --- measuring ------------------------------------------------------------------------------


@dataclass
class Usage:
    """What had been used by a moment."""

    at: float
    revision: int
    etcd: float
    readers: list[float]


class Meter:
    """Reads what etcd and the readers use."""

    def __init__(self, etcd: Etcd, server: EmbeddedEtcd, readers: Readers, table: Table) -> None:
        self._etcd, self._server, self._readers = etcd, server, readers
        self._table = table

    def usage(self) -> Usage:
        """Seconds of CPU, and etcd's revision, now."""
        revision = self._etcd.call(lambda client: client.get_response("/")).header.revision
        return Usage(
            time.monotonic(),
            revision,
            cpu_seconds(self._server.pid),
            [cpu_seconds(pid) for pid in self._readers.pids()],
        )

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[list[str]]:
        """Measure what happens inside, as a row; the list takes what ``settled`` is to say."""
        before, settled = self.usage(), [""]
        yield settled
        after = self.usage()
        seconds = after.at - before.at
        spent = [now - then for now, then in zip(after.readers, before.readers)]
        self._table.add_row(
            name,
            settled[0],
            f"{(after.revision - before.revision) / seconds:,.1f}",
            f"{(after.etcd - before.etcd) / seconds:.1%}",
            f"{sum(spent) / self._readers.count / seconds:.2%}",
            f"{max(spent) / seconds:.1%}",
        )

    def event(self, name: str, happen: Callable[[], None], teachers: Callable[[], int]) -> None:
        """Measure from an event until a second after it has settled."""
        with self.row(name) as settled:
            started = time.monotonic()
            happen()
            while time.monotonic() - started < PATIENCE:
                time.sleep(0.05)
                quiet = time.monotonic() - self._readers.changed_at() > 1.0
                if quiet and self._readers.have_settled(teachers()):
                    settled[0] = f"{max(0.0, self._readers.changed_at() - started):.2f} s"
                    return
            settled[0] = f"not in {PATIENCE:g} s"


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teachers", type=int, default=10_000)
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()

    table = Table(title=f"{options.readers:,} readers, {options.teachers:,} teachers")
    for column in ("event", "settled", "writes/s", "etcd", "a reader", "busiest process"):
        table.add_column(column, justify="left" if column == "event" else "right")
    with EmbeddedEtcd() as server, Etcd(server.endpoint) as etcd:
        cluster = Cluster(etcd, options.teachers)
        cluster.start()
        readers = Readers(server.endpoint, options.readers)
        meter = Meter(etcd, server, readers, table)
        readers.start()
        newcomer = Registration(etcd, SERVICE, "127.200.0.1:9000", ENTRY, ttl=TTL)
        teachers = lambda: len(cluster.speeds)  # noqa: E731
        meter.event("all readers come", lambda: None, teachers)
        with meter.row("steady state"):
            time.sleep(options.seconds)
        meter.event("a teacher joins", newcomer.start, lambda: teachers() + 1)
        meter.event("a teacher leaves", newcomer.stop, teachers)
        meter.event("a tenth of the teachers leave", lambda: cluster.leave(0.1), teachers)
        readers.close()
        cluster.close()
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
