"""Checkpoints that all ranks write together, each its part.

``DIRECTORY/EPOCH-SEEN-of-RANKS/`` has a part ``shared`` (rank 0's: model, optimizer, schedule, and
the place in the epoch) and a part ``rank-R`` from each rank (random state, state of its reader). A
part is whole or not there, and a checkpoint counts once it has all of them: ranks that are killed
while they save go on from the one before.
"""

import os
import shutil

import paddle

KEPT = 2


def save(directory, epoch, seen, rank, ranks, shared, own):
    """Write this rank's parts of the checkpoint after ``seen`` samples of an epoch.

    Rank 0 writes ``shared``, and removes checkpoints that are too old to be needed.
    """
    path = directory / f"{epoch:04d}-{seen:09d}-of-{ranks}"
    path.mkdir(parents=True, exist_ok=True)
    parts = {f"rank-{rank}": own}
    if rank == 0:
        parts["shared"] = shared
    for name, content in parts.items():
        paddle.save(content, str(path / f".{name}"))
        os.replace(path / f".{name}", path / name)
    if rank == 0:
        for old in complete(directory)[:-KEPT]:
            shutil.rmtree(old)


def complete(directory):
    """Paths of the checkpoints that have all their parts, the newest last."""
    return [
        path
        for path in sorted(directory.glob("*-*-of-*"))
        if (path / "shared").exists() and len(list(path.glob("rank-*"))) == ranks_of(path)
    ]


def load(path, rank, ranks):
    """(shared, own); ``own`` is None where there are not as many ranks now as there were."""
    shared = paddle.load(str(path / "shared"))
    return shared, paddle.load(str(path / f"rank-{rank}")) if ranks == ranks_of(path) else None


def ranks_of(path):
    """How many ranks write it."""
    return int(path.name.rpartition("-")[2])
