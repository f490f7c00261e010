"""Rows that go to several teacher models, by a tag or all to each, and their answers joined."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Callable, Union

import numpy as np

from edl.errors import ReaderError, SourceError

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Share:
    """Rows of a request, for the teachers of a name; a slice where they lie together."""

    name: str
    rows: Union[slice, np.ndarray]


def share_out(tags: np.ndarray, names: Sequence[str], column: str) -> list[Share]:
    """Who gets which rows by their tags, one for each row: each row has one share, and there are no
    empty ones, unless there are no rows, which the first name gets. Raises SourceError for a tag
    that is not among ``names``.
    """
    if tags.ndim != 1:
        raise SourceError(f"the request's {column!r} has shape {tags.shape}: it is one tag a row")
    words = np.array([_word(tag) for tag in tags.tolist()], dtype=object)
    if not words.size:
        return [Share(names[0], slice(0, 0))]
    found = [(name, np.flatnonzero(words == name)) for name in names]
    if sum(len(rows) for _, rows in found) < words.size:
        row = next(row for row, word in enumerate(words) if word not in names)
        raise SourceError(
            f"{column!r} of row {row} is {words[row]!r}; the teachers are named {', '.join(names)}"
        )
    return [Share(name, _together(rows)) for name, rows in found if len(rows)]


def _word(tag: Any) -> str:
    return tag.decode("utf-8", "replace") if isinstance(tag, bytes) else str(tag)


def _together(rows: np.ndarray) -> Union[slice, np.ndarray]:
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def join_shares(
    shares: Sequence[Share], answers: Sequence[Outputs], rows: int
) -> dict[str, np.ndarray]:
    """The answers to a request of so many ``rows`` from those to its shares, each row in its place.
    Raises ReaderError if they are not of one shape and dtype.
    """
    joined = {}
    for name, first in answers[0].items():
        array = np.empty((rows, *first.shape[1:]), first.dtype)
        for share, answer in zip(shares, answers):
            part = answer[name]
            if (part.shape[1:], part.dtype) != (first.shape[1:], first.dtype):
                raise ReaderError(
                    f"{name!r} has rows of {first.dtype} {first.shape[1:]} from {shares[0].name}, "
                    f"of {part.dtype} {part.shape[1:]} from {share.name}: rows of one request need "
                    "one shape and dtype"
                )
            array[share.rows] = part
        joined[name] = array
    return joined


def gather(parts: Sequence[Future[Any]], join: Callable[[list[Any]], Any]) -> Future[Any]:
    """The future of ``join(results of the parts)``, which is called by the thread that gives the
    last of them. The first error of a part is that of all, and cancels the others, as does
    cancelling it. Takes no lock, since futures may be cancelled by finalizers.
    """
    whole: Future[Any] = Future()
    done = itertools.count(1)

    def cancel_parts() -> None:
        for part in parts:
            part.cancel()

    def part_is_done(part: Future[Any]) -> None:
        if not part.cancelled() and part.exception() is not None:
            cancel_parts()
        if next(done) == len(parts):
            _conclude(whole, parts, join)

    def cancel_with(whole: Future[Any]) -> None:
        if whole.cancelled():
            cancel_parts()

    whole.add_done_callback(cancel_with)
    for part in parts:
        part.add_done_callback(part_is_done)
    return whole


def _conclude(
    whole: Future[Any], parts: Sequence[Future[Any]], join: Callable[[list[Any]], Any]
) -> None:
    if not whole.set_running_or_notify_cancel():
        return
    errors = (None if part.cancelled() else part.exception() for part in parts)
    error = next(filter(None, errors), None)
    value = None
    if error is None:
        try:
            value = join([part.result() for part in parts])
        except Exception as failure:
            error = failure
    if error is None:
        whole.set_result(value)
    else:
        whole.set_exception(error)
