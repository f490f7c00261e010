"""The connection to one teacher, and the threads that keep it busy.

A link connects, asks the teacher what it serves, and then sends it the tasks that the session gives
out, one frame after the other; the client's receiving thread hands the answers back. When the
connection breaks, the link tries again for as long as the teacher is wanted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Optional, Protocol, Union

import numpy as np

from edl.distill.plan import Columns, Plan, make_plan
from edl.distill.state import Task
from edl.errors import (
    AccessDenied,
    ConfigError,
    ReaderError,
    RequestRefused,
    SourceError,
    TeacherError,
    WireError,
)
from edl.serving.client.entry import Client, Entry
from edl.serving.wire.description import Description

logger = logging.getLogger(__name__)

Answer = Union[dict[str, np.ndarray], TeacherError]

_BACKOFF_FIRST, _BACKOFF_MOST = 0.1, 5.0
_UNFIT_BACKOFF = 5.0


class Desk(Protocol):
    """What a link needs of the session: tasks to send, and somewhere to report."""

    def link_up(self, link: TeacherLink) -> None:
        """The teacher is connected and its plan known."""

    def link_down(self, link: TeacherLink, client: Optional[Client], reason: str) -> None:
        """``client``'s connection has ended, or none could be made."""

    def wait_for_task(self, link: TeacherLink, client: Client) -> Optional[tuple[Task, Columns]]:
        """The next task for this teacher; None when the connection is to be given up."""

    def answered(self, link: TeacherLink, client: Client, task: Task, answer: Answer) -> None:
        """The teacher's answer to a task."""

    def rejected(self, link: TeacherLink, task: Task, error: ReaderError) -> None:
        """The task's rows cannot be sent at all."""


class TeacherLink:
    """One teacher of a reader. ``stop`` ends it; the session owns ``client`` and ``condition``.
    ``registered``: what its entry in the registry says, read at every attempt to connect.
    """

    def __init__(
        self,
        desk: Desk,
        endpoint: str,
        registered: str,
        token: str,
        ins: Sequence[Optional[str]],
        predicts: Sequence[str],
        fallback: Optional[Description],
        lock: threading.Lock,
    ) -> None:
        self.endpoint = endpoint
        self.condition = threading.Condition(lock)
        self.client: Optional[Client] = None
        self.plan: Optional[Plan] = None
        self.problem = "not connected yet"
        self.failing = False
        self.unfit = False
        self.retiring = False
        self._desk = desk
        self.registered = registered
        self._token = token
        self._ins = ins
        self._predicts = predicts
        self._fallback = fallback
        self._connection: Optional[Client] = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"edl-send-{endpoint}", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """End the connection and the attempts at one. Does not wait for the thread."""
        self._stopped.set()
        connection = self._connection
        if connection is not None:
            connection.close()

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; whether it did."""
        if self.alive and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self.alive

    @property
    def alive(self) -> bool:
        """Whether its thread is still there."""
        return self._thread.is_alive()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopped.is_set()

    def _run(self) -> None:
        backoff = _BACKOFF_FIRST
        while not self.stopped:
            started = time.monotonic()
            try:
                entry = Entry.from_json(self.registered)
                with contextlib.closing(entry.connect(self.endpoint, self._token)) as client:
                    self._connection = client
                    if self.stopped:  # between the check above and here
                        return
                    self.plan = self._agree(client, entry)
                    self.client, self.unfit = client, False
                    self._desk.link_up(self)
                    self._send_tasks(client, self.plan)
                    self._desk.link_down(self, client, "the connection was given up")
            except TeacherError as error:
                self._desk.link_down(self, None, error.message)
            except ConfigError as error:
                self.unfit = True
                self._desk.link_down(self, None, str(error))
                backoff = _UNFIT_BACKOFF
            if time.monotonic() - started > _BACKOFF_MOST:
                backoff = _BACKOFF_FIRST
            if self.retiring or self._stopped.wait(backoff):
                return
            backoff = min(_BACKOFF_MOST, 2 * backoff)

    def _agree(self, client: Client, entry: Entry) -> Plan:
        """What to send and to expect. Raises ConfigError if the teacher does not fit the reader."""
        try:
            description = client.describe()
        except AccessDenied as error:
            raise ConfigError(
                f"{error.message}; give it to the reader as token=..., or in EDL_TOKEN"
            ) from error
        except RequestRefused as error:
            known = entry.description or self._fallback
            if known is None:
                raise ConfigError(
                    f"it does not say what it serves ({error.message}); give the reader its "
                    "serving_client_conf.prototxt with set_serving_conf_file"
                ) from error
            description = known
        return make_plan(self._ins, self._predicts, description)

    def _send_tasks(self, client: Client, plan: Plan) -> None:
        fetches = plan.fetch_names()
        while True:
            work = self._desk.wait_for_task(self, client)
            if work is None:
                return
            task, batch = work
            try:
                feeds = plan.feed(batch, task.start, task.stop)
                client.submit(feeds, fetches, _Reply(self._desk, self, client, task))
            except SourceError as error:
                self._desk.rejected(self, task, error)
            except WireError as error:
                self._desk.rejected(self, task, SourceError(str(error)))
            except Exception as error:  # whatever converting the user's data may raise
                logger.exception("sending a task to %s failed", self.endpoint)
                self._desk.rejected(self, task, SourceError(f"{type(error).__name__}: {error}"))


class _Reply:
    """Passes a task's answer on, together with the connection it came from."""

    __slots__ = ("_client", "_desk", "_link", "_task")

    def __init__(self, desk: Desk, link: TeacherLink, client: Client, task: Task) -> None:
        self._desk, self._link, self._client, self._task = desk, link, client, task

    def __call__(self, answer: Answer) -> None:
        self._desk.answered(self._link, self._client, self._task, answer)
