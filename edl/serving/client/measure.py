"""How fast a teacher is: requests from several clients at once, and where their time goes.

Each client is a connection that sends its next request when the one before has been answered. What
the server counts meanwhile (``/metrics`` of an ``edl teacher``) says how long requests waited there
and how long batches took to compute; what is left of their time is spent on the way.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Callable, Optional

import numpy as np

from edl.errors import ConfigError, TeacherError, WireError
from edl.serving.client.entry import Client
from edl.serving.client.page import read_page
from edl.serving.wire.description import TensorSpec

#: Figures of a server by name, as they stand.
Counters = Mapping[str, float]

_DIFFERENT_BATCHES = 16


@dataclass(frozen=True)
class Speed:
    """What was measured with ``clients`` clients and ``batch`` rows in each request.

    Times are seconds per request. ``queue``, ``compute`` and ``wire`` (all the rest: on the way,
    written and read) are means that add up to the mean latency, and ``merged`` is the mean number
    of rows that the server computed at once; None where the server does not say. ``foreign``:
    requests of others that the server answered meanwhile. ``busy``: the share of one CPU that this
    process used; near 1, it is this process that was measured.
    """

    batch: int
    clients: int
    requests: int
    rows_per_second: float
    p50: float
    p99: float
    busy: float
    queue: Optional[float] = None
    compute: Optional[float] = None
    wire: Optional[float] = None
    merged: Optional[float] = None
    foreign: Optional[int] = None


def random_rows(specs: Mapping[str, TensorSpec], rows: int) -> dict[str, np.ndarray]:
    """So many rows of the kinds that ``specs`` say: numbers from 0 to 1, whole ones 0 or 1, always
    the same. Raises ConfigError for a feed whose size varies, or that is text.
    """
    generator = np.random.default_rng(0)
    feeds = {}
    for name, spec in specs.items():
        if spec.dtype == "str":
            raise ConfigError(f"feed {name!r} is text, and there is no random one: give data")
        if not spec.has_fixed_size:
            example = ",".join("128" if size < 0 else str(size) for size in spec.shape)
            raise ConfigError(
                f"feed {name!r} has no fixed size ({list(spec.shape)}, {spec.dtype}): give the "
                f"size of a row, as in {name}:{spec.dtype}:{example}, or data"
            )
        shape = (rows, *spec.shape)
        whole = np.dtype(spec.dtype).kind in "iub"
        values = generator.integers(0, 2, shape) if whole else generator.random(shape, np.float32)
        feeds[name] = values.astype(spec.dtype)
    return feeds


def given_rows(
    specs: Mapping[str, TensorSpec], data: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of ``data`` that are fed, of the dtypes that are wanted. Raises ConfigError if one
    is missing, does not fit, or has another number of rows.
    """
    missing = [name for name in specs if name not in data]
    if missing:
        raise ConfigError(f"the data has {', '.join(data) or 'nothing'}, but no {missing[0]!r}")
    feeds = {}
    for name, spec in specs.items():
        try:
            feeds[name] = spec.conform(data[name])
        except WireError as error:
            raise ConfigError(f"data {name!r}: {error}") from error
        wrong = spec.mismatch(feeds[name])
        if wrong:
            raise ConfigError(f"data {name!r}: {wrong}")
    counts = {name: len(array) for name, array in feeds.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise ConfigError(f"the arrays of the data must have the same number of rows: {counts}")
    return feeds


def measure(
    connect: Callable[[], Client],
    feeds: Mapping[str, np.ndarray],
    fetches: Sequence[str],
    *,
    batch: int,
    clients: int,
    seconds: float,
    timeout: float = 60.0,
    counters: Callable[[], Optional[Counters]] = lambda: None,
) -> Speed:
    """Send rows of ``feeds``, over and over, for ``seconds`` after one request of each client that
    is not counted. ``counters``: see :func:`read_counters`.

    Raises TeacherError if a request fails or takes longer than ``timeout`` seconds.
    """
    requests = _batches(feeds, batch)
    with ExitStack() as stack:
        runs = [
            _Run(stack.enter_context(contextlib.closing(connect())), requests, number, fetches)
            for number in range(clients)
        ]
        for run in runs:
            run.request(timeout)
            run.latencies.clear()
        before, cpu = counters(), time.process_time()
        _run_all(runs, seconds, timeout)
        cpu, after = time.process_time() - cpu, counters()
    latencies = np.concatenate([run.latencies for run in runs])
    spent = max(run.spent for run in runs)
    speed = {
        "batch": batch,
        "clients": clients,
        "requests": len(latencies),
        "rows_per_second": sum(batch * len(run.latencies) / run.spent for run in runs),
        "p50": float(np.percentile(latencies, 50)),
        "p99": float(np.percentile(latencies, 99)),
        "busy": cpu / spent,
    }
    if before is None or after is None:
        return Speed(**speed)  # type: ignore[arg-type]
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return Speed(**speed, **_where_time_went(grown, latencies))  # type: ignore[arg-type]


def _where_time_went(grown: Counters, latencies: np.ndarray) -> dict[str, float]:
    """Means for each request, from what the server's counters grew by."""
    answered, computed = grown["edl_queue_seconds_count"], grown["edl_compute_seconds_count"]
    if not answered or not computed:
        return {}
    queue = grown["edl_queue_seconds_sum"] / answered
    compute = grown["edl_compute_seconds_sum"] / computed
    return {
        "queue": queue,
        "compute": compute,
        "wire": max(0.0, float(latencies.mean()) - queue - compute),
        "merged": grown["edl_batch_rows_sum"] / grown["edl_batch_rows_count"],
        "foreign": max(0, round(answered) - len(latencies)),
    }


def read_counters(endpoint: str, token: str = "", tls: Optional[bool] = None) -> Optional[Counters]:
    """What an ``edl teacher`` counts, from its port; None for a server that says nothing of it.
    ``tls``: see :func:`read_page`.
    """
    try:
        _, page = read_page(endpoint, "/metrics", token, tls=tls)
    except TeacherError:
        return None
    counters = {}
    for line in page.decode("utf-8", "replace").splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("edl_") and "{" not in name:
            with contextlib.suppress(ValueError):
                counters[name] = float(value)
    return counters if "edl_queue_seconds_count" in counters else None


def _batches(feeds: Mapping[str, np.ndarray], batch: int) -> list[dict[str, np.ndarray]]:
    """Batches that go through all rows, or the first of many, round and round."""
    rows = len(next(iter(feeds.values())))
    number = min(_DIFFERENT_BATCHES, -(-rows // batch))
    return [
        {
            name: np.take(array, range(first, first + batch), axis=0, mode="wrap")
            for name, array in feeds.items()
        }
        for first in range(0, number * batch, batch)
    ]


@dataclass
class _Run:
    """One client's requests."""

    client: Client
    requests: Sequence[Mapping[str, np.ndarray]]
    number: int
    fetches: Sequence[str]
    latencies: list[float] = field(default_factory=list)
    spent: float = 0.0
    error: Optional[BaseException] = None

    def request(self, timeout: float) -> None:
        """The next one."""
        feeds = self.requests[(self.number + len(self.latencies)) % len(self.requests)]
        started = time.perf_counter()
        self.client.infer(feeds, self.fetches, timeout)
        self.latencies.append(time.perf_counter() - started)

    def run(self, start: threading.Barrier, seconds: float, timeout: float) -> None:
        """Requests for so many seconds, at least one. An error ends it, and is kept."""
        start.wait()
        started = time.perf_counter()
        try:
            while not self.latencies or self.spent < seconds:
                self.request(timeout)
                self.spent = time.perf_counter() - started
        except (TeacherError, WireError) as error:
            self.error = error


def _run_all(runs: Sequence[_Run], seconds: float, timeout: float) -> None:
    start = threading.Barrier(len(runs))
    threads = [
        threading.Thread(target=run.run, args=(start, seconds, timeout), daemon=True)
        for run in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in runs:
        if run.error is not None:
            raise run.error
