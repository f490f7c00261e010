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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Optional, Union

import numpy as np

from edl.errors import StoreError
from edl.store._libraries import import_xxhash
from edl.store.keys import DIGEST, as_octets
from edl.store.memory import Memory

_CHECKSUM = struct.Struct("<Q")
_EPOCH = struct.Struct(">I")

#: Bytes of a kind's id, which keys begin with.
KIND = 8


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

    def nbytes(self, shape: Sequence[int]) -> int:
        """What a row of this shape takes."""
        return np.dtype(self.dtype).itemsize * math.prod(shape)


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
    def head_layout(self) -> struct.Struct:
        """What is in front of the columns: the checksum and the sizes are read."""
        sizes = sum(len(column.open) for column in self.columns)
        return struct.Struct(f"<Q{DIGEST if self.keyed_by else 0}x{sizes}I")

    @cached_property
    def head(self) -> int:
        """Bytes in front of the columns."""
        return self.head_layout.size

    def shapes(self, sizes: Sequence[int]) -> list[tuple[int, ...]]:
        """Those of a row's columns whose dimensions of any size are such."""
        left = iter(sizes)
        return [
            tuple(next(left) if size < 0 else size for size in column.shape)
            for column in self.columns
        ]

    def length(self, sizes: Sequence[int]) -> int:
        """Bytes of a record of such a row."""
        shapes = self.shapes(sizes)
        return self.head + sum(map(Column.nbytes, self.columns, shapes))


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
    count = sum(len(column.open) for column in kind.columns)
    start = kind.head
    if len(record) < start:
        raise StoreError(f"a record of {len(record)} bytes is too short for {kind.prediction}")
    sizes = struct.unpack_from(f"<{count}I", record, start - 4 * count)
    if kind.length(sizes) != len(record):
        raise StoreError(f"a record of {len(record)} bytes is none of {kind.prediction}")
    for column, shape in zip(kind.columns, kind.shapes(sizes)):
        stop = start + column.nbytes(shape)
        yield column, shape, record[start:stop]
        start = stop


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
    """Arrays (rows, ...) by column, into which records are copied row by row. ``width``: tokens of
    a row, where rows are stored in their own length. ``memory``: of the arrays.
    """

    def __init__(
        self, kind: Kind, rows: int, width: int = 0, memory: Optional[Memory] = None
    ) -> None:
        self.kind = kind
        self.rows = rows
        self.width = width
        self.columns: dict[str, np.ndarray] = {}
        self._memory = memory or Memory()
        self._head = kind.head_layout
        self._hash = import_xxhash().xxh3_64
        self._layouts: dict[tuple[int, ...], Optional[_Layout]] = {}

    @property
    def nbytes(self) -> int:
        """What the arrays take."""
        return sum(array.nbytes for array in self.columns.values())

    def put(self, row: int, key: bytes, record: Any) -> bool:
        """Copy a record's columns to a row; false if it is not what was written under its key, or
        does not fit there. Calls little: it is what a hit takes.
        """
        if len(record) < self._head.size:
            return False
        said, *sizes = self._head.unpack_from(record)
        layout = self._layouts.get(tuple(sizes))
        if len(record) != (self.kind.length(sizes) if layout is None else layout.length):
            return False
        made = self._hash(key)
        made.update(record[_CHECKSUM.size :])
        if made.intdigest() != said:
            return False
        if layout is None:
            layout = self._layouts[tuple(sizes)] = self._layout_of(sizes)
        for part in layout.parts:
            start = row * part.stride
            part.octets[start : start + part.nbytes] = record[part.start : part.start + part.nbytes]
            if part.nbytes < part.stride:
                part.array[row, part.tokens :] = part.pad
        return layout.fits

    def _layout_of(self, sizes: Sequence[int]) -> _Layout:
        """Of records that say that their dimensions of any size are such; the first ones say how
        large the arrays are.
        """
        kind, start, parts, fits = self.kind, self.kind.head, [], True
        for column, shape in zip(kind.columns, kind.shapes(sizes)):
            cut = column.pad is not None and kind.trimmed
            array = self.columns.get(column.name)
            if array is None:
                here = (self.width, *shape[1:]) if cut else shape
                array = self._memory.empty((self.rows, *here), column.dtype)
                self.columns[column.name] = array
            fits = fits and _fits(shape, array.shape[1:], cut)
            part = _Part(column, shape, array, start)
            parts.append(part)
            start += part.nbytes
        return _Layout(start, parts if fits else [], fits)


def _fits(shape: tuple[int, ...], here: tuple[int, ...], cut: bool) -> bool:
    """Whether a row of this shape has its place among such; if it is cut, also a shorter one."""
    if cut:
        return shape[0] <= here[0] and shape[1:] == here[1:]
    return shape == here


class _Part:
    """Which bytes of a record are those of one column, ``nbytes`` from ``start`` on, and where they
    go: to ``octets``, which are those of an ``array`` whose rows take ``stride``.
    """

    __slots__ = ("array", "nbytes", "octets", "pad", "start", "stride", "tokens")

    def __init__(
        self, column: Column, shape: tuple[int, ...], array: np.ndarray, start: int
    ) -> None:
        self.array, self.start, self.pad = array, start, column.pad
        self.nbytes = column.nbytes(shape)
        self.octets = array.reshape(-1).view(np.uint8).data
        self.stride = array.dtype.itemsize * math.prod(array.shape[1:])
        self.tokens = shape[0] if shape else 0


@dataclass(frozen=True)
class _Layout:
    """Records whose dimensions of any size are the same: their ``length``, and which part of them
    goes where; nowhere, if they do not fit here.
    """

    length: int
    parts: list[_Part]
    fits: bool
