"""A layer that returns sparse labels in place of its logits, to be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from edl._paddle import import_paddle
from edl.errors import ConfigError
from edl.serving.model.layer import in_order
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire import labels
from edl.serving.wire.description import Specs, parse_specs
from edl.serving.wire.labels import LabelForm

#: A fetch of the layer, and the form of its labels; none if it is returned as it is.
Asked = Sequence[tuple[str, Optional[LabelForm]]]


def asked_of(fetches: Sequence[str], form: Optional[LabelForm]) -> Asked:
    """What each name says, as in "logits?top_k=64"; ``form`` for those that say none. Raises
    ConfigError.
    """
    asked = [labels.split(name) for name in fetches]
    return [(name, own or form) for name, own in asked]


def label_feeds(asked: Asked, feeds: Specs) -> dict[str, tuple[Sequence[int], str]]:
    """The feeds that the labels need, as the program has them behind the layer's own. Raises
    ConfigError where the shape of the targets is not among ``feeds``.
    """
    needed = {feed for _, form in asked if form is not None for feed in form.feeds}
    if labels.TARGET_FEED in needed and labels.TARGET_FEED not in feeds:
        raise ConfigError(
            f"labels with the logit of a target need a feed {labels.TARGET_FEED!r}, as in "
            f'{{"{labels.TARGET_FEED}": ((-1,), "int64")}} for ids of tokens'
        )
    added: dict[str, tuple[Sequence[int], str]] = {}
    if labels.SEED_FEED in needed:
        added[labels.SEED_FEED] = ((), "int64")
    if labels.TARGET_FEED in needed:
        added[labels.TARGET_FEED] = (feeds[labels.TARGET_FEED][0], "int64")
    return added


def columns_of(asked: Asked) -> list[str]:
    """The fetches of the program."""
    return [column for name, form in asked for column in _columns(name, form)]


def column_specs(asked: Asked, fetches: Specs) -> Specs:
    """``fetches``, which the layer must have, as columns that the program must have; of labels
    nothing is said but how many there are.
    """
    said = dict(zip((name for name, _ in asked), fetches.values()))
    specs: dict[str, tuple[Sequence[int], str]] = {}
    for name, form in asked:
        if form is None:
            specs[name] = said[name]
            continue
        logits = parse_specs({name: said[name]})[name]
        for part, spec in labels.part_specs(name, logits, form).items():
            shape, dtype = list(spec.shape), spec.dtype
            if part in (labels.INDICES, labels.SAMPLES):
                size = labels.id_bytes(logits.shape[-1])
                dtype = "uint8"
                shape += [size] if size > 1 else []
            specs[f"{labels.column(name, part)}?{form}"] = shape, dtype
    return specs


def with_labels(layer: Any, asked: Asked, added: Sequence[str]) -> Any:
    """A layer whose ``forward`` takes a list, of the feeds of ``layer`` and then those that are
    ``added``, and returns the columns in their order.
    """
    paddle = import_paddle("exporting a model")

    @paddle.jit.not_to_static
    def labelled(outputs: Any, given: Mapping[str, Any]) -> list[Any]:
        outputs = paddle.utils.flatten(in_order(outputs, [name for name, _ in asked]))
        if len(outputs) != len(asked):
            raise ConfigError(f"{len(asked)} fetches were named, but the layer has {len(outputs)}")
        columns = []
        for (name, form), output in zip(asked, outputs):
            if form is not None:
                labels.check_classes(name, output.shape[-1], form)
            columns += [output] if form is None else _parts(paddle, output, form, given)
        return columns

    class Labelled(paddle.nn.Layer):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, feeds: Any) -> list[Any]:
            own = len(feeds) - len(added)
            return labelled(self.layer(*feeds[:own]), dict(zip(added, feeds[own:])))

    return Labelled()


def _columns(name: str, form: Optional[LabelForm]) -> list[str]:
    if form is None:
        return [name]
    return [f"{labels.column(name, part)}?{form}" for part in form.parts]


def _parts(paddle: Any, logits: Any, form: LabelForm, given: Mapping[str, Any]) -> list[Any]:
    seeds, targets = given.get(labels.SEED_FEED), given.get(labels.TARGET_FEED)
    parts = sparse_labels(logits, form, seeds, targets)
    for part in (labels.INDICES, labels.SAMPLES):
        if part in parts:
            parts[part] = _narrow_ids(paddle, parts[part], logits.shape[-1])
    return [parts[part] for part in form.parts]


def _narrow_ids(paddle: Any, ids: Any, classes: int) -> Any:
    """See ``labels.narrow_ids``."""
    size = labels.id_bytes(classes)
    if size == 1:
        return ids.astype("uint8")
    octets = [ids // (1 << 8 * place) % (1 << 8) for place in range(size)]
    return paddle.stack(octets, -1).astype("uint8")
