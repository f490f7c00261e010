"""A batch of requests that lie in shared memory: to the predictor, and to each its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from edl.serving.model.answers import Share, answer_all
from edl.serving.model.predictor import Predictor
from edl.serving.wire.arena import Arena, aligned
from edl.serving.wire.messages import Room
from edl.serving.worker import control

#: For each feed of a request where it lies (see ``control``).
Refs = Mapping[str, Sequence[Any]]


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
    return answer_all(predictor, feeds, shares)


def lay_into(
    outputs: dict[str, np.ndarray], room: Optional[Sequence[int]], shared: control.Shared
) -> dict[str, list[Any]]:
    """Copy a request's outputs into its ``room`` of the client's memory (see ``messages.Room``),
    and say where each lies; of none, and nothing is copied, if there is no room for all.
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
        np.copyto(control.resolve(shared[number], refs[name]), array)
        offset += aligned(array.nbytes)
    return refs
