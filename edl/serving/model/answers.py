"""What each request of a batch gets: its rows of the outputs, and sparse labels of its rows.

The model computes once for all of them. Labels are made for the requests that want them, each in
its own form: rows of different requests have nothing in common that could be shared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from edl.errors import BadRequest, ConfigError, ModelError, WireError
from edl.serving.model.language import Logits
from edl.serving.model.predictor import Predictor, run_checked
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire import frame, labels, narrow
from edl.serving.wire.fetches import Form, resolve
from edl.serving.wire.labels import LabelForm
from edl.serving.wire.narrow import Narrow

_LARGEST = f"{frame.MAX_BODY_SIZE >> 20} MiB"


@dataclass(frozen=True)
class Share:
    """One request's part of a batch: ``rows`` of it, what it wants of them (see ``wire.fetches``)
    and its own feeds for labels. ``length``: tokens of each, where rows are sequences; the batch's
    may have been filled up to more.
    """

    rows: int
    fetches: Sequence[str]
    label_feeds: Mapping[str, np.ndarray] = field(default_factory=dict)
    length: int = 0


#: What is asked of one fetch of the model.
_Asked = tuple[str, Form]


def answer_all(
    predictor: Predictor, feeds: dict[str, np.ndarray], shares: Sequence[Share]
) -> list[dict[str, np.ndarray]]:
    """For each share its answer by name, with ids as they travel. ``feeds``: the rows of all, one
    share after the other.

    Raises ModelError for outputs that have not as many rows, or whose labels cannot be made;
    BadRequest for values that the dtype in which they are wanted cannot hold; ConfigError for a
    fetch that the predictor does not have.
    """
    asked = [[resolve(predictor.description, fetch) for fetch in share.fetches] for share in shares]
    names = list(dict.fromkeys(name for each in asked for name, _ in each))
    sparse_only = all(isinstance(form, LabelForm) for each in asked for _, form in each)
    outputs = _outputs(predictor, feeds, names, sparse_only)
    answers: list[dict[str, np.ndarray]] = [{} for _ in shares]
    stops = list(itertools.accumulate(share.rows for share in shares))
    for numbers in _alike(asked, shares):
        first, last = numbers[0], numbers[-1]
        start = stops[first] - shares[first].rows
        for name, form in asked[first]:
            array = outputs[name][start : stops[last]]
            if predictor.description.fetches[name].pad is not None:
                array = array[:, : shares[first].length]
            if not isinstance(form, LabelForm):
                whole = array if isinstance(array, np.ndarray) else array.numpy()
                found = {name: whole if form is None else _narrowed(name, whole, form)}
            else:
                given = {
                    feed: np.concatenate([shares[n].label_feeds[feed] for n in numbers])
                    for feed in form.feeds
                }
                found = _labels(name, array, form, given)
            for part, rows in found.items():
                for number in numbers:
                    stop = stops[number] - start
                    answers[number][part] = rows[stop - shares[number].rows : stop]
    return answers


def _alike(asked: Sequence[Sequence[_Asked]], shares: Sequence[Share]) -> list[list[int]]:
    """Numbers of neighbours that want the same, of rows of the same length."""
    groups = itertools.groupby(range(len(asked)), key=lambda n: (asked[n], shares[n].length))
    return [list(group) for _, group in groups]


def _outputs(
    predictor: Predictor, feeds: dict[str, np.ndarray], names: Sequence[str], sparse_only: bool
) -> Mapping[str, Any]:
    """Arrays; tensors on a GPU, if nothing but labels is made of them there; logits that are not
    computed yet, of a language model.
    """
    lazy = getattr(predictor, "lazy", False)
    if lazy or (sparse_only and getattr(predictor, "on_gpu", False)):
        return run_checked(predictor, feeds, names, on_device=True)
    return run_checked(predictor, feeds, names)


def _narrowed(name: str, array: np.ndarray, form: Narrow) -> np.ndarray:
    try:
        return narrow.narrowed(array, form.numpy_dtype)
    except WireError as error:
        remedy = "ask for bfloat16, or for what is as wide as it is"
        if form.dtype == "bfloat16":
            remedy = "ask for what is as wide as it is"
        raise BadRequest(f"{name!r} in {form.dtype}: {error}; {remedy}") from error


def _labels(
    name: str, logits: Any, form: LabelForm, given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The parts of one fetch's labels, by their names in the answer."""
    size = math.prod(logits.shape[:-1]) * form.bytes_per_position(logits.shape[-1])
    if size > frame.MAX_BODY_SIZE:
        raise ModelError(
            f"labels of {name!r} would take {size >> 20} MiB, and an answer {_LARGEST} at most: "
            "send fewer rows at a time, or ask for fewer of each"
        )
    seeds, targets = given.get(labels.SEED_FEED), given.get(labels.TARGET_FEED)
    try:
        parts = make_labels(logits, form, seeds, targets)
    except (ConfigError, WireError) as error:
        raise ModelError(f"labels of {name!r}: {error}") from error
    classes = logits.shape[-1]
    for part in (labels.INDICES, labels.SAMPLES):
        if part in parts:
            parts[part] = labels.narrow_ids(parts[part], classes)
    return {labels.column(name, part): array for part, array in parts.items()}


def make_labels(
    logits: Any,
    form: LabelForm,
    seeds: Optional[np.ndarray],
    targets: Optional[np.ndarray],
) -> dict[str, np.ndarray]:
    """Sparse labels as arrays, wherever the logits are: see ``sparse_labels``. Raises WireError for
    logits that are beyond float16, too.
    """
    if isinstance(logits, Logits):
        parts = logits.labels(form, seeds, targets)
    elif isinstance(logits, np.ndarray):
        parts = sparse_labels(logits, form, seeds, targets)
    else:
        import paddle

        place = logits.place
        given = [
            None if array is None else paddle.to_tensor(array, place=place)
            for array in (seeds, targets)
        ]
        with paddle.no_grad():
            tensors = sparse_labels(logits, form, *given)
        parts = {part: tensor.numpy() for part, tensor in tensors.items()}
    labels.check_range(parts[labels.VALUES], parts[labels.LOGSUMEXP])
    return parts
