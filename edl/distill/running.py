"""What runs: the pools of a reader and the threads that read ahead for them; or those of a
TeacherPool, which reads nothing.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Callable, Optional

from edl.discovery import CLOSE_WITHIN
from edl.distill.ahead import ReadAhead, wait_until_left_in_peace
from edl.distill.batches import join_parts
from edl.distill.metrics import Labels, Listen, advertised, serve
from edl.distill.pool import Pool
from edl.distill.settings import Model, PoolConfig
from edl.distill.storing import Stages, StoreOptions
from edl.distill.stream import Batch, Stream
from edl.distill.teachers import ServiceTeachers
from edl.distill.timeline import Timeline
from edl.distill.trace import Trace
from edl.errors import ReaderError


class Running:
    """Pools, threads and files of an owner, a reader or a TeacherPool, in one process. Holds no
    reference to it. ``listen``: where its metrics are served, with its ``position``, if it has one.

    Raises from the constructor, with nothing left running, what starting a pool raises.
    """

    def __init__(
        self,
        models: Sequence[Model],
        configs: Sequence[PoolConfig],
        trace: Optional[Path],
        store: Optional[StoreOptions] = None,
        listen: Optional[Listen] = None,
        position: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.pid = os.getpid()
        self._models = models
        self._stages = Stages(store, models, configs) if store is not None else None
        self.trace = Trace(trace) if trace else None
        self._position = position
        self._places = [config.teachers for config in configs]
        self._timelines = [self._timeline(*each) for each in zip(models, configs)]
        self.pools: list[Pool] = []
        self._metrics = serve(listen, self._figures)
        for config, timeline in zip(configs, self._timelines):
            told = replace(config, metrics=advertised(self._metrics, config))
            self.pools.append(Pool(told, timeline))
        self._streams: list[Stream] = []
        self._reading: list[threading.Thread] = []
        self._finalizer: Optional[weakref.finalize] = None
        # Runs at the end of DataLoader's workers too, which leave without atexit's functions.
        self._at_exit = Finalize(None, self.close, exitpriority=10)
        try:
            for pool in self.pools:
                pool.start()
        except BaseException:
            self.close()
            raise

    def _timeline(self, model: Model, config: PoolConfig) -> Optional[Timeline]:
        if self.trace is None:
            return None
        return Timeline(self.trace, model.name, "request" if config.requests else "batch")

    def watch(self, owner: object) -> None:
        """End with ``owner``, however it ends."""
        self._finalizer = weakref.finalize(owner, self._abandon)
        self._finalizer.atexit = False

    def begin_iteration(
        self, batches: Iterator[Batch], keep_to: Sequence[str]
    ) -> tuple[Iterator[Batch], list[ReadAhead]]:
        """``batches`` with every model's predictions, and what reads them, for the caller to hold.
        The models are a chain: the first one's finished batches are the second one's source.
        Raises ReaderError if one is going on.
        """
        self.settle()
        ahead = []
        try:
            for number, (model, pool) in enumerate(zip(self._models, self.pools)):
                keep = keep_to[number] if number < len(keep_to) else ""
                storing = None
                if self._stages is not None:
                    storing = self._stages.begin(number)
                    keep = keep or storing.wanted_model
                stream = pool.open(keep)
                self._streams.append(stream)
                sent: Iterator[Any] = batches
                if storing is not None:
                    sent = storing.look_up(batches, stream)
                ahead.append(ReadAhead(sent, stream, self._timelines[number]))
                self._reading.append(ahead[-1].thread)
                if storing is not None:
                    batches = storing.merged(stream)
                else:
                    batches = _predicted(stream, model)
        except BaseException:  # such as: no thread can be started
            self.end_iteration()
            raise
        return batches, ahead

    def settle(self) -> None:
        """Wait until the iteration before has let go of its source. Raises ReaderError if it is
        going on.
        """
        if self._streams and not self._streams[0].left:
            raise ReaderError(
                "this reader is being iterated already; finish or close that iteration first, or "
                "make a second DistillReader"
            )
        self.end_iteration()

    def leave_iteration(self) -> None:
        """Signal that nothing more is taken. Takes no lock and waits for nothing."""
        for stream in self._streams:
            stream.leave()

    def end_iteration(self) -> None:
        """Leave the iteration, and wait until its source is left in peace."""
        self.leave_iteration()
        for stream in self._streams:  # here: what is forked next is not to find a pool at it
            stream.forget()
        for reading in self._reading:  # the source's first: the others wait for it
            wait_until_left_in_peace(reading)
        if self._stages is not None and self._streams:
            self._stages.end()
        self._streams, self._reading = [], []

    def stats(self) -> dict[str, Any]:
        """By model."""
        stats = {model.name: pool.stats() for model, pool in zip(self._models, self.pools)}
        if self._stages is not None:
            for name, storing in zip(stats, self._stages.models):
                stats[name]["store"] = storing.stats()
        return stats

    @property
    def metrics_endpoint(self) -> Optional[str]:
        """See DistillReader.metrics_endpoint."""
        return None if self._metrics is None else self._metrics.endpoint

    def _figures(self) -> list[tuple[Labels, dict[str, Any]]]:
        """For the metrics; in a thread of theirs."""
        stats, position, figures = self.stats(), self._position(), []
        for model, pool, place in zip(self._models, self.pools, self._places):
            service = place.service if isinstance(place, ServiceTeachers) else model.name
            if model.name in stats:  # all but at the very beginning, before there is its pool
                of = {**stats[model.name], "position": position}
                figures.append((Labels(service, pool.name), of))
        return figures

    def flush(self, timeout: float) -> bool:
        """See DistillReader.flush."""
        return self._stages is None or self._stages.flush(timeout)

    def models(self) -> list[str]:
        """The fingerprints in use; empty where none is yet."""
        return [pool.model for pool in self.pools]

    def _abandon(self) -> None:
        """The owner is gone. In its finalizer: takes no lock and waits for nothing."""
        if self.pid == os.getpid():
            self.pools[0].call_soon(self.close)

    def close(self) -> None:
        """End everything, unless it belongs to the process that this one was forked from."""
        if self.pid != os.getpid():
            return
        self._at_exit.cancel()
        if self._finalizer is not None:
            self._finalizer.detach()
        self.leave_iteration()
        if self._metrics is not None:
            self._metrics.close()
        for pool in self.pools:
            pool.stop()
        deadline = time.monotonic() + CLOSE_WITHIN
        for pool in self.pools:
            pool.close(deadline - time.monotonic())
        if self._stages is not None:
            self._stages.close()
        if self.trace is not None:
            self.trace.close()


def _predicted(stream: Stream, model: Model) -> Iterator[Batch]:
    """A stream's batches, each with one model's predictions added."""
    while (finished := stream.take()) is not None:
        if finished.error is not None:
            raise finished.error
        batch = finished.payload
        assert batch is not None
        predictions = join_parts(finished.parts, list(finished.parts[0]))
        for name, array in predictions.items():
            batch.predictions[model.column(name)] = array
        yield batch
        del finished, predictions, batch
