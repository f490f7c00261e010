"""Tasks that go to a teacher in one request: what a request costs beside its rows is paid once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edl.distill.lengths import Span
from edl.distill.state import Task
from edl.errors import WireError

#: Bytes of a task's share of an answer from which on it is copied, so that who keeps it does not
#: keep the others' too.
_LARGE = 32 << 10


@dataclass(frozen=True)
class Prepared:
    """A task as it is sent: the ``span`` of its rows, and ``feeds``, the rows of each feed.
    ``label_feeds``: what its sparse labels are made of (see ``Plan``).
    """

    task: Task
    span: Span
    feeds: Mapping[str, np.ndarray]
    label_feeds: Mapping[str, np.ndarray]


def joined(tasks: Sequence[Prepared], most_rows: int) -> list[list[Prepared]]:
    """The tasks of each request, in their order. Those share one whose rows are alike, up to
    ``most_rows``; no sequences, which a teacher counts by tokens, and no task that is to travel
    ``alone``.
    """
    requests: list[list[Prepared]] = []
    rows, kind = 0, None
    for task in tasks:
        its_kind = _kind(task)
        rows += task.span.rows
        if its_kind is None or its_kind != kind or rows > most_rows:
            requests.append([])
            rows, kind = task.span.rows, its_kind
        requests[-1].append(task)
    return requests


def _kind(prepared: Prepared) -> object:
    """What tasks of one request have in common; None for one that shares it with nobody."""
    if prepared.task.alone or prepared.span.length:
        return None
    return {name: (array.dtype, array.shape[1:]) for name, array in prepared.feeds.items()}


def feeds_of(tasks: Sequence[Prepared]) -> Mapping[str, np.ndarray]:
    """What is sent of them: their rows, one task after the other."""
    if len(tasks) == 1:
        return tasks[0].feeds
    return {name: np.concatenate([task.feeds[name] for task in tasks]) for name in tasks[0].feeds}


def split(
    outputs: Mapping[str, np.ndarray], tasks: Sequence[Prepared]
) -> list[dict[str, np.ndarray]]:
    """The outputs of each task: views of ``outputs``, if they are small. Raises WireError, which
    names the output, if one has not as many rows as were sent.
    """
    if len(tasks) == 1:
        return [dict(outputs)]
    rows = sum(task.span.rows for task in tasks)
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise WireError(f"{name!r} has shape {array.shape} for {rows} rows")
    found, start = [], 0
    for task in tasks:
        stop = start + task.span.rows
        found.append({name: _rows_of(array, start, stop) for name, array in outputs.items()})
        start = stop
    return found


def _rows_of(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    rows = array[start:stop]
    return rows.copy() if rows.nbytes > _LARGE else rows
