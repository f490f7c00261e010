"""What is sent to a teacher and what is expected back: the reader's names against the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional, Protocol, Union

import numpy as np

from edl.distill.labels import Labelling, Maker, plan_labelling, row_seeds
from edl.distill.lengths import Span, fill_up, row_lengths
from edl.distill.narrowing import Made, NarrowAnswer, Widths, narrow_slot, plan_widths
from edl.errors import ConfigError, SourceError, WireError
from edl.serving.wire import labels
from edl.serving.wire.description import Description, TensorSpec

#: What is asked for: a fetch as it is, or narrower, or sparse labels.
Ask = Union[str, NarrowAnswer, Labelling]

#: What a teacher is fed: the slot's number, its name, which is the feed's, and the feed's kind.
Feed = tuple[int, str, TensorSpec]


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

    ``asks``: in the order of the columns, a fetch that is taken as it is, or narrower, or sparse
    labels.
    ``targets``: the slot of target ids, and its name. ``lengths``: that of the rows' lengths.
    ``whole``: why whole rows are sent although the reader knows their lengths; empty: they are not.
    ``unfed``: optional feeds that the student has no slot for.
    ``sent_as``: the dtypes of feeds that travel narrower than the teacher has them. ``wide``: what
    travels as it is although it should be narrower; empty: nothing.
    """

    feeds: tuple[Feed, ...]
    fetches: tuple[tuple[str, TensorSpec], ...]  # the columns
    asks: tuple[Ask, ...]
    targets: Optional[tuple[int, str]] = None
    lengths: Optional[tuple[int, str]] = None
    whole: str = ""
    unfed: tuple[str, ...] = ()
    sent_as: Mapping[str, str] = field(default_factory=dict)
    wide: str = ""

    @cached_property
    def sequences(self) -> bool:
        """Whether rows of some feed are sequences."""
        return any(spec.pad is not None for _, _, spec in self.feeds)

    @cached_property
    def labellings(self) -> list[Labelling]:
        """The predictions that are sparse labels."""
        return [ask for ask in self.asks if isinstance(ask, Labelling)]

    def span(self, batch: Columns, start: int, stop: int) -> Span:
        """How much of rows ``start:stop`` is sent. Raises SourceError, which names the slot, for
        lengths that are none.
        """
        if self.lengths is None and not self.sequences:
            return Span(stop - start, 0, 0)
        longest = self._longest(batch, start, stop)
        keys = [(slot, name) for slot, name, spec in self._fed_by(batch) if spec.pad is not None]
        arrays = {key: batch.column(*key, start, stop) for key in keys}
        widths = {key: array.shape[1] for key, array in arrays.items() if array.ndim > 1}
        width = next(iter(widths.values()), 0)
        if longest is None or self.whole or not width:
            return Span(stop - start, width, width)
        if len(set(widths.values())) > 1:
            said = ", ".join(f"{_slot(*key)}: {each}" for key, each in widths.items())
            raise SourceError(f"slots differ in the length of their rows ({said})")
        if longest > width:
            raise SourceError(
                f"{self._lengths_slot}: a row of {longest} tokens, but {_slot(*keys[0])} has "
                f"{width}"
            )
        return Span(stop - start, max(1, longest), width)

    def _longest(self, batch: Columns, start: int, stop: int) -> Optional[int]:
        """The length of the longest row; None if that is not said. Raises SourceError."""
        if self.lengths is None or start == stop:
            return None
        try:
            return int(row_lengths(batch.column(*self.lengths, start, stop), start).max())
        except SourceError as error:
            raise SourceError(f"{self._lengths_slot}: {error}") from error

    @property
    def _lengths_slot(self) -> str:
        return f"{_slot(*self.lengths)}, the lengths" if self.lengths else ""

    def feed(
        self,
        batch: Columns,
        start: int,
        stop: int,
        span: Optional[Span] = None,
        made: Optional[Made] = None,
    ) -> dict[str, np.ndarray]:
        """The arrays to send for rows ``start:stop``; views wherever the dtypes agree. ``span``:
        how much of them; None: all. ``made``: keeps what is made of these rows to travel narrower.

        Raises SourceError, which names the slot, for values that the feed's dtype, or the one in
        which it travels, cannot hold.
        """
        rows, arrays = slice(start, stop), {}
        for feed in self._fed_by(batch):
            name = feed[1]
            arrays[name] = (
                self._narrowed(batch, feed, rows, span, made)
                if name in self.sent_as
                else _conform(batch, feed, rows, span)
            )
        return arrays

    def _narrowed(
        self,
        batch: Columns,
        feed: Feed,
        rows: slice,
        span: Optional[Span],
        made: Optional[Made],
    ) -> np.ndarray:
        slot, name, spec = feed
        dtype, made = self.sent_as[name], {} if made is None else made
        key = name, dtype, span
        if key not in made:
            array = _rows(batch, feed, rows, span)
            try:
                made[key] = narrow_slot(array, spec, dtype, rows.start)
            except SourceError as error:
                raise SourceError(f"{_slot(slot, name)}: {error}") from error
        return made[key]

    def label_feeds(
        self, batch: Columns, start: int, stop: int, span: Optional[Span] = None
    ) -> dict[str, np.ndarray]:
        """What making sparse labels of these rows takes beside that, wherever they are made: seeds
        of whole rows, however much of them is sent. Raises SourceError for targets that are none.
        """
        if not self.labellings:
            return {}
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
            array = _conform(batch, (slot, name, spec), slice(start, stop), span)
            wrong = spec.mismatch(array)
            if not wrong and span is not None and span.width and spec.pad is not None:
                tokens = batch.column(slot, name, start, stop).shape[1]
                if tokens != span.width:
                    wrong = f"a row has {tokens}, but {span.width} tokens are fed"
            if wrong:
                raise SourceError(f"{_slot(slot, name)}, the targets: {wrong}")
            feeds[labels.TARGET_FEED] = array
        return feeds

    @cached_property
    def _has_optional(self) -> bool:
        return any(spec.optional for _, _, spec in self.feeds)

    def _fed_by(self, batch: Columns) -> Sequence[Feed]:
        """The feeds that are sent; optional ones if the batch has them."""
        if not self._has_optional:
            return self.feeds
        return [feed for feed in self.feeds if not feed[2].optional or batch.has(feed[1])]

    def sent(self, label_feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of them that the teacher needs."""
        makers = [each for each in self.labellings if each.maker is not Maker.STUDENT]
        return {name: label_feeds[name] for each in makers for name in each.feeds}

    @cached_property
    def fetch_names(self) -> list[str]:
        """What to ask for."""
        return [
            fetch for ask in self.asks for fetch in ([ask] if isinstance(ask, str) else ask.fetches)
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
            elif isinstance(ask, NarrowAnswer):
                columns.update(ask.read(outputs))
            elif ask in outputs:
                columns[ask] = outputs[ask]
        return columns

    def widen(self, columns: dict[str, np.ndarray], span: Span) -> dict[str, np.ndarray]:
        """The columns as they would be had nothing been trimmed: sequences filled up, with what
        the teacher says of each (labels with zeros). Raises WireError for one that is not as long
        as what was sent.
        """
        if not span.trimmed:
            return columns
        wide = dict(columns)
        for name, spec in self.fetches:
            array = columns.get(name)
            if spec.pad is None or array is None or spec.mismatch(array):
                continue
            if array.shape[1] != span.length:
                raise WireError(
                    f"{name!r} has rows of {array.shape[1]} tokens for rows of {span.length}"
                )
            wide[name] = fill_up(array, span.width, spec.pad)
        return wide

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


def _conform(batch: Columns, feed: Feed, rows: slice, span: Optional[Span]) -> np.ndarray:
    slot, name, spec = feed
    array = _rows(batch, feed, rows, span)
    try:
        return spec.conform(array)
    except WireError as error:
        raise SourceError(f"{_slot(slot, name)}: {error}; convert it in the source") from error


def _rows(batch: Columns, feed: Feed, rows: slice, span: Optional[Span]) -> np.ndarray:
    slot, name, spec = feed
    array = batch.column(slot, name, rows.start, rows.stop)
    sequences = spec.pad is not None and array.ndim > 1
    if span is not None and span.trimmed and sequences:
        array = array[:, : span.length]
    return array


def _slot(slot: int, name: str) -> str:
    return f"slot {slot} ({name!r})"


def make_plan(
    ins: Optional[Sequence[Optional[str]]],
    predicts: Sequence[str],
    description: Description,
    targets: Optional[str] = None,
    lengths: Optional[str] = None,
    wire: Optional[Mapping[str, str]] = None,
) -> Plan:
    """Match a student's slots and predictions with what a teacher serves. ``ins`` is None where
    each request names what it has. ``predicts``: names of fetches, or what asks for sparse labels
    of one (see ``labels.ask``). ``targets``: the slot of the ids that some of these need.
    ``lengths``: the slot of the rows' lengths, or of a mask. ``wire``: the dtypes in which slots
    and predictions are to travel.

    Raises ConfigError that names what the teacher lacks or what the student does not have.
    """
    asks = [_ask(predict, description) for predict in predicts]
    unknown = [predict for ask, predict in zip(asks, predicts) if ask is None]
    if unknown:
        raise ConfigError(
            f"it serves {_quoted(description.fetches)}, but predicts names {_quoted(unknown)}"
        )
    if ins is None:
        _check_known(wire or {}, description)
        more = [name for name in (targets, lengths) if name is not None]
        ins = list(dict.fromkeys([*description.feeds, *more]))
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
    kinds = {name: spec for name, spec in feeds.items() if name in slots}
    widths = plan_widths(wire or {}, kinds, [a for a in asks if isinstance(a, str)], description)
    fed = tuple((slots[name], name, spec) for name, spec in kinds.items())
    return Plan(
        fed,
        tuple(columns),
        tuple(_narrower(ask, widths, description) for ask in asks if ask is not None),
        None if targets is None else (slots[targets], targets),
        None if lengths is None else (slots[lengths], lengths),
        "" if lengths is None else _why_whole([spec for _, _, spec in fed], columns),
        tuple(name for name in feeds if name not in slots),
        widths.feeds,
        widths.whole,
    )


def _check_known(wire: Mapping[str, str], description: Description) -> None:
    """Raises ConfigError for a name that is nothing to the teacher."""
    unknown = wire.keys() - description.feeds.keys() - description.fetches.keys()
    if unknown:
        raise ConfigError(
            f"it has feeds {_quoted(description.feeds)} and fetches "
            f"{_quoted(description.fetches)}, but wire names {_quoted(sorted(unknown))}"
        )


def _narrower(ask: Union[str, Labelling], widths: Widths, description: Description) -> Ask:
    if isinstance(ask, str) and ask in widths.fetches:
        return NarrowAnswer(ask, widths.fetches[ask], description.fetches[ask])
    return ask


def _why_whole(feeds: Sequence[TensorSpec], columns: Sequence[tuple[str, TensorSpec]]) -> str:
    """Why rows cannot be trimmed for a teacher; empty if they can."""
    if all(spec.pad is None for spec in feeds):
        return "it does not say that a feed's rows are sequences"
    loose = [name for name, spec in columns if spec.pad is None and spec.shape[:1] == (-1,)]
    if loose:  # perhaps a token each, perhaps not
        return f"it does not say whether the rows of {_quoted(loose)} are sequences"
    return ""


def _ask(predict: str, description: Description) -> Union[str, Labelling, None]:
    """What a prediction is to this teacher; None if it is nothing that it serves."""
    if predict in description.fetches:
        return predict
    name, form = labels.split(predict)
    serves = name in description.fetches or labels.program_makes_labels(description, name)
    return plan_labelling(name, form, description) if form is not None and serves else None


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
