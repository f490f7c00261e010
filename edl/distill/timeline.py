"""What of a pool is drawn in a trace: the source, what waits, each request's way, the student.

A request is one span in its teacher's group, made of what happened in turn:

=========  ========================================================================================
prepare    its rows are converted, encoded, and wait for the connection
send       its bytes are taken by this machine's network
wire       on the way: what is left over, as much there as back
teacher    as the teacher says: ``decode``, ``queue``, ``compute`` (of the whole batch), ``encode``
wire       on the way back
receive    the answer's bytes arrive
read       they become the batch's arrays
=========  ========================================================================================

The teacher's clock is another, so it says durations. They are laid into the time between the last
byte sent and the first one received; what they leave is the network's (and of whoever waited for
the interpreter), and it is split in two since nobody can tell which way took longer. A teacher that
says nothing has ``wire and teacher`` in place of the three, and so has one whose durations are
longer than the student has waited.
"""

from __future__ import annotations

from typing import Any, Optional

from edl.distill.state import Finished, Task
from edl.distill.trace import Flow, Span, Trace
from edl.serving.client.timing import Timing

#: Seconds before the end of a wait, where the arrow ends: at the end it is over.
_JUST_BEFORE = 1e-6

#: Of a teacher's time, what follows what.
_AT_TEACHER = ("decode", "queue", "compute", "encode")


class Timeline:
    """Draws one model's pool. ``model``: its name where there are several. ``kind``: what a student
    waits for, "batch" or "request".
    """

    def __init__(self, trace: Trace, model: str = "", kind: str = "batch") -> None:
        self._trace = trace
        self._kind = kind
        of = f" of {model}" if model else ""
        self._source, self._queue, self._student = f"source{of}", f"queue{of}", f"student{of}"
        self._ready, self._outstanding = f"batches ready{of}", f"requests outstanding{of}"
        self._flow = f"way{of}"

    def read(self, start: float, end: float) -> None:
        """The source has given its next batch, which was put where it waits by ``end``."""
        self._trace.span(self._source, "read", start, end)

    def taken(self, finished: Finished[Any], since: float, now: float, ready: int) -> None:
        """The student has got its next batch, for which it has waited."""
        trace = self._trace
        trace.span(self._student, "wait", since, now, batch=finished.number)
        for task in finished.tasks:
            trace.arrow(self._student, Flow(self._flow, task, "f"), max(since, now - _JUST_BEFORE))
        trace.counter(self._ready, now, batches=ready)

    def outstanding(self, requests: int, now: float) -> None:
        """So many requests are not answered."""
        self._trace.counter(self._outstanding, now, requests=requests)

    def answered(
        self,
        teacher: str,
        task: Task,
        since: Optional[float],
        timing: Timing,
        now: float,
        error: str = "",
        **details: Any,
    ) -> None:
        """A teacher has answered a task, whose batch was read at ``since`` (None: this answer is
        not used); ``error``: with that instead of outputs.
        """
        trace, name = self._trace, f"{self._kind} {task.batch}"
        details = {"rows": task.stop - task.start, "task": task.id, **details}
        step = None
        if since is not None:
            read, step = self._kind == "batch", Flow(self._flow, task.id, "t")
            if read:
                trace.arrow(self._source, Flow(self._flow, task.id, "s"), since)
            first = step if read else Flow(self._flow, task.id, "s")
            trace.span(self._queue, name, since, timing.started, flow=first, task=task.id)
        trace.span(
            "in flight",
            error or name,
            timing.started,
            now,
            group=f"teacher {teacher}",
            parts=parts_of(timing, now),
            flow=step,
            **details,
        )


def parts_of(timing: Timing, end: float) -> list[Span]:
    """What a request's time until ``end`` was made of, first to last; parts of the teacher's follow
    it.
    """
    start = timing.started
    came = min(timing.came or end, end)
    received = min(max(timing.received, came), end)
    sending = min(max(timing.sending, start), came)
    sent = min(max(timing.sent, sending), came)
    times = timing.server
    if times is None or times.seconds > came - sending:
        between = [Span("wire and teacher", sent, came)]
    else:
        # Whoever sends may have noted late that all was sent.
        sent = max(sending, min(sent, came - times.seconds))
        begin = sent + (came - sent - times.seconds) / 2
        at, inner = begin, []
        for name in _AT_TEACHER:
            until = min(at + getattr(times, name), came)
            inner.append(Span(name, at, until))
            at = until
        said = {"batch rows": times.rows, "requests": times.requests, "worker": times.worker}
        teacher = Span("teacher", begin, at, said)
        between = [Span("wire", sent, begin), teacher, *inner, Span("wire", at, came)]
    return [
        Span("prepare", start, sending),
        Span("send", sending, sent),
        *between,
        Span("receive", came, received),
        Span("read", received, end),
    ]
