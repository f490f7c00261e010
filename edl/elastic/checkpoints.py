"""Checkpoints that all ranks write together, each its part.

``DIRECTORY/EPOCH-SEEN-of-RANKS/`` has a part ``shared``, which rank 0 writes, and a part ``rank-R``
of each rank. A part is whole or not there, and a checkpoint counts once it has all of them: ranks
that are killed while they save go on from the one before.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from edl._paddle import import_paddle
from edl.errors import ConfigError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(\d+)-(\d+)-of-(\d+)")


@dataclass(frozen=True, order=True)
class Place:
    """The point between two steps at which a checkpoint was written: ``seen`` samples of ``epoch``
    by ``ranks`` ranks.
    """

    epoch: int
    seen: int
    ranks: int

    def __str__(self) -> str:
        return f"{self.epoch:04d}-{self.seen:09d}-of-{self.ranks}"


class Checkpoints:
    """The checkpoints in a directory, which has to be the same one for all ranks, on whatever
    machine. The newest ``kept`` are kept. What they hold is read with ``paddle.load``, which
    unpickles: the directory is trusted. Raises ConfigError if ``kept`` is below 1, or the directory
    is a file.
    """

    def __init__(self, directory: Union[str, os.PathLike[str]], kept: int = 2) -> None:
        if kept < 1:
            raise ConfigError(f"kept is {kept}; at least one checkpoint has to be")
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(f"{self.directory} is a file, and no directory of checkpoints")
        self.kept = kept

    def save(self, place: Place, rank: int, own: Any, shared: Optional[Any] = None) -> None:
        """Write this rank's part. Rank 0 writes ``shared`` too, and removes what is not needed any
        more. Both are whatever ``paddle.save`` takes. Raises OSError if it cannot be written.
        """
        path = self.directory / str(place)
        path.mkdir(parents=True, exist_ok=True)
        _write(path / f"rank-{rank}", own)
        if rank == 0:
            _write(path / "shared", shared)
            self._remove_old(place)

    def newest(self) -> Optional[Place]:
        """That of the newest checkpoint that is whole, if there is one."""
        found = self._found()
        whole = [place for place in found if not self._missing(place)]
        if found and not whole:
            logger.warning(
                "%s has checkpoints, but %s lacks %s: were the ranks killed while they saved, or "
                "is the directory not the same for all of them?",
                self.directory, found[-1], ", ".join(self._missing(found[-1])),
            )  # fmt: skip
        return whole[-1] if whole else None

    def load(self, place: Place, part: str) -> Any:
        """One part, ``shared`` or ``rank-R``, of the checkpoint at a place. Raises ConfigError if
        it cannot be read.
        """
        path, paddle = self.directory / str(place) / part, import_paddle("edl.elastic")
        try:
            return paddle.load(str(path))
        except Exception as error:  # unpickling what is no checkpoint may raise anything
            raise ConfigError(
                f"{path} cannot be read ({type(error).__name__}: {error}); remove {path.parent}, "
                "and the checkpoint before it is the newest"
            ) from error

    def _found(self) -> list[Place]:
        if not self.directory.exists():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.directory.iterdir() if path.is_dir())
        return sorted(Place(*map(int, name.groups())) for name in names if name)

    def _missing(self, place: Place) -> list[str]:
        parts = ["shared", *(f"rank-{rank}" for rank in range(place.ranks))]
        return [part for part in parts if not (self.directory / str(place) / part).exists()]

    def _remove_old(self, written: Place) -> None:
        """All before the oldest that is kept, also those that never became whole."""
        found = self._found()
        whole = [place for place in found if not self._missing(place)]
        if whole and (whole[-1].epoch, whole[-1].seen) > (written.epoch, written.seen):
            logger.warning(
                "%s has a checkpoint %s, which is beyond %s, the one just written: of another "
                "training? Whoever resumes goes on from there; remove it, or use another directory",
                self.directory, whole[-1], written,
            )  # fmt: skip
        for place in found:
            if len(whole) >= self.kept and place < min(whole[-self.kept], written):
                shutil.rmtree(self.directory / str(place))


def _write(path: Path, content: Any) -> None:
    unfinished = path.with_name(f".{path.name}")
    import_paddle("edl.elastic").save(content, str(unfinished))
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())  # or a crash of the machine could leave a name without a content
    os.replace(unfinished, path)
