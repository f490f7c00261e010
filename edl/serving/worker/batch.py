"""A batch of requests that lie in the input arena: to the predictor, and to each its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edl.serving.model.answers import Share, answer_all
from edl.serving.model.predictor import Predictor
from edl.serving.worker import control
from edl.serving.worker.arena import Arena

#: For each feed of a request where it lies (see ``control``).
Refs = Mapping[str, Sequence[Any]]


def run_batch(
    predictor: Predictor, inputs: Arena, requests: Sequence[Refs], fetches: Sequence[Sequence[str]]
) -> list[dict[str, np.ndarray]]:
    """Each request's outputs by name. ``fetches``: what each of them wants. Raises whatever the
    predictor raises, and what ``answer_all`` does.
    """
    specs = predictor.description.feeds
    feeds = control.gather(inputs, requests, specs)
    sequence = next((name for name in feeds if specs[name].pad is not None), None)
    shares = []
    for refs, wanted in zip(requests, fetches):
        own = {name: control.resolve(inputs, ref) for name, ref in refs.items()}
        rows = len(next(iter(own.values())))
        length = 0 if sequence is None else own[sequence].shape[1]
        for_labels = {name: array for name, array in own.items() if name not in specs}
        shares.append(Share(rows, wanted, for_labels, length))
    return answer_all(predictor, feeds, shares)
