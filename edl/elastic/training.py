"""Where a training is, and going on exactly there."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from typing import Any, Optional, Union

from edl._random import numpy_state, set_numpy_state
from edl.elastic.checkpoints import Checkpoints, Place
from edl.elastic.sampler import ElasticBatchSampler, paddle
from edl.errors import ConfigError

logger = logging.getLogger(__name__)


class ElasticTraining:
    """Counts a training's steps, and saves and restores all that it takes to go on after one.

    ::

        batches = ElasticBatchSampler(dataset, 32)
        reader = DistillReader(..., source=paddle.io.DataLoader(dataset, batch_sampler=batches))
        training = ElasticTraining("checkpoints", batches, reader, net=net, optimizer=optimizer)
        training.resume()
        for epoch in training.epochs(10):
            for image, label, soft_label in reader:
                ...
                training.step()
                if training.seen % 3200 == 0:
                    training.save()

    ``directory``: of the checkpoints, the same for all ranks. ``reader``: a DistillReader over a
    loader with ``sampler``, or None where the loader itself is read. ``parts``: what has a
    ``state_dict``: networks, optimizers, schedules, scalers; their states are rank 0's. The states
    of Paddle's, numpy's and Python's random numbers are each rank's own.

    Started again with as many ranks, the training does what it would have done undisturbed. With
    another number, the ranks share what is left of the epoch; ``resharded`` is true then, and what
    counts steps (a schedule) needs ``steps_done``. Raises ConfigError for a part without a
    ``state_dict``.
    """

    def __init__(
        self,
        directory: Union[str, os.PathLike[str]],
        sampler: ElasticBatchSampler,
        reader: Any = None,
        **parts: Any,
    ) -> None:
        for name, part in parts.items():
            if not hasattr(part, "state_dict"):
                raise ConfigError(f"{name} has no state_dict: {part!r}")
        self.checkpoints = Checkpoints(directory)
        self.epoch = 0  #: the one that is being trained, or will be next
        self.seen = 0  #: samples of it that all ranks have seen together
        self.resharded = False  #: whether it was resumed by another number of ranks
        self._sampler, self._reader, self._parts = sampler, reader, parts

    @property
    def steps_done(self) -> int:
        """Steps from the very beginning, had there always been as many ranks as now."""
        epochs = self.epoch + self.seen / self._sampler.samples
        return round(epochs * self._sampler.steps_per_epoch)

    def epochs(self, count: int) -> Iterator[int]:
        """The numbers of those that are left of ``count`` epochs. Saves after each."""
        while self.epoch < count:
            self._sampler.set_epoch(self.epoch)
            yield self.epoch
            self.epoch += 1
            self.seen = self._sampler.first = 0
            self.save()

    def step(self) -> None:
        """All ranks have trained on one batch."""
        self.seen += self._sampler.rows_per_step

    def save(self) -> None:
        """Write this rank's part of a checkpoint. All ranks have to, after the same step."""
        rank = self._sampler.rank
        shared = None
        if rank == 0:
            states = {name: part.state_dict() for name, part in self._parts.items()}
            shared = {"parts": states, "first": self._sampler.first}
        own = {
            "paddle": paddle.get_rng_state(),
            "random": json.dumps({"numpy": numpy_state(), "python": random.getstate()}),
            "reader": None if self._reader is None else json.dumps(self._reader_state()),
        }
        self.checkpoints.save(self._place(), rank, own, shared)

    def resume(self) -> bool:
        """Go on from the newest checkpoint; False if there is none.

        Raises ConfigError if the ranks do not see the same one, if it cannot be read, or lacks one
        of the parts, or one of them is of another network.
        """
        place = self.checkpoints.newest()
        self._agree(place)
        if place is None:
            return False
        shared = self.checkpoints.load(place, "shared")
        states = shared["parts"]
        if missing := self._parts.keys() - states.keys():
            raise ConfigError(
                f"the checkpoint {place} in {self.checkpoints.directory} has no state of "
                f"{', '.join(sorted(missing))}"
            )
        for name, part in self._parts.items():
            load = getattr(part, "set_state_dict", None) or part.load_state_dict
            _check_loaded(name, load(states[name]))
        self.epoch, self.seen = place.epoch, place.seen
        self._sampler.set_epoch(place.epoch)
        self._sampler.first = place.seen
        self.resharded = place.ranks != self._sampler.num_replicas
        if not self.resharded:
            own = self.checkpoints.load(place, f"rank-{self._sampler.rank}")
            self._restore(own, shared["first"])
        logger.info("resumed in epoch %d after %d samples", self.epoch, self.seen)
        return True

    def _restore(self, own: dict[str, Any], first: int) -> None:
        """What was this rank's own. A reader knows how far it was in what begins at ``first``."""
        paddle.set_rng_state(own["paddle"])
        state = json.loads(own["random"])  # Paddle would make tensors of numpy's
        set_numpy_state(state["numpy"])
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        if self._reader is not None and own["reader"] is not None:
            self._sampler.first = first
            self._reader.load_state_dict(json.loads(own["reader"]))

    def _reader_state(self) -> dict[str, Any]:
        """The reader's, which does not know that an epoch is over if the training has left it
        before its last batch.
        """
        state: dict[str, Any] = self._reader.state_dict()
        if self.seen == 0 and state["delivered"]:
            kept = {name: state[name] for name in ("version", "fingerprint")}
            return {**kept, "epoch": state["epoch"] + 1, "delivered": 0}
        return state

    def _place(self) -> Place:
        return Place(self.epoch, self.seen, self._sampler.num_replicas)

    def _agree(self, place: Optional[Place]) -> None:
        """Ranks that went on from different places would train a mixture."""
        if self._sampler.num_replicas == 1 or not paddle.distributed.is_initialized():
            return
        theirs: list[Any] = []
        paddle.distributed.all_gather_object(theirs, str(place))
        if set(theirs) != {str(place)}:
            raise ConfigError(
                f"ranks see different checkpoints in {self.checkpoints.directory} ("
                f"{', '.join(sorted(set(theirs)))}); the directory has to be the same for all"
            )


def _check_loaded(name: str, result: Any) -> None:
    """A layer leaves what does not fit as it is, and returns the names: what it lacked, and what it
    did not know.
    """
    if not isinstance(result, tuple) or not any(result):
        return
    missing, unexpected = (", ".join(names) or "nothing" for names in result)
    raise ConfigError(
        f"the checkpoint's {name} is of another network: missing or of another shape {missing}, "
        f"unexpected {unexpected}"
    )
