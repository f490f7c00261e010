"""The connection to one teacher, and the thread that keeps it busy.

A link connects, asks the teacher what it serves, and then sends it the tasks that the pool gives
out, one frame after the other; the client's receiving thread hands the answers back. When the
connection breaks, the link tries again, until it is stopped. It has no part in any decision: what
happens it reports, and the pool keeps the record.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Callable, Optional, Protocol, Union

import numpy as np

from edl._threads import Loop
from edl.distill.joining import Prepared, feeds_of, joined, split
from edl.distill.labels import Maker
from edl.distill.plan import Columns, Plan, make_plan
from edl.distill.state import Task
from edl.errors import (
    AccessDenied,
    ConfigError,
    ReaderError,
    RequestRefused,
    SourceError,
    TeacherError,
    TeacherFailed,
    TeacherProtocolError,
    TlsRefused,
    WireError,
)
from edl.serving.client.entry import Client, Entry
from edl.serving.client.local import connect_nearer, socket_of
from edl.serving.client.teacher import TLS
from edl.serving.client.timing import Timing
from edl.serving.wire.description import Description, batch_rows
from edl.serving.wire.times import are_told

logger = logging.getLogger(__name__)

Answer = Union[dict[str, np.ndarray], TeacherError]

#: Seconds from one attempt to connect to the next, at first and at most.
_BACKOFF_FIRST, _BACKOFF_MOST = 0.05, 0.5

#: Seconds that attempts may take, in turn. One that hangs, as where a host is away and drops what
#: it is sent, is mostly given up for a new one; a slow host needs one that is patient.
_CONNECT_WITHIN = (0.8, 0.8, 0.8, 3.0)

#: Seconds after which a teacher that does not fit is asked again what it serves.
_LOOK_EVERY = 0.5


@dataclass(frozen=True)
class Wants:
    """What a student asks of every teacher. ``ins``: its slots; None if each request names its
    own. ``fallback``: what to take those for that do not say what they serve. ``token``: what they
    want to be shown. ``targets``: the slot of target ids. ``tokenizer``: the fingerprint of the
    student's; empty: any. ``lengths``: the slot of the rows' lengths, or of a mask, if they are
    sequences that can be trimmed. ``wire``: in which dtypes slots and predictions travel, where
    that is narrower. ``local``: to use teachers on this machine by their Unix sockets. ``timed``:
    to ask for times. ``rows``: of a request, at most.
    """

    ins: Optional[Sequence[Optional[str]]]
    predicts: Sequence[str]
    fallback: Optional[Description] = None
    token: str = ""
    targets: Optional[str] = None
    tokenizer: str = ""
    lengths: Optional[str] = None
    wire: Mapping[str, str] = field(default_factory=dict)
    local: bool = True
    timed: bool = False
    rows: int = 1


class Instead(Enum):
    """What to do when there is no task: give the connection up, or see whether the teacher is what
    it was. (One that is sent nothing could be gone for good, and nobody would know.)
    """

    LEAVE = auto()
    ASK_AGAIN = auto()


Work = tuple[Task, Columns]


class Desk(Protocol):
    """What a link needs of the pool: tasks to send, and somewhere to report."""

    def entry(self, link: TeacherLink) -> str:
        """What the registry says of the teacher now."""

    def link_up(self, link: TeacherLink, client: Client, plan: Plan, said: Description) -> None:
        """The teacher is connected and serves what it has ``said``; ``plan``: what to send it."""

    def link_down(
        self, link: TeacherLink, client: Optional[Client], reason: str, unfit: bool = False
    ) -> None:
        """``client``'s connection has ended, or none could be made; ``unfit``: the teacher works,
        but does not fit the reader.
        """

    def wait_for_tasks(self, link: TeacherLink, client: Client) -> Union[list[Work], Instead]:
        """The next tasks for this teacher, or what to do instead. Raises TeacherError if its
        connection has ended.
        """

    def weighed(self, client: Client, task: Task, work: int) -> None:
        """A task of sequences, which is sent to the teacher now, has so many tokens."""

    def answered(
        self,
        client: Client,
        answers: Sequence[tuple[Task, Answer]],
        timing: Optional[Timing] = None,
    ) -> None:
        """The teacher's answers to the tasks of one request, and its times if they were wanted."""

    def failed_together(self, client: Client, tasks: Sequence[Task], error: TeacherError) -> None:
        """The teacher has failed at a request of all these tasks, or refused it, nobody knows
        because of which: each is to be sent again, alone.
        """

    def rejected(self, client: Client, task: Task, error: ReaderError) -> None:
        """The task's rows cannot be sent at all."""


class TeacherLink:
    """One teacher of a reader, from ``start`` to ``stop``."""

    def __init__(self, desk: Desk, endpoint: str, wants: Wants) -> None:
        self.endpoint = endpoint
        self._desk = desk
        self._wants = wants
        self._connection: Optional[Client] = None
        self._backoff = _BACKOFF_FIRST
        self._patience = itertools.cycle(_CONNECT_WITHIN)
        self._again = threading.Event()
        self._said: set[str] = set()
        self._useless: set[str] = set()  # Unix sockets
        self._loop = Loop(f"edl-send-{endpoint}", self._connect_and_send, pause=0.0)

    def start(self) -> None:
        """Begin to connect. Does nothing once it is stopped."""
        self._loop.start()

    def look_again(self) -> None:
        """Something else is said of the teacher: what failed before may work now."""
        self._again.set()

    def stop(self) -> None:
        """End the connection and the attempts at one. Waits for nothing."""
        self._loop.stop()
        self._again.set()
        connection = self._connection
        if connection is not None:
            connection.close()

    def _connect_and_send(self) -> None:
        self._again.clear()
        started = time.monotonic()
        try:
            self._serve_once()
        except TlsRefused as error:
            self._say(f"is not used: {error.message}")
            self._desk.link_down(self, None, error.message, unfit=True)
        except TeacherError as error:
            self._desk.link_down(self, None, error.message)
        except ConfigError as error:
            self._desk.link_down(self, None, str(error), unfit=True)
        except Exception as error:
            self._desk.link_down(self, None, f"{type(error).__name__}: {error}")
            raise
        finally:
            self._connection = None
            if not self._loop.stopped.is_set():
                self._again.wait(started + self._backoff - time.monotonic())
            self._backoff = min(_BACKOFF_MOST, 2 * self._backoff)

    def _serve_once(self) -> None:
        """One connection, to its end. Raises TeacherError, or ConfigError if the teacher does not
        fit the reader.
        """
        text = self._desk.entry(self)
        entry = Entry.from_json(text)
        with contextlib.ExitStack() as stack:
            client = entry.connect(self.endpoint, self._wants.token, next(self._patience))
            stack.callback(client.close)
            self._connection = client
            if self._loop.stopped.is_set():  # between the loop's check and here
                return
            try:
                description, plan = self._plan(client, entry)
            except ConfigError as error:
                self._desk.link_down(self, None, str(error), unfit=True)
                self._wait_for_another(client, entry, str(error))
                return
            path = socket_of(self.endpoint, description) if self._wants.local else ""
            nearer = self._nearer(path, description, client.way == TLS)
            if nearer is not None:
                stack.callback(nearer.close)
                client.close()
                client = self._connection = nearer
                if self._loop.stopped.is_set():
                    return

            def is_the_same() -> bool:
                same = self._desk.entry(self) == text
                return same and self._describe(client, entry) == description

            self._say_what_is_not_spared(plan)
            self._desk.link_up(self, client, plan, description)
            started, reason = time.monotonic(), "the connection was given up"
            try:
                self._send_tasks(client, plan, description, is_the_same)
            except Exception as error:
                reason = getattr(error, "message", str(error))
                raise
            finally:
                if time.monotonic() - started > 2 * _BACKOFF_MOST:  # it was there for a while
                    self._backoff = _BACKOFF_FIRST
                elif client is nearer:
                    self._useless.add(path)
                self._desk.link_down(self, client, reason)

    def _nearer(self, path: str, description: Description, tls: bool) -> Optional[Client]:
        """The teacher by its Unix socket at ``path``, unless that did not last before."""
        if not path or path in self._useless:
            return None
        patience = _CONNECT_WITHIN[-1]
        return connect_nearer(self.endpoint, path, description, self._wants.token, patience, tls)

    def _say_what_is_not_spared(self, plan: Plan) -> None:
        """What travels to or from this teacher although it need not; each once."""
        names = [each.name for each in plan.labellings if each.maker is Maker.STUDENT]
        lines = []
        if names:
            whole = ", ".join(map(repr, names))
            lines.append(
                f"makes no sparse labels: it sends the whole {whole}, and they are made here"
            )
        if plan.whole:
            lines.append(f"is sent rows in their whole length: {plan.whole}")
        if plan.wide:
            lines.append(f"takes and sends no narrower tensors: {plan.wide}")
        for line in lines:
            self._say(line)

    def _say(self, line: str) -> None:
        """Warn of something about this teacher, once."""
        if line not in self._said:
            self._said.add(line)
            logger.warning("teacher %s %s", self.endpoint, line)

    def _wait_for_another(self, client: Client, entry: Entry, why: str) -> None:
        """Keep a connection that is of no use, because it shows when the teacher is another: that
        says something else, or the connection ends.
        """
        with contextlib.suppress(TeacherError):
            while not self._again.wait(_LOOK_EVERY):
                try:
                    self._plan(client, entry)
                    return
                except ConfigError as error:
                    if str(error) != why:
                        return

    def _plan(self, client: Client, entry: Entry) -> tuple[Description, Plan]:
        description = self._describe(client, entry)
        wants = self._wants
        _check_tokenizer(wants.tokenizer, description)
        plan = make_plan(
            wants.ins, wants.predicts, description, wants.targets, wants.lengths, wants.wire
        )
        return description, plan

    def _describe(self, client: Client, entry: Entry) -> Description:
        try:
            return client.describe()
        except AccessDenied as error:
            raise ConfigError(
                f"{error.message}; give it to the reader as token=..., or in EDL_TOKEN"
            ) from error
        except RequestRefused as error:
            known = entry.description or self._wants.fallback
            if known is None:
                raise ConfigError(
                    f"it does not say what it serves ({error.message}); give the reader its "
                    "serving_client_conf.prototxt with set_serving_conf_file"
                ) from error
            return known

    def _send_tasks(
        self, client: Client, plan: Plan, said: Description, is_the_same: Callable[[], bool]
    ) -> None:
        """Send what there is to send to a teacher that has ``said`` what it serves."""
        while True:
            work = self._desk.wait_for_tasks(self, client)
            if work is Instead.ASK_AGAIN and is_the_same():
                continue
            if isinstance(work, Instead):
                return
            try:
                self._send_together(client, plan, said, work)
            finally:
                client.flush()
            del work  # what is sent is not held while the next waits

    def _send_together(
        self, client: Client, plan: Plan, said: Description, work: list[Work]
    ) -> None:
        """Send tasks, several in a request where that can be, or report that they cannot be."""
        found = (self._prepare(client, plan, *each) for each in work)
        prepared = [each for each in found if each is not None]
        for request in joined(prepared, min(self._wants.rows, batch_rows(said))):
            self._send(client, plan, said, request)

    def _prepare(
        self, client: Client, plan: Plan, task: Task, batch: Columns
    ) -> Optional[Prepared]:
        """What is sent of a task; None, which is reported, if it cannot be."""
        try:
            span = plan.span(batch, task.start, task.stop)
            feeds = plan.feed(batch, task.start, task.stop, span, task.made)
            label_feeds = plan.label_feeds(batch, task.start, task.stop, span)
        except SourceError as error:
            self._desk.rejected(client, task, error)
            return None
        except Exception as error:  # whatever converting the user's data may raise
            logger.exception("rows %d to %d cannot be fed", task.start, task.stop)
            self._desk.rejected(client, task, SourceError(f"{type(error).__name__}: {error}"))
            return None
        if span.length:
            self._desk.weighed(client, task, span.work)
        return Prepared(task, span, {**feeds, **plan.sent(label_feeds)}, label_feeds)

    def _send(
        self, client: Client, plan: Plan, said: Description, tasks: Sequence[Prepared]
    ) -> None:
        """Send a request, at the next ``flush`` if it is small. What cannot travel is reported, and
        costs the others of its request nothing.
        """
        timing = Timing(are_told(said)) if self._wants.timed else None
        reply = _Reply(self._desk, client, plan, tasks, timing)
        try:
            client.submit(feeds_of(tasks), plan.fetch_names, reply, more=True, timing=timing)
        except WireError as error:
            if len(tasks) == 1:
                self._desk.rejected(client, tasks[0].task, SourceError(str(error)))
                return
            for each in tasks:
                self._send(client, plan, said, [each])


def _check_tokenizer(wanted: str, description: Description) -> None:
    """Raises ConfigError if the teacher's ids may be of other tokens than the student's."""
    said = description.extra.get("tokenizer", "")
    if not wanted or said == wanted:
        return
    if not said:
        raise ConfigError(
            "it does not say which tokenizer its model has, so it may be another than the "
            "student's; host the tokenizer's files beside its weights, or leave out tokenizer="
        )
    raise ConfigError(
        f"its tokenizer is {str(said)[:64]}, the student's {wanted}: its ids are of other tokens"
    )


#: What one task of a request may have brought about, and the others not.
_OF_ONE_TASK = (RequestRefused, TeacherFailed)


class _Reply:
    """Passes a request's answer on, together with the connection it came from: for each of its
    tasks the columns that the ``plan`` reads in it, as wide as the batch.
    """

    __slots__ = ("_client", "_desk", "_plan", "_prepared", "_timing")

    def __init__(
        self,
        desk: Desk,
        client: Client,
        plan: Plan,
        prepared: Sequence[Prepared],
        timing: Optional[Timing],
    ) -> None:
        self._desk, self._client, self._plan = desk, client, plan
        self._prepared, self._timing = prepared, timing

    def __call__(self, answer: Answer) -> None:
        prepared, answers = self._prepared, [answer] * len(self._prepared)
        if isinstance(answer, dict):
            try:
                answers = [self._read(*each) for each in zip(prepared, split(answer, prepared))]
            except WireError as error:
                answer = RequestRefused(self._client.endpoint, f"several batches in one: {error}")
        tasks = [each.task for each in prepared]
        if len(tasks) > 1 and isinstance(answer, _OF_ONE_TASK):
            self._desk.failed_together(self._client, tasks, answer)
        else:
            self._desk.answered(self._client, list(zip(tasks, answers)), self._timing)

    def _read(self, prepared: Prepared, outputs: dict[str, np.ndarray]) -> Answer:
        endpoint, plan = self._client.endpoint, self._plan
        try:
            return plan.widen(plan.read(outputs, prepared.label_feeds), prepared.span)
        except WireError as error:
            return TeacherProtocolError(endpoint, str(error))
        except ConfigError as error:
            return TeacherFailed(endpoint, str(error))
        except Exception as error:  # a bug, of which the task has to hear all the same
            logger.exception("the answer of %s cannot be read", endpoint)
            return TeacherProtocolError(endpoint, f"{type(error).__name__}: {error}")
