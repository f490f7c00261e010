"""A shuffled epoch, shared between ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, Optional

import numpy as np

from edl._paddle import import_paddle
from edl.errors import ConfigError

paddle: Any = import_paddle("edl.elastic")


class ElasticBatchSampler(paddle.io.BatchSampler):
    """One rank's batches (lists of sample numbers) of an epoch, for a ``paddle.io.DataLoader``.

    As with ``DistributedBatchSampler``, all ranks shuffle alike and take a batch each in turn, and
    ``set_epoch`` says which order is drawn. Two things differ. No sample is repeated to make the
    shares even: the last ones, too few for a batch for every rank, are left out. And an epoch may
    begin at any sample: after n steps of all ranks, the first n * ``batch_size`` * ``num_replicas``
    samples of its order have been seen, and what is left from ``first`` on can be shared by another
    number of ranks.

    ``batch_size``: rows of each rank's batch. ``num_replicas`` and ``rank``: by default, those of
    ``paddle.distributed``. ``seed``, with the epoch, decides the order. Raises ConfigError if there
    is not a batch for every rank, or no such rank.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        num_replicas: Optional[int] = None,
        rank: Optional[int] = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset=dataset, batch_size=batch_size, drop_last=True)
        world = paddle.distributed
        self.num_replicas = world.get_world_size() if num_replicas is None else num_replicas
        self.rank = world.get_rank() if rank is None else rank
        if not 0 <= self.rank < self.num_replicas:
            raise ConfigError(f"rank {self.rank} is not one of {self.num_replicas}")
        self.samples = len(dataset)
        if self.samples < self.rows_per_step:
            raise ConfigError(
                f"{self.samples} samples are not a batch of {batch_size} for each of "
                f"{self.num_replicas} ranks"
            )
        self.shuffle, self.seed = shuffle, seed
        self.epoch = self.first = 0

    @property
    def rows_per_step(self) -> int:
        """Samples that all ranks see together in one step."""
        return int(self.batch_size) * self.num_replicas

    @property
    def steps_per_epoch(self) -> int:
        """Of a whole epoch, with this number of ranks."""
        return self.samples // self.rows_per_step

    def set_epoch(self, epoch: int) -> None:
        """Which order is drawn from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches that are left of the epoch."""
        return (self.samples - self.first) // self.rows_per_step

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.samples)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        begin = self.first + self.rank * self.batch_size
        for start in range(begin, begin + len(self) * self.rows_per_step, self.rows_per_step):
            yield order[start : start + self.batch_size].tolist()
