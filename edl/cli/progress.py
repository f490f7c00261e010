"""A bar for what takes long: on standard error while that is a terminal, and gone at the end.

Without a terminal nothing is written, and nothing is imported for it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any, Optional, TextIO


class Bar:
    """Shows how far something has come; ``task`` of a ``rich.progress.Progress``, or nothing."""

    def __init__(self, unit: str = "", progress: Any = None, task: Any = None) -> None:
        self._unit = unit
        self._progress = progress
        self._task = task

    def show(self, done: int, total: Optional[int] = None, note: str = "", doing: str = "") -> None:
        """``done`` of ``total`` are, if that is known now. ``note``: what to say behind it;
        ``doing``: what is done next.
        """
        if self._progress is None:
            return
        of = "" if total is None else f"/{total:,}"
        count = f"{done:,}{of} {self._unit}" if self._unit else ""
        said = {"count": count, "note": note, **({"description": doing} if doing else {})}
        self._progress.update(self._task, completed=done, total=total, **said)


@contextlib.contextmanager
def progress(doing: str, unit: str = "") -> Iterator[Bar]:
    """A bar that says what is done and since when; if ``unit``, what is counted, is said, how many
    have been, and how much longer it takes if the total is known.
    """
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    def text(what: str) -> TextColumn:
        return TextColumn(what, markup=False)

    columns = [text("{task.description}"), BarColumn(), text("{task.fields[count]}")]
    columns += [TimeElapsedColumn(), text("{task.fields[note]}")]
    if unit:
        columns += [TimeRemainingColumn(), text("left")]
    bars = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # a file or a pipe stays what it is
    )
    own = sys.stderr
    with bars, _logging_above(own):
        yield Bar(unit, bars, bars.add_task(doing, total=None, count="", note=""))


@contextlib.contextmanager
def _logging_above(own: TextIO) -> Iterator[None]:
    """Lines that are logged appear above the bar, as what is printed to ``sys.stderr`` does now;
    handlers know ``own``, which it was.
    """
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is own
    ]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(own)
