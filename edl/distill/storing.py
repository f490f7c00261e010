"""Labels from a store, and into it: between a source's batches and the stream of a pool.

What the store has of a batch is taken from there. The rows that are missing go to teachers as a
batch of their own; what they answer is added, and the student gets the whole batch in its turn. A
batch of which nothing is missing is finished at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from edl._checks import check_count
from edl.distill.batches import join_parts
from edl.distill.label_kinds import LabelKinds
from edl.distill.lengths import row_lengths
from edl.distill.link import Wants
from edl.distill.settings import Model, PoolConfig
from edl.distill.stream import Batch, Stream
from edl.errors import BatchRefused, ConfigError, NoTeacherError, SourceError, StoreError
from edl.serving.wire.description import SPECS_ONLY
from edl.store import LabelStore
from edl.store.keys import Slot, digests
from edl.store.records import KIND, Kind, Labels
from edl.store.store import Recalled

logger = logging.getLogger(__name__)

#: One in so many rows that are found by another key is compared with what the row holds.
_COMPARED = 256

_MOST_LISTED = 20


@dataclass(frozen=True)
class StoreOptions:
    """A reader's store. ``key``: the slots that rows are known by, instead of all that they hold;
    ``models``: fingerprints of the models whose labels are wanted, by the names of the teachers;
    ``limit``: bytes on the disk.
    """

    directory: Path
    key: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    limit: Optional[int] = None


def store_options(
    store: Union[str, Path, None],
    key: Union[str, Sequence[str], None],
    model: Union[str, Mapping[str, str], None],
    limit: Optional[int],
    ins: Sequence[Optional[str]],
    models: Sequence[Model],
) -> Optional[StoreOptions]:
    """What a reader's arguments say of its store. Raises ConfigError."""
    if store is None:
        if key is not None or model is not None or limit is not None:
            raise ConfigError("store_key, store_model and store_bytes go with store=, a directory")
        return None
    names = (key,) if isinstance(key, str) else tuple(key or ())
    for name in names:
        if name not in ins:
            raise ConfigError(f"store_key is {name!r}, which is not one of ins: {list(ins)!r}")
    by_name = model if isinstance(model, Mapping) else {} if model is None else {"": model}
    known = {each.name for each in models}
    if not by_name.keys() <= known:
        said = ", ".join(map(repr, known)) if known != {""} else "one model, which has no name"
        raise ConfigError(f"store_model names {', '.join(map(repr, by_name))}; there is {said}")
    if limit is not None:
        check_count("store_bytes", limit)
    return StoreOptions(Path(store), names, dict(by_name), limit)


@dataclass
class LookedUp:
    """A batch of which a store has been asked. To a pool it is what is ``missing`` (row numbers);
    see Columns. ``found``: what there was, by kind, and under which keys.
    """

    batch: Batch
    missing: np.ndarray
    found: list[tuple[Kind, list[bytes], Recalled]]
    lengths: Optional[np.ndarray] = None
    contents: dict[bytes, list[bytes]] = field(default_factory=dict)  # of what is missing, by kind

    @property
    def rows(self) -> int:
        """How many rows are missing."""
        return len(self.missing)

    @property
    def spared(self) -> int:
        """How many are not."""
        return self.batch.rows - len(self.missing)

    @cached_property
    def recalled(self) -> int:
        """Bytes of the labels that were found."""
        return sum(recalled.labels.nbytes for _, _, recalled in self.found)

    @property
    def nbytes(self) -> int:
        """What the batch holds, and the labels that were found."""
        return self.batch.nbytes + self.recalled

    @property
    def epoch(self) -> int:
        """See Columns."""
        return self.batch.epoch

    def has(self, name: str) -> bool:
        """See Columns."""
        return self.batch.has(name)

    def column(self, index: int, name: str, start: int, stop: int) -> np.ndarray:
        """See Columns; a view, where the rows follow each other. Raises SourceError."""
        rows = self.missing[start:stop]
        if not len(rows) or rows[-1] - rows[0] + 1 == len(rows):
            first = int(rows[0]) if len(rows) else 0
            return self.batch.column(index, name, first, first + len(rows))
        return self.batch.column(index, name, 0, self.batch.rows)[rows]


class Stages:
    """What a reader's models have of its store, which they share. Raises StoreError if it cannot be
    opened, MissingDependencyError without its libraries.
    """

    def __init__(
        self, options: StoreOptions, models: Sequence[Model], configs: Sequence[PoolConfig]
    ) -> None:
        self._store = LabelStore(options.directory, options.limit)
        self.models = [
            Storing(self._store, model, options, config.wants)
            for model, config in zip(models, configs)
        ]

    def begin(self, number: int) -> Storing:
        """The model of this number, for an epoch that begins now."""
        if not number:
            self._store.refresh()
        return self.models[number]

    def flush(self, timeout: float) -> bool:
        """See DistillReader.flush."""
        return self._store.flush(timeout)

    def end(self) -> None:
        """An epoch has ended: what was added in it is on the disk, and others can read it soon."""
        self._store.flush()
        self._store.share()

    def close(self) -> None:
        """Close the store. What was added is on the disk then, unless that takes very long."""
        self._store.close()


class Storing:
    """One model's labels in a store. ``wants``: what its teachers are asked for. ``wanted_model``:
    the fingerprint that the reader names; empty: none.
    """

    def __init__(
        self, store: LabelStore, model: Model, options: StoreOptions, wants: Wants
    ) -> None:
        self.wanted_model = options.models.get(model.name, "")
        self._store = store
        self._model = model
        slots = wants.ins or ()
        self._slots = {name: index for index, name in enumerate(slots) if name is not None}
        self._lengths = wants.lengths
        self._kinds = LabelKinds(model.predicts, wants, options.key)
        self._compared = False
        self._warned = False
        self._without_teacher = ""  # the model of an epoch that had no teacher when it began
        self._hits = self._misses = self._bytes = 0
        self._seconds = 0.0
        self._epoch_hits = self._epoch_misses = 0

    # --- a stream's two ends ----------------------------------------------------------------

    def look_up(self, batches: Iterator[Batch], stream: Stream) -> Iterator[LookedUp]:
        """``batches`` with what the store has of them. The first one waits until it is known which
        model's labels are wanted.
        """
        self._epoch_hits = self._epoch_misses = 0
        self._compared = False
        try:
            kinds = self._settle(stream)
            if kinds is None:
                return
            for batch in batches:
                since = time.monotonic()
                looked_up = self._look_up(batch, kinds)
                self._count(looked_up, time.monotonic() - since)
                yield looked_up
                del batch, looked_up
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def merged(self, stream: Stream) -> Iterator[Batch]:
        """The batches of a stream in their order, with all predictions; those of teachers are added
        to the store. Raises what the stream raises.
        """
        while (finished := self._take(stream)) is not None:
            looked_up = finished.payload
            if finished.error is not None:
                raise _with_row_numbers(finished.error, looked_up)
            for kind, keys, found in looked_up.found:
                columns = self._merge(looked_up, kind, keys, found, finished.parts, stream)
                for name, array in columns.items():
                    looked_up.batch.predictions[self._model.column(name)] = array
            batch = looked_up.batch
            del finished, looked_up, found, columns
            yield batch
            del batch

    def stats(self) -> dict[str, Any]:
        """See DistillReader.stats."""
        counters = self._store.counters
        return {
            **{"hits": self._hits, "misses": self._misses, "bytes": self._bytes},
            **{"seconds": self._seconds, "added": counters.added, "dropped": counters.dropped},
            **{"damaged": counters.damaged, "full": self._store.full},
        }

    def _take(self, stream: Stream) -> Any:
        try:
            return stream.take()
        except NoTeacherError as error:
            raise self._with_what_there_was(error) from error

    def _with_what_there_was(self, error: NoTeacherError) -> NoTeacherError:
        rows = self._epoch_hits + self._epoch_misses
        return NoTeacherError(
            f"{error}; the label store {self._store.directory} had {self._epoch_hits} of the "
            f"{rows} rows of this epoch that were looked up"
        )

    def _count(self, looked_up: LookedUp, seconds: float) -> None:
        self._hits += looked_up.spared
        self._misses += looked_up.rows
        self._epoch_hits += looked_up.spared
        self._epoch_misses += looked_up.rows
        self._bytes += looked_up.recalled
        self._seconds += seconds

    # --- which labels -----------------------------------------------------------------------

    def _settle(self, stream: Stream) -> Optional[list[Kind]]:
        """What is looked up in this epoch; None if the stream was left."""
        known: dict[str, list[Kind]] = {}

        def stored() -> Collection[str]:
            known.update(self._kinds.stored(self._store.kinds()))
            return known.keys()

        settled = stream.settle(stored)
        if settled is None:
            return None
        model, plan = settled
        if plan is not None:
            self._without_teacher = ""
            self._check_known(model)
            return self._kinds.of(plan, model)
        if model != self._without_teacher:
            logger.warning(
                "no teacher: labels are those of model %s in %s", model, self._store.directory
            )
        self._without_teacher = model
        return known[model]

    def _check_known(self, model: str) -> None:
        """Raises StoreError for a model that is known by its feeds and fetches only, as others may
        be, unless the reader has named it.
        """
        if model.startswith(SPECS_ONLY) and model != self.wanted_model:
            raise StoreError(
                "the teachers do not say which model they serve, so its labels cannot be told from "
                "another one's: give it a fingerprint (serve(fingerprint=...), Description(..., "
                "fingerprint=...), edl register --model), or name what is known of it, "
                f"store_model={model!r}, and use another directory when the model changes"
            )

    # --- looking up -------------------------------------------------------------------------

    def _look_up(self, batch: Batch, kinds: Sequence[Kind]) -> LookedUp:
        lengths = self._row_lengths(batch, kinds)
        made: dict[Any, list[bytes]] = {}
        found = []
        for kind in kinds:
            names = kind.keyed_by or kind.feeds
            sequences = () if kind.keyed_by else kind.sequences
            if (names, sequences) not in made:
                made[names, sequences] = digests(self._take_slots(batch, names, sequences), lengths)
            keys = kind.keys(made[names, sequences], batch.epoch)
            width = self._width(batch, kind)
            recalled = self._store.recall(kind, keys, width)
            found.append((kind, keys, recalled))
        missing = sorted({row for _, _, recalled in found for row in recalled.missing})
        looked_up = LookedUp(batch, np.array(missing, np.intp), found, lengths)
        for kind, keys, recalled in found:
            if kind.keyed_by:
                self._compare(looked_up, kind, keys, recalled)
                rows = looked_up.missing
                looked_up.contents[kind.id] = self._contents(looked_up, kind, rows)
        return looked_up

    def _take_slots(
        self,
        batch: Batch,
        names: Sequence[str],
        sequences: Sequence[str],
        rows: Optional[np.ndarray] = None,
    ) -> list[Slot]:
        slots = []
        for name in names:
            array = batch.column(self._slots[name], name, 0, batch.rows)
            slots.append(Slot(name, array if rows is None else array[rows], name in sequences))
        return slots

    def _row_lengths(self, batch: Batch, kinds: Sequence[Kind]) -> Optional[np.ndarray]:
        """The lengths of the rows, if some kind is stored by them. Raises SourceError."""
        name = self._lengths
        if name is None or not any(kind.trimmed for kind in kinds):
            return None
        lengths = row_lengths(batch.column(self._slots[name], name, 0, batch.rows))
        width = max(self._width(batch, kind) for kind in kinds)
        if len(lengths) and lengths.max() > width:
            raise SourceError(
                f"{name!r}, the lengths: a row of {lengths.max()} tokens, but rows have {width}"
            )
        return lengths

    def _width(self, batch: Batch, kind: Kind) -> int:
        """Tokens of each row of the batch, if they are sequences."""
        for name in kind.sequences:
            array = batch.column(self._slots[name], name, 0, batch.rows)
            if array.ndim > 1:
                return int(array.shape[1])
        return 0

    def _contents(self, looked_up: LookedUp, kind: Kind, rows: np.ndarray) -> list[bytes]:
        """Digests of what some of the rows hold."""
        slots = self._take_slots(looked_up.batch, kind.feeds, kind.sequences, rows)
        lengths = looked_up.lengths
        return digests(slots, None if lengths is None else lengths[rows])

    def _compare(
        self,
        looked_up: LookedUp,
        kind: Kind,
        keys: Sequence[bytes],
        recalled: Recalled,
    ) -> None:
        """Compare what some of the rows hold with what those held whose labels were found: the
        first one of an epoch, and others from epoch to epoch. Raises StoreError.
        """
        epoch, missing = looked_up.batch.epoch, set(looked_up.missing.tolist())
        rows = [
            row
            for row in range(len(keys))
            if row not in missing
            and ((keys[row][KIND] ^ epoch) % _COMPARED == 0 or not self._compared)
        ]
        if not self._compared:
            rows = rows[:1]
        if not rows:
            return
        self._compared = True
        for row, content in zip(rows, self._contents(looked_up, kind, np.array(rows))):
            if recalled.labels.contents[row] != content:
                named = {
                    name: looked_up.batch.column(self._slots[name], name, row, row + 1)[0].tolist()
                    for name in kind.keyed_by
                }
                raise StoreError(
                    f"the labels that {self._store.directory} has under {named} are of a row that "
                    "held something else: what store_key names does not stand for what teachers "
                    "are fed (has the data, or the augmentation, changed?); leave out store_key, "
                    "or use another directory"
                )

    # --- merging ----------------------------------------------------------------------------

    def _merge(
        self,
        looked_up: LookedUp,
        kind: Kind,
        keys: Sequence[bytes],
        found: Recalled,
        parts: Sequence[dict[str, np.ndarray]],
        stream: Stream,
    ) -> dict[str, np.ndarray]:
        """A prediction's columns for the whole batch. What is new is added to the store; the
        student gets arrays of its own, which it may change.
        """
        gathered, missing = found.labels, looked_up.missing
        if not parts:
            return gathered.columns
        answers = join_parts(parts, [column.name for column in kind.columns])
        if not gathered.columns or len(missing) == looked_up.batch.rows:
            columns = {name: array.copy() for name, array in answers.items()}
        else:
            columns = gathered.columns
            for name, array in answers.items():
                if columns[name].shape[1:] != array.shape[1:]:
                    raise StoreError(
                        f"rows of {name!r} are of shape {columns[name].shape[1:]} in the store, "
                        f"and {array.shape[1:]} by a teacher of the same model"
                    )
                columns[name][missing] = array
        lengths = None if looked_up.lengths is None else looked_up.lengths[missing]
        if lengths is not None and kind.trimmed:
            _fill_up(columns, kind, looked_up.lengths)
        if len(missing) and self._may_add(kind, stream):
            contents = looked_up.contents.get(kind.id)
            own = [keys[row] for row in missing.tolist()]
            self._store.add(Labels(kind, own, answers, lengths, contents))
        return columns

    def _may_add(self, kind: Kind, stream: Stream) -> bool:
        """Whether what teachers answer is of this kind."""
        plan = stream.plan()
        if plan is None or kind in self._kinds.of(plan, kind.model):
            return True
        if not self._warned:
            self._warned = True
            logger.warning(
                "teachers of model %s serve %s otherwise than when it was stored: it is not added",
                kind.model,
                kind.prediction,
            )
        return False


def _with_row_numbers(error: BaseException, looked_up: Optional[LookedUp]) -> BaseException:
    """The same, with what the numbers of rows mean in it, where a part of a batch was asked for."""
    rows = isinstance(error, (BatchRefused, SourceError))
    if not rows or looked_up is None or not looked_up.spared:
        return error
    numbers = ", ".join(map(str, looked_up.missing[:_MOST_LISTED].tolist()))
    more = ", ..." if looked_up.rows > _MOST_LISTED else ""
    said = type(error)(
        f"{error}; rows are counted among those of the batch that the label store has not, which "
        f"are {numbers}{more}"
    )
    said.__cause__ = error
    return said


def _fill_up(columns: dict[str, np.ndarray], kind: Kind, lengths: Optional[np.ndarray]) -> None:
    """Behind each row's own length nothing means anything: the same for all rows, then, wherever
    they come from.
    """
    assert lengths is not None
    for column in kind.columns:
        array = columns[column.name]
        if column.pad is not None and len(lengths) and lengths.min() < array.shape[1]:
            array[np.arange(array.shape[1]) >= lengths[:, np.newaxis]] = column.pad
