"""Looks at the registry, asks teachers and students for their figures, and says once a second what
there is to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional, Union

from edl.discovery import Etcd
from edl.discovery.watch import Members, Watch
from edl.view.exposition import Values, last_error
from edl.view.figures import (
    Samples,
    StudentFigures,
    TeacherFigures,
    read_student,
    read_teacher,
    student_figures,
    teacher_figures,
)
from edl.view.registry import by_service, prefix_of
from edl.view.scrape import NoFigures, Target, fetch
from edl.view.snapshot import Figures, Snapshot, snapshot
from edl.view.targets import Access, Key, targets

logger = logging.getLogger(__name__)

#: Seconds between two snapshots.
PERIOD = 1.0

#: A port is asked every two seconds, and all together no more than so many times per second.
_ASK_EVERY, _ASK_PER_SECOND = 2.0, 50
_AT_ONCE = 64
_LONGEST_PAUSE = 60.0


async def observe(
    etcd: Etcd, only: Optional[str], access: Access, period: float = PERIOD
) -> AsyncGenerator[Snapshot, None]:
    """A snapshot now and every ``period`` seconds, of all services or ``only`` this one.

    It does not end by itself, and goes on without etcd: what was known last stands, and the
    snapshot says what is wrong. Raises ConfigError for a service name that cannot be.
    """
    registry = _Registry(etcd, only)
    asking = _Asking(access)
    registry.start()
    try:
        await registry.first()
        last = Snapshot(time.time())
        while True:
            started = time.monotonic()
            try:
                found = registry.found
                asking.ask(found, started)
                last = snapshot(found, asking.figures(), time.time(), registry.problem)
            except Exception as error:  # nothing that anybody writes may blind those who look
                problem = f"{type(error).__name__}: {error}"
                if problem != last.problem:
                    logger.exception("looking failed and goes on")
                last = replace(last, time=time.time(), problem=problem)
            yield last
            await asyncio.sleep(max(0.0, started + period - time.monotonic()))
    finally:
        asking.close()
        registry.stop()


class _Registry:
    """What the registry says, read again only where it has changed."""

    def __init__(self, etcd: Etcd, only: Optional[str]) -> None:
        self._only = only
        self._members: Members = {}
        self._read: Members = {}
        self._found: dict[str, Any] = {}
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(etcd, prefix_of(only), self._on_change)

    def start(self) -> None:
        self._watch.start()

    def stop(self) -> None:
        self._watch.stop()

    async def first(self, timeout: float = 3.0) -> None:
        """Wait until something is known, or it is known that nothing will be for a while."""
        try:
            await asyncio.wait_for(self._arrived.wait(), timeout)
        except asyncio.TimeoutError:
            pass

    @property
    def problem(self) -> str:
        return self._watch.error

    @property
    def found(self) -> dict[str, Any]:
        members = self._members
        if members is not self._read:
            self._read, self._found = members, by_service(members, self._only)
        return self._found

    def _on_change(self, members: Members) -> None:  # in the watch's thread
        self._members = members
        with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop has ended
            self._loop.call_soon_threadsafe(self._arrived.set)


@dataclass
class _Port:
    """One port that is asked."""

    target: Target
    student: str  # whose figures to take; empty for a teacher
    samples: Samples = field(default_factory=Samples)
    next_at: float = -math.inf
    failures: int = 0
    problem: str = ""
    words: str = ""
    known: Union[TeacherFigures, StudentFigures, None] = None

    def read(self, text: str) -> Values:
        if not self.student:
            return read_teacher(text)
        return read_student(text, f'student="{self.student}"')

    def figures(self) -> Union[TeacherFigures, StudentFigures]:
        return student_figures(self.samples) if self.student else teacher_figures(self.samples)


class _Asking:
    """Asks ports in the background, and keeps what they have said."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._ports: dict[Key, _Port] = {}
        self._registry: Optional[Mapping[str, Any]] = None
        self._tasks: dict[Key, asyncio.Task] = {}

    def ask(self, registry: Mapping[str, Any], now: float) -> None:
        """Begin to ask those whose turn it is."""
        if registry is not self._registry:
            self._registry = registry
            self._ports = dict(self._known(registry))
        due = [
            (port.next_at, key)
            for key, port in self._ports.items()
            if port.next_at <= now and key not in self._tasks
        ]
        pause = max(_ASK_EVERY, len(self._ports) / _ASK_PER_SECOND)
        for _, key in sorted(due)[: _AT_ONCE - len(self._tasks)]:
            port = self._ports[key]
            port.next_at = now + min(_LONGEST_PAUSE, pause * 2 ** min(port.failures, 5))
            if port.known is None and not port.failures:  # the second time it has rates
                port.next_at = now + _ASK_EVERY
            self._tasks[key] = asyncio.ensure_future(self._get(key, port))

    def figures(self) -> Figures:
        """What is known."""
        teachers: dict[Key, TeacherFigures] = {}
        students: dict[Key, StudentFigures] = {}
        for key, port in self._ports.items():
            if isinstance(port.known, TeacherFigures):
                teachers[key] = port.known
            elif isinstance(port.known, StudentFigures):
                students[key] = port.known
        problems = {key: port.problem for key, port in self._ports.items() if port.problem}
        words = {key: port.words for key, port in self._ports.items() if port.words}
        return Figures(teachers, students, problems, words)

    def close(self) -> None:
        """Ask no more."""
        for task in list(self._tasks.values()):
            task.cancel()

    def _known(self, registry: Mapping[str, Any]) -> Iterator[tuple[Key, _Port]]:
        """A port for each of who is there, with what it has said so far."""
        for key, target, student in targets(registry, self._access):
            before = self._ports.get(key)
            same = before is not None and before.target == target
            yield key, before if before and same else _Port(target, student)

    async def _get(self, key: Key, port: _Port) -> None:
        try:
            text = await fetch(port.target)
            values = port.read(text)
            if not values:
                raise NoFigures("what it says are no figures of EDL")
        except NoFigures as error:
            port.failures += 1
            port.problem, port.known = str(error), None
            port.samples = Samples()
        else:
            port.failures, port.problem = 0, ""
            port.words = "" if port.student else last_error(text)
            port.samples.add(time.monotonic(), values)
            port.known = port.figures()
        finally:
            self._tasks.pop(key, None)
