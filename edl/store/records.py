"""What is stored: of what kind labels are, and the record of one row.

A kind is one prediction of one model, in one form, of certain slots. All that is needed to read its
records is in it, so a store can be read where no teacher is.

A record is, in little-endian bytes:

========  =====================================================================================
8         XXH3 (64 bits) of the key and of all that follows
16        the digest of what the row holds, of kinds whose keys are made of something else
4 each    the sizes of the columns' dimensions of any size (-1), in their order
the rest  the row's columns, one after the other, in their order
========  =====================================================================================

The row of a sequence is stored in its own length.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Callable, Optional, Union

import numpy as np

from edl.errors import StoreError
from edl.store._libraries import import_xxhash
from edl.store.keys import DIGEST, as_octets
from edl.store.memory import Memory

_CHECKSUM = struct.Struct("<Q")
_EPOCH = struct.Struct(">I")

#: Bytes of a kind's id, which keys begin with.
KIND = 8

#: Of a kind that are remembered: rows are of many lengths.
_MOST_LAYOUTS = 4096


@dataclass(frozen=True)
class Column:
    """One array of a prediction: the shape of a row (-1: any size) and numpy's name of the dtype.
    ``pad``: its rows are sequences, and this is what is behind their end; None: they are not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pad: Union[int, float, None] = None

    @property
    def open(self) -> tuple[int, ...]:
        """Which dimensions of a row are of any size."""
        return tuple(index for index, size in enumerate(self.shape) if size < 0)


@dataclass(frozen=True)
class Kind:
    """Labels that may stand for one another, if the rows are the same.

    ``model``: the fingerprint. ``prediction``: the name of the output, with the form in which it is
    stored. ``feeds``: the slots that labels depend on; ``unfed``: those that the model could have
    been fed, and was not. ``targets``: the slot of the ids whose logits are stored. ``sequences``:
    those of the slots that are cut to the length of the row. ``drawn``: labels belong to one epoch.
    ``keyed_by``: the slots that keys are made of, if these are not ``feeds``. ``rounded``: those
    that were rounded on their way, each with the dtype. ``columns``: the arrays.
    """

    model: str
    prediction: str
    feeds: tuple[str, ...]
    columns: tuple[Column, ...]
    sequences: tuple[str, ...] = ()
    unfed: tuple[str, ...] = ()
    targets: str = ""
    drawn: bool = False
    keyed_by: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()

    @cached_property
    def text(self) -> str:
        """The kind as one line of JSON, always the same for the same kind. What is as usual is left
        out, so that a later format may say more, and what was stored before is found all the same.
        """
        usual = {item.name: item.default for item in fields(self)}
        said = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return json.dumps(said, sort_keys=True)

    @cached_property
    def id(self) -> bytes:
        """By which keys name it."""
        return id_of(self.text.encode())

    @classmethod
    def parse(cls, text: Union[str, bytes]) -> Kind:
        """The inverse of ``text``. Raises StoreError."""
        try:
            said = json.loads(text)
            columns = [
                Column(**{**each, "shape": tuple(each["shape"])}) for each in said["columns"]
            ]
            lists = {name: tuple(each) for name, each in said.items() if isinstance(each, list)}
            kind = cls(**{**said, **lists, "columns": tuple(columns)})
            for column in columns:
                np.dtype(column.dtype)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"no kind of labels: {text[:200]!r} ({error})") from error
        return kind

    def keys(self, digests: Sequence[bytes], epoch: int) -> list[bytes]:
        """Where the labels of rows with these digests are."""
        end = _EPOCH.pack(epoch) if self.drawn else b""
        return [self.id + digest + end for digest in digests]

    @property
    def trimmed(self) -> bool:
        """Whether rows are stored in their own length."""
        return bool(self.sequences)

    @cached_property
    def head(self) -> struct.Struct:
        """What is in front of the columns, of which the checksum and the sizes are read."""
        sizes = sum(len(column.open) for column in self.columns)
        return struct.Struct(f"<Q{DIGEST if self.keyed_by else 0}x{sizes}I")

    def layout(self, sizes: tuple[int, ...]) -> Layout:
        """Of records whose dimensions of any size are such."""
        layout = self._layouts.get(sizes)
        if layout is None:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[sizes] = _make_layout(self, sizes)
        return layout

    @cached_property
    def _layouts(self) -> dict[tuple[int, ...], Layout]:
        """Those that were made last."""
        return {}


@dataclass(frozen=True)
class Part:
    """Where a column of such a shape is in a record."""

    column: Column
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Of a record: how long it is, and where its columns are."""

    length: int
    parts: tuple[Part, ...]


def _make_layout(kind: Kind, sizes: tuple[int, ...]) -> Layout:
    left, stop, parts = iter(sizes), kind.head.size, []
    for column in kind.columns:
        shape = tuple(next(left) if size < 0 else size for size in column.shape)
        start, stop = stop, stop + np.dtype(column.dtype).itemsize * math.prod(shape)
        parts.append(Part(column, shape, start, stop))
    return Layout(stop, tuple(parts))


def id_of(text: bytes) -> bytes:
    """The id of the kind of this text."""
    made: bytes = import_xxhash().xxh3_64_digest(text)
    return made


def is_sound(kind: Optional[Kind], key: bytes, record: Any) -> bool:
    """Whether a record is what was written under its key. ``kind``: None if it is not known, as one
    of a later EDL. The length is looked at first: what is said of that may be damaged, too, and
    then nothing is where it should end.
    """
    try:
        list(columns_of(kind, record) if kind is not None else ())
    except StoreError:
        return False
    return len(record) >= _CHECKSUM.size and _is_checked(key, record)


def _is_checked(key: bytes, record: Any) -> bool:
    said: int = _CHECKSUM.unpack_from(record)[0]
    return said == _checksum(key, record[_CHECKSUM.size :])


def _checksum(key: bytes, *rest: Any) -> int:
    made = import_xxhash().xxh3_64(key)
    for part in rest:
        made.update(part)
    return int(made.intdigest())


def content_of(kind: Kind, record: Any) -> bytes:
    """The digest of what the row held, of a kind that is keyed by something else."""
    return bytes(record[_CHECKSUM.size : _CHECKSUM.size + DIGEST])


def columns_of(kind: Kind, record: Any) -> Iterator[tuple[Column, tuple[int, ...], Any]]:
    """A record's columns: each with the shape that its row has here, and its bytes. Raises
    StoreError for a record of another kind.
    """
    if len(record) < kind.head.size:
        raise StoreError(f"a record of {len(record)} bytes is too short for {kind.prediction}")
    _, *sizes = kind.head.unpack_from(record)
    layout = kind.layout(tuple(sizes))
    if layout.length != len(record):
        raise StoreError(f"a record of {len(record)} bytes is none of {kind.prediction}")
    for part in layout.parts:
        yield part.column, part.shape, record[part.start : part.stop]


@dataclass(frozen=True)
class Labels:
    """Labels of some rows, to be stored: arrays (rows, ...) by column. ``lengths``: (rows,), where
    rows are stored in their own. ``contents``: digests, where keys are made of something else.
    """

    kind: Kind
    keys: Sequence[bytes]
    columns: Mapping[str, np.ndarray]
    lengths: Optional[np.ndarray] = None
    contents: Optional[Sequence[bytes]] = None

    @property
    def nbytes(self) -> int:
        """What they hold."""
        return sum(array.nbytes for array in self.columns.values())

    def records(self) -> Iterator[bytes]:
        """The record of each row."""
        kind = self.kind
        views = [_RowViews(column, self.columns[column.name]) for column in kind.columns]
        sizes = [size for view in views for size in view.sizes]
        fixed = struct.pack(f"<{len(sizes)}I", *sizes)
        lengths = self.lengths.tolist() if kind.trimmed and self.lengths is not None else None
        for row, key in enumerate(self.keys):
            length = None if lengths is None else lengths[row]
            if length is not None:
                sizes = [size for view in views for size in view.sizes_of(length)]
                fixed = struct.pack(f"<{len(sizes)}I", *sizes)
            content = self.contents[row] if self.contents is not None else b""
            rest: list[Any] = [content, fixed, *(view.row(row, length) for view in views)]
            yield b"".join([_CHECKSUM.pack(_checksum(key, *rest)), *rest])

    def row(self, index: int) -> Labels:
        """One of them."""
        lengths, contents = self.lengths, self.contents
        return Labels(
            self.kind,
            [self.keys[index]],
            {name: array[index : index + 1] for name, array in self.columns.items()},
            None if lengths is None else lengths[index : index + 1],
            None if contents is None else [contents[index]],
        )


class _RowViews:
    """The bytes of each row of a column."""

    def __init__(self, column: Column, array: np.ndarray) -> None:
        array = np.asarray(array, column.dtype)
        self._column = column
        self._octets = as_octets(array).data
        self._stride = array.dtype.itemsize * math.prod(array.shape[1:])
        width = array.shape[1] if array.ndim > 1 else 1
        self._token = self._stride // width if width else 0
        self._row_shape = array.shape[1:]
        self.sizes = [self._row_shape[index] for index in column.open]

    def sizes_of(self, length: int) -> list[int]:
        """Those of a row that is so long."""
        if self._column.pad is None:
            return self.sizes
        return [length, *self.sizes[1:]]

    def row(self, row: int, length: Optional[int]) -> memoryview:
        start = row * self._stride
        cut = length is not None and self._column.pad is not None
        return self._octets[start : start + (self._token * (length or 0) if cut else self._stride)]


class Gathered:
    """Arrays (rows, ...) by column, into which records are copied. ``width``: tokens of a row,
    where rows are stored in their own length. ``memory``: of the arrays. ``contents``: digests of
    what the rows held, of a kind that is keyed by something else.
    """

    def __init__(
        self, kind: Kind, rows: int, width: int = 0, memory: Optional[Memory] = None
    ) -> None:
        self.kind = kind
        self.rows = rows
        self.width = width
        self.columns: dict[str, np.ndarray] = {}
        self.contents: dict[int, bytes] = {}
        self._memory = memory or Memory()
        self._targets: list[_Target] = []
        self._fitting: Optional[Layout] = None  # the one that was found to fit last

    @property
    def nbytes(self) -> int:
        """What the arrays take."""
        return sum(array.nbytes for array in self.columns.values())

    def fill(
        self,
        rows: Iterable[int],
        keys: Sequence[bytes],
        records: Iterable[Optional[memoryview]],
        reject: Callable[[bytes, memoryview], object],
    ) -> list[int]:
        """Copy the records of these rows, None where there is none. Returns the rows that got none.
        ``reject`` is called with the key and the record, where that is not what was written or does
        not fit.
        """
        targets, left, keyed = self._targets, [], bool(self.kind.keyed_by)
        for row, record in zip(rows, records):
            if record is None:
                left.append(row)
                continue
            layout = self._layout_of(keys[row], record)
            if layout is None:
                left.append(row)
                reject(keys[row], record)
                continue
            for target, part in zip(targets, layout.parts):
                start, size = row * target.stride, part.stop - part.start
                target.octets[start : start + size] = record[part.start : part.stop]
                if size < target.stride:
                    target.array[row, part.shape[0] :] = part.column.pad
            if keyed:
                self.contents[row] = content_of(self.kind, record)
        return left

    def _layout_of(self, key: bytes, record: memoryview) -> Optional[Layout]:
        """Of a record that is what was written under its key, and fits here; None for another."""
        kind = self.kind
        if len(record) < kind.head.size:
            return None
        _, *sizes = kind.head.unpack_from(record)
        layout = kind.layout(tuple(sizes))
        if len(record) != layout.length or not _is_checked(key, record):
            return None
        if layout is not self._fitting:
            if not self._fits(layout):
                return None
            self._fitting = layout
        return layout

    def _fits(self, layout: Layout) -> bool:
        """Whether its rows have their place; the first ones say how large the arrays are."""
        if not self._targets:
            self._allocate(layout)
        for target, part in zip(self._targets, layout.parts):
            shape, here = part.shape, target.array.shape[1:]
            if target.cut and shape[0] <= here[0]:
                shape, here = shape[1:], here[1:]
            if shape != here:
                return False
        return True

    def _allocate(self, layout: Layout) -> None:
        for part in layout.parts:
            column = part.column
            cut = column.pad is not None and self.kind.trimmed
            shape = (self.width, *part.shape[1:]) if cut else part.shape
            array = self._memory.empty((self.rows, *shape), column.dtype)
            self.columns[column.name] = array
            self._targets.append(_Target(array, cut))


class _Target:
    """Where the rows of one column go: ``octets``, of which each row takes ``stride``. ``cut``:
    they may be shorter than that.
    """

    def __init__(self, array: np.ndarray, cut: bool) -> None:
        self.array, self.cut = array, cut
        self.octets = array.reshape(-1).view(np.uint8).data
        self.stride = len(self.octets) // len(array) if len(array) else 0
