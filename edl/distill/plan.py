"""What is sent to a teacher and what is expected back: the reader's names against the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol

import numpy as np

from edl.errors import ConfigError, SourceError, WireError
from edl.serving.wire.description import Description, TensorSpec


class Columns(Protocol):
    """A batch from which slots can be taken (see ``batches``)."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    def column(self, index: int, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop`` of slot ``index``."""


@dataclass(frozen=True)
class Plan:
    """Which slots a teacher is fed, and what it must answer."""

    feeds: tuple[tuple[int, str, TensorSpec], ...]  # slot, feed name, kind
    fetches: tuple[tuple[str, TensorSpec], ...]

    def feed(self, batch: Columns, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays to send for rows ``start:stop``; views wherever the dtypes agree.

        Raises SourceError, which names the slot, for values that the feed's dtype cannot hold.
        """
        feeds = {}
        for slot, name, spec in self.feeds:
            array = batch.column(slot, name, start, stop)
            try:
                feeds[name] = spec.conform(array)
            except WireError as error:
                raise SourceError(
                    f"slot {slot} ({name!r}): {error}; convert it in the source"
                ) from error
        return feeds

    def fetch_names(self) -> list[str]:
        """What to ask for."""
        return [name for name, _ in self.fetches]

    def check(self, outputs: dict[str, np.ndarray], rows: int) -> str:
        """What is wrong with an answer, or an empty string."""
        for name, spec in self.fetches:
            if name not in outputs:
                return f"its answer lacks {name!r}"
            if outputs[name].shape[:1] != (rows,):
                return f"{name!r} has shape {outputs[name].shape} for {rows} rows"
            wrong = spec.mismatch(outputs[name])
            if wrong:
                return f"{name!r}: {wrong}"
        return ""


def make_plan(
    ins: Sequence[Optional[str]], predicts: Sequence[str], description: Description
) -> Plan:
    """Match the reader's slots and predictions with what a teacher serves.

    Raises ConfigError that names what the teacher lacks or what the reader does not have.
    """
    slots = {name: index for index, name in enumerate(ins) if name is not None}
    missing = [name for name in description.feeds if name not in slots]
    if missing:
        raise ConfigError(
            f"it needs feeds {_quoted(description.feeds)}, but the reader's slots are named "
            f"{_quoted(slots)}: {_quoted(missing)} is missing from ins"
        )
    unknown = [name for name in predicts if name not in description.fetches]
    if unknown:
        raise ConfigError(
            f"it serves {_quoted(description.fetches)}, but predicts names {_quoted(unknown)}"
        )
    return Plan(
        tuple((slots[name], name, spec) for name, spec in description.feeds.items()),
        tuple((name, description.fetches[name]) for name in predicts),
    )


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
