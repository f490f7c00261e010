"""What is sent to a teacher and what is expected back: the reader's names against the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol, Union

import numpy as np

from edl.distill.labels import Labelling, Maker, plan_labelling, row_seeds
from edl.errors import ConfigError, SourceError, WireError
from edl.serving.wire import labels
from edl.serving.wire.description import Description, TensorSpec


class Columns(Protocol):
    """A batch from which slots can be taken (see ``batches``)."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    @property
    def epoch(self) -> int:
        """The epoch that it belongs to."""

    def has(self, name: str) -> bool:
        """Whether there is a slot of that name, as there is of each that the student names."""

    def column(self, index: int, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop`` of slot ``index``."""


@dataclass(frozen=True)
class Plan:
    """Which slots a teacher is fed, what it is asked for, and what columns that must give.

    ``asks``: in the order of the columns, a fetch that is taken as it is, or sparse labels.
    ``targets``: the slot of target ids, and its name.
    """

    feeds: tuple[tuple[int, str, TensorSpec], ...]  # slot, feed name, kind
    fetches: tuple[tuple[str, TensorSpec], ...]  # the columns
    asks: tuple[Union[str, Labelling], ...]
    targets: Optional[tuple[int, str]] = None

    @property
    def labellings(self) -> list[Labelling]:
        """The predictions that are sparse labels."""
        return [ask for ask in self.asks if isinstance(ask, Labelling)]

    def feed(self, batch: Columns, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays to send for rows ``start:stop``; views wherever the dtypes agree.

        Raises SourceError, which names the slot, for values that the feed's dtype cannot hold.
        """
        return {
            name: _conform(batch, slot, name, spec, start, stop)
            for slot, name, spec in self._fed_by(batch)
        }

    def label_feeds(self, batch: Columns, start: int, stop: int) -> dict[str, np.ndarray]:
        """What making sparse labels of these rows takes beside that, wherever they are made. Raises
        SourceError for targets that are none.
        """
        specs = {name: spec for each in self.labellings for name, spec in each.feeds.items()}
        feeds = {}
        if labels.SEED_FEED in specs:
            fed = sorted(self._fed_by(batch), key=lambda feed: feed[:2])
            slots = [batch.column(slot, name, start, stop) for slot, name, _ in fed]
            feeds[labels.SEED_FEED] = row_seeds(slots, batch.epoch)
        if labels.TARGET_FEED in specs:
            assert self.targets is not None
            slot, name = self.targets
            spec = specs[labels.TARGET_FEED]
            array = _conform(batch, slot, name, spec, start, stop)
            wrong = spec.mismatch(array)
            if wrong:
                raise SourceError(f"slot {slot} ({name!r}), the targets: {wrong}")
            feeds[labels.TARGET_FEED] = array
        return feeds

    def _fed_by(self, batch: Columns) -> list[tuple[int, str, TensorSpec]]:
        """The feeds that are sent; optional ones if the batch has them."""
        return [feed for feed in self.feeds if not feed[2].optional or batch.has(feed[1])]

    def sent(self, label_feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of them that the teacher needs."""
        makers = [each for each in self.labellings if each.maker is not Maker.STUDENT]
        return {name: label_feeds[name] for each in makers for name in each.feeds}

    def fetch_names(self) -> list[str]:
        """What to ask for."""
        return [
            fetch
            for ask in self.asks
            for fetch in (ask.fetches if isinstance(ask, Labelling) else [ask])
        ]

    def read(
        self, outputs: dict[str, np.ndarray], label_feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The columns, in their order, that are in an answer or can be made of it.

        Raises WireError for labels that are not what was asked for, ConfigError for logits of which
        none can be made.
        """
        columns: dict[str, np.ndarray] = {}
        for ask in self.asks:
            if isinstance(ask, Labelling):
                columns.update(ask.read(outputs, label_feeds))
            elif ask in outputs:
                columns[ask] = outputs[ask]
        return columns

    def check(self, columns: dict[str, np.ndarray], rows: int) -> str:
        """What is wrong with them, or an empty string."""
        for name, spec in self.fetches:
            if name not in columns:
                return f"its answer lacks {name!r}"
            if columns[name].shape[:1] != (rows,):
                return f"{name!r} has shape {columns[name].shape} for {rows} rows"
            wrong = spec.mismatch(columns[name])
            if wrong:
                return f"{name!r}: {wrong}"
        return ""


def _conform(
    batch: Columns, slot: int, name: str, spec: TensorSpec, start: int, stop: int
) -> np.ndarray:
    array = batch.column(slot, name, start, stop)
    try:
        return spec.conform(array)
    except WireError as error:
        raise SourceError(f"slot {slot} ({name!r}): {error}; convert it in the source") from error


def make_plan(
    ins: Optional[Sequence[Optional[str]]],
    predicts: Sequence[str],
    description: Description,
    targets: Optional[str] = None,
) -> Plan:
    """Match a student's slots and predictions with what a teacher serves. ``ins`` is None where
    each request names what it has. ``predicts``: names of fetches, or what asks for sparse labels
    of one (see ``labels.ask``). ``targets``: the slot of the ids that some of these need.

    Raises ConfigError that names what the teacher lacks or what the student does not have.
    """
    asks = [_ask(predict, description) for predict in predicts]
    unknown = [predict for ask, predict in zip(asks, predicts) if ask is None]
    if unknown:
        raise ConfigError(
            f"it serves {_quoted(description.fetches)}, but predicts names {_quoted(unknown)}"
        )
    if ins is None:
        ins = list(dict.fromkeys([*description.feeds, *([targets] if targets else [])]))
    slots = {name: index for index, name in enumerate(ins) if name is not None}
    made = {name for ask in asks if isinstance(ask, Labelling) for name in ask.feeds}
    feeds = {name: spec for name, spec in description.feeds.items() if name not in made}
    needed = [name for name, spec in feeds.items() if not spec.optional]
    missing = [name for name in needed if name not in slots]
    if missing:
        raise ConfigError(
            f"it needs feeds {_quoted(needed)}, but the reader's slots are named "
            f"{_quoted(slots)}: {_quoted(missing)} is missing from ins"
        )
    if labels.TARGET_FEED in made and targets is None:
        raise ConfigError("its model was exported with targets: name their slot with targets=...")
    columns: list[tuple[str, TensorSpec]] = []
    for ask in asks:
        if isinstance(ask, Labelling):
            columns += ask.columns.items()
        elif ask is not None:
            columns.append((ask, description.fetches[ask]))
    return Plan(
        tuple((slots[name], name, spec) for name, spec in feeds.items() if name in slots),
        tuple(columns),
        tuple(ask for ask in asks if ask is not None),
        None if targets is None else (slots[targets], targets),
    )


def _ask(predict: str, description: Description) -> Union[str, Labelling, None]:
    """What a prediction is to this teacher; None if it is nothing that it serves."""
    if predict in description.fetches:
        return predict
    name, form = labels.split(predict)
    serves = name in description.fetches or labels.program_makes_labels(description, name)
    return plan_labelling(name, form, description) if form is not None and serves else None


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
