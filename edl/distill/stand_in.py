"""What a reader passes on of the loader that it wraps, so that it can take that one's place."""

from __future__ import annotations

from typing import Any, Optional

from edl.distill.source import Source


def _passed_on(name: str, meaning: str) -> property:
    def get(self: StandIn) -> Any:
        return getattr(self._stands_for(name), name)

    return property(get, doc=f"The source's {meaning}. Raises AttributeError if it has none.")


class StandIn:
    """The attributes of a ``paddle.io.DataLoader`` that programs look at, each the source's own."""

    _source: Optional[Source]

    batch_sampler = _passed_on("batch_sampler", "batch sampler")
    dataset = _passed_on("dataset", "dataset")
    collate_fn = _passed_on("collate_fn", "function that makes batches of samples")
    batch_size = _passed_on("batch_size", "rows per batch; a loader with a batch sampler says None")
    drop_last = _passed_on("drop_last", "saying whether an incomplete last batch is left out")
    num_workers = _passed_on("num_workers", "number of worker processes")

    @property
    def set_epoch(self) -> Any:
        """The source's ``set_epoch(epoch)``, by which it shuffles; of a DataLoader its batch
        sampler's. Raises AttributeError if it has none.
        """
        source = self._stands_for("set_epoch")
        sampler = getattr(source, "batch_sampler", None)
        return (source if hasattr(source, "set_epoch") or sampler is None else sampler).set_epoch

    def _stands_for(self, name: str) -> Any:
        if self._source is None:
            raise AttributeError(f"{name}: this reader has no source yet")
        return self._source.value
