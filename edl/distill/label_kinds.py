"""Which stored labels a reader wants: kinds of labels, from what it asks for and a teacher serves.

Labels are kept apart by all that a reader says which may change them, so two readers share labels
only if a teacher would have answered both alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edl.distill.labels import Labelling
from edl.distill.link import Wants
from edl.distill.narrowing import NarrowAnswer
from edl.distill.plan import Plan
from edl.errors import ConfigError
from edl.serving.wire import labels, narrow
from edl.serving.wire.description import TensorSpec
from edl.serving.wire.labels import TARGET_FEED
from edl.store.records import Column, Kind


class LabelKinds:
    """The kinds of labels of one reader, which asks for ``predicts`` as ``wants`` says.
    ``keyed_by``: the slots that rows are known by, if not by all that they hold.
    """

    def __init__(self, predicts: Sequence[str], wants: Wants, keyed_by: tuple[str, ...]) -> None:
        self._wants = wants
        self._keyed_by = keyed_by
        self._slots = {name for name in wants.ins or () if name is not None}
        self._predictions = [_canonical(predict) for predict in predicts]
        # Each as it may be stored: in the dtype that the student says, or as it is.
        self._forms = {each: each for each in self._predictions}
        self._forms.update(
            (narrow.ask(*said), said[0]) for said in wants.wire.items() if said[0] in self._forms
        )

    def of(self, plan: Plan, model: str) -> list[Kind]:
        """What answers are stored as, for each prediction. What the reader says of narrower dtypes
        counts, whether the teacher of this plan can do it or not: another one of its model may.
        Raises ConfigError for what cannot be stored.
        """
        wire = self._wants.wire
        fed = {name: spec for _, name, spec in plan.feeds}
        trimmed = plan.lengths is not None and not plan.whole
        kinds = []
        for ask in plan.asks:
            slots = dict(fed)
            targets, drawn = "", False
            if isinstance(ask, Labelling):
                prediction, columns = labels.ask(ask.name, ask.form), ask.columns
                drawn = ask.form.samples > 0
                if ask.form.target and plan.targets is not None:
                    targets = plan.targets[1]
                    slots[targets] = ask.feeds[TARGET_FEED]
            else:
                prediction = ask.name if isinstance(ask, NarrowAnswer) else ask
                columns = {name: spec for name, spec in plan.fetches if name == prediction}
                if prediction in _narrower(wire, columns):
                    prediction = narrow.ask(prediction, wire[prediction])
            sequences = [name for name, spec in slots.items() if spec.pad is not None]
            kinds.append(
                Kind(
                    model,
                    prediction,
                    tuple(sorted(slots)),
                    tuple(_column(name, spec) for name, spec in columns.items()),
                    # What is drawn depends on whole rows.
                    tuple(sorted(sequences)) if trimmed and not drawn else (),
                    tuple(sorted(plan.unfed)),
                    targets,
                    drawn,
                    self._keyed_by,
                    tuple(_as(name, wire[name]) for name in _narrower(wire, slots)),
                )
            )
        return kinds

    def stored(self, kinds: Iterable[Kind]) -> dict[str, list[Kind]]:
        """The models of which there is every prediction among ``kinds``, and the kind of each."""
        models: dict[str, dict[str, Kind]] = {}
        for kind in kinds:
            prediction = self._forms.get(kind.prediction)
            if prediction is not None and self._fits(kind):
                found = models.setdefault(kind.model, {})
                before = found.get(prediction)
                if before is None or _as_asked(kind) >= _as_asked(before):
                    found[prediction] = kind
        return {
            model: [found[prediction] for prediction in self._predictions]
            for model, found in models.items()
            if len(found) == len(self._predictions)
        }

    def _fits(self, kind: Kind) -> bool:
        """Whether a teacher would be asked for just that by this reader."""
        wants = self._wants
        return (
            kind.keyed_by == self._keyed_by
            and self._slots >= set(kind.feeds)
            and not self._slots & set(kind.unfed)
            and kind.targets in ("", wants.targets)
            and (wants.lengths is not None or not kind.trimmed)
            and set(kind.rounded) <= {_as(*said) for said in wants.wire.items()}
        )


def _as_asked(kind: Kind) -> tuple[bool, bool, bool]:
    """The more, the nearer to what a teacher would answer that can do all that is asked of it."""
    return narrow.is_asked(kind.prediction), bool(kind.rounded), kind.trimmed


def _narrower(wire: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> list[str]:
    """What of these loses something when it travels as is said, sorted."""
    floats = ((name, narrow.ANSWER_DTYPES.get(wire.get(name, ""))) for name in sorted(specs))
    return [name for name, sent in floats if sent and narrow.widens(sent, specs[name].dtype)]


def _as(name: str, dtype: str) -> str:
    """How a kind names a feed that has travelled so."""
    return f"{name} as {dtype}"


def _column(name: str, spec: TensorSpec) -> Column:
    if spec.dtype == "str":
        raise ConfigError(f"{name!r} holds strings, which are not stored: leave out store=")
    return Column(name, spec.shape, spec.dtype, spec.pad)


def _canonical(predict: str) -> str:
    """A prediction as kinds name it."""
    name, form = labels.split(predict)
    return predict if form is None else labels.ask(name, form)
