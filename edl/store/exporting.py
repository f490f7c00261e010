"""Stored labels as arrays in a file, for other programs."""

from __future__ import annotations

import contextlib
import heapq
import io
import operator
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from edl.errors import ConfigError, StoreError
from edl.store.maintenance import Progress, Watched, open_existing, sound_ones
from edl.store.records import KIND, Column, Kind, columns_of, is_sound
from edl.store.store import LabelStore


def export(directory: Path, path: Path, kind: str = "", progress: Optional[Progress] = None) -> int:
    """Write the labels of one kind to ``path``, a .npz file; how many rows there are.

    ``key``: (rows, 24) uint8, or 28, of which the first 8 are the kind and the next 16 the row's
    digest. Each column is an array (rows, ...) of its name. Where rows differ in length, their
    tokens follow each other, (tokens, ...), and ``NAME.lengths`` (rows,) int64 says how many each
    has. ``kind``: the beginning of its id in hexadecimal digits; needed if there are several.
    Raises StoreError, ConfigError if that says no kind, or several.
    """
    if path.suffix != ".npz":
        raise ConfigError(f"labels are exported as .npz files, and {path} is none")
    with open_existing(directory) as store:
        chosen = _choose(store.kinds(), kind)
        for column in chosen.columns:
            if any(index for index in column.open):
                raise StoreError(f"rows of {column.name!r} differ in more than their length")
        keys = _keys(store, chosen)
        part = path.with_name(f"{path.name}.part")
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                shape = (len(keys), len(keys[0]) if keys else KIND)
                _write_array(archive, "key", shape, "uint8", iter(keys))
                watched = Watched(progress, len(keys) * len(chosen.columns))
                for column in chosen.columns:
                    _export_column(archive, store, chosen, column, keys, watched)
            part.replace(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                part.unlink()
            if isinstance(error, OSError):
                raise StoreError(f"{path} cannot be written: {error}") from error
            raise
    return len(keys)


def _choose(kinds: Sequence[Kind], wanted: str) -> Kind:
    found = [kind for kind in kinds if kind.id.hex().startswith(wanted)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{kind.id.hex()} ({kind.prediction} of {kind.model})" for kind in kinds)
    raise ConfigError(f"{len(found)} kinds of labels are meant; name one of {known or 'none'}")


def _keys(store: LabelStore, kind: Kind) -> list[bytes]:
    """All keys of a kind whose records are sound, each once."""
    streams = [environment.records(kind.id) for environment in store.environments()]
    merged = heapq.merge(*streams, key=operator.itemgetter(0))
    return [key for key, _ in sound_ones({kind.id: kind}, merged)]


def _export_column(
    archive: zipfile.ZipFile,
    store: LabelStore,
    kind: Kind,
    column: Column,
    keys: Sequence[bytes],
    watched: Watched,
) -> None:
    index = kind.columns.index(column)

    def parts() -> Iterator[tuple[tuple[int, ...], bytes]]:
        for start in range(0, len(keys), 256):
            found: dict[bytes, tuple[tuple[int, ...], bytes]] = {}
            some = list(keys[start : start + 256])

            for environment in store.environments():
                with environment.reading() as find:
                    for key, record in zip(some, map(find, some)):
                        if record is not None and is_sound(kind, key, record):
                            _, shape, octets = list(columns_of(kind, record))[index]
                            found[key] = shape, bytes(octets)
            yield from (found[key] for key in some)

    written = (octets for _, octets in watched.through(parts()))
    if not column.open:
        shape = (len(keys), *column.shape)
        _write_array(archive, column.name, shape, column.dtype, written)
        return
    lengths = np.array([shape[0] for shape, _ in parts()], np.int64)
    total = (int(lengths.sum()), *column.shape[1:])
    _write_array(archive, column.name, total, column.dtype, written)
    name = f"{column.name}.lengths"
    _write_array(archive, name, lengths.shape, "int64", iter([lengths.tobytes()]))


def _write_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str, parts: Iterator[bytes]
) -> None:
    """One array of the archive, from its bytes."""
    head = io.BytesIO()
    said = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(head, said)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        file.write(head.getvalue())
        for part in parts:
            file.write(part)
