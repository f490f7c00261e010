"""Tasks that go to a teacher in one request: what a request costs beside its rows is paid once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edl.distill.lengths import Span
from edl.distill.state import Task
from edl.errors import WireError

#: Bytes of a part of an answer from which on it is copied: who keeps one keeps no others with it.
_LARGE = 32 << 10


@dataclass(frozen=True)
class Part:
    """A task as it is sent: the ``span`` of its rows, and ``feeds``, the rows of each feed.
    ``label_feeds``: what its sparse labels are made of (see ``Plan``).
    """

    task: Task
    span: Span
    feeds: Mapping[str, np.ndarray]
    label_feeds: Mapping[str, np.ndarray]


def joined(parts: Sequence[Part], most_rows: int) -> list[list[Part]]:
    """The parts of each request, in their order. Those share one whose rows are alike, up to
    ``most_rows``; no sequences, which a teacher counts by tokens, and no task that is to travel
    ``alone``.
    """
    requests: list[list[Part]] = []
    rows, kind = 0, None
    for part in parts:
        its_kind = _kind(part)
        rows += part.span.rows
        if its_kind is None or its_kind != kind or rows > most_rows:
            requests.append([])
            rows, kind = part.span.rows, its_kind
        requests[-1].append(part)
    return requests


def _kind(part: Part) -> object:
    """What parts of one request have in common; None for one that shares it with nobody."""
    if part.task.alone or part.span.length:
        return None
    return {name: (array.dtype, array.shape[1:]) for name, array in part.feeds.items()}


def feeds_of(parts: Sequence[Part]) -> Mapping[str, np.ndarray]:
    """What is sent of them: their rows, one part after the other."""
    if len(parts) == 1:
        return parts[0].feeds
    return {name: np.concatenate([part.feeds[name] for part in parts]) for name in parts[0].feeds}


def split(outputs: Mapping[str, np.ndarray], parts: Sequence[Part]) -> list[dict[str, np.ndarray]]:
    """The outputs of each part: views of ``outputs``, if they are small. Raises WireError, which
    names the output, if one has not as many rows as were sent.
    """
    if len(parts) == 1:
        return [dict(outputs)]
    rows = sum(part.span.rows for part in parts)
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise WireError(f"{name!r} has shape {array.shape} for {rows} rows")
    found, start = [], 0
    for part in parts:
        stop = start + part.span.rows
        found.append({name: _rows_of(array, start, stop) for name, array in outputs.items()})
        start = stop
    return found


def _rows_of(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    rows = array[start:stop]
    return rows.copy() if rows.nbytes > _LARGE else rows
