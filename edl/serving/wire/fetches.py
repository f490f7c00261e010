"""What a fetch name of any origin asks for: an output as it is, narrower, or its sparse labels."""

from __future__ import annotations

from typing import Optional, Union

from edl.serving.wire import labels, narrow
from edl.serving.wire.description import Description, TensorSpec
from edl.serving.wire.labels import LabelForm
from edl.serving.wire.narrow import Narrow

#: In which form an output is wanted; None: as it is.
Form = Optional[Union[LabelForm, Narrow]]


def resolve(description: Description, fetch: str) -> tuple[str, Form]:
    """What a name asks of a model: one of its fetches, and in which form. Raises ConfigError, which
    names it, if it is neither.
    """
    if fetch not in description.fetches and narrow.is_asked(fetch):
        return narrow.parse(description, fetch)
    return labels.resolve(description, fetch)


def answer_specs(name: str, spec: TensorSpec, form: Form) -> dict[str, TensorSpec]:
    """By name, shape and dtype of each tensor that answers for a fetch of this kind. Raises
    ConfigError if nothing has that form.
    """
    if form is None:
        return {name: spec}
    if isinstance(form, Narrow):
        return {name: narrow.answer_spec(spec, form)}
    parts = labels.part_specs(name, spec, form)
    return {labels.column(name, part): kind for part, kind in parts.items()}
