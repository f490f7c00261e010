"""A batch of requests that lie in shared memory: to the predictor, and to each its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from edl.serving.model.answers import Share, answer_all
from edl.serving.model.predictor import Predictor
from edl.serving.wire.arena import Arena, aligned
from edl.serving.wire.messages import Room
from edl.serving.worker import control

#: For each feed of a request where it lies (see ``control``).
Refs = Mapping[str, Sequence[Any]]


#: Bytes to copy from which it is worth a thread's while.
LARGE = 1 << 20


@dataclass(frozen=True)
class Prepared:
    """A batch for the predictor: its feeds, and each request's share of what comes out."""

    feeds: dict[str, np.ndarray]
    shares: list[Share]


def run_batch(
    predictor: Predictor,
    inputs: Arena,
    requests: Sequence[Refs],
    fetches: Sequence[Sequence[str]],
    shared: control.Shared,
) -> list[dict[str, np.ndarray]]:
    """Each request's outputs by name. ``fetches``: what each of them wants. ``shared``: the memory
    of clients that requests lie in. Raises whatever the predictor raises, and what ``answer_all``
    does.
    """
    batch = prepare(predictor, inputs, requests, fetches, shared)
    return answer_all(predictor, batch.feeds, batch.shares)


def prepare(
    predictor: Predictor,
    inputs: Arena,
    requests: Sequence[Refs],
    fetches: Sequence[Sequence[str]],
    shared: control.Shared,
) -> Prepared:
    """Gather a batch, which copies its rows if they are of several requests."""
    specs = predictor.description.feeds
    feeds = control.gather(inputs, requests, specs, shared)
    sequence = next((name for name in feeds if specs[name].pad is not None), None)
    shares = []
    for refs, wanted in zip(requests, fetches):
        shape = next(iter(refs.values()))[2]
        rows, length = shape[0], 0 if sequence is None else refs[sequence][2][1]
        for_labels = {
            name: control.feed(inputs, ref, shared)
            for name, ref in refs.items()
            if name not in specs
        }
        shares.append(Share(rows, wanted, for_labels, length))
    return Prepared(feeds, shares)


def bytes_to_gather(requests: Sequence[Refs]) -> int:
    """What ``prepare`` copies: nothing of a single request."""
    if len(requests) == 1:
        return 0
    return sum(control.size_of(ref) for refs in requests for ref in refs.values())


def places_in(
    outputs: dict[str, np.ndarray], room: Optional[Sequence[int]]
) -> dict[str, list[Any]]:
    """Where a request's outputs go in its ``room`` of the client's memory (see ``messages.Room``);
    empty if there is no room for all.
    """
    if room is None:
        return {}
    number, offset, size = Room(*room)
    if sum(aligned(array.nbytes) for array in outputs.values()) > size:
        return {}
    if not all(array.nbytes and array.dtype.kind in "fiub" for array in outputs.values()):
        return {}
    refs = {}
    for name, array in outputs.items():
        refs[name] = control.tensor_ref(offset, array, number)
        offset += aligned(array.nbytes)
    return refs


def lay_into(
    outputs: dict[str, np.ndarray], room: Optional[Sequence[int]], shared: control.Shared
) -> dict[str, list[Any]]:
    """Copy a request's outputs to their ``places_in`` its room, and say where each lies."""
    refs = places_in(outputs, room)
    for name, ref in refs.items():
        np.copyto(control.resolve(shared[control.number_of(ref)], ref), outputs[name])
    return refs
