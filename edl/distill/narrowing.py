"""What travels in a narrower dtype because the student says so: slots there, predictions back.

Teachers that can do it say so (see ``serving.wire.narrow``); others are sent, and send, the whole.
Either way the student gets the dtypes that a teacher promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from edl.errors import ConfigError, SourceError, WireError
from edl.serving.wire import narrow
from edl.serving.wire.description import Description, TensorSpec

#: What has been made of a task's rows already, so that nothing is made twice.
Made = dict[Any, np.ndarray]

_WHOLE = "or leave it out of wire"


def check_wire(
    wire: Optional[Mapping[str, str]],
    slots: Optional[Sequence[Optional[str]]],
    predictions: Iterable[str],
) -> dict[str, str]:
    """What a student says of how slots and predictions travel, if it can be. ``slots``: None where
    each request names its own. ``predictions``: as they are asked for. Raises ConfigError.
    """
    if not isinstance(wire, Mapping) and wire is not None:
        raise ConfigError(f"wire must be a mapping from names to dtypes, not {wire!r}")
    asked = {name.partition("?")[0]: name for name in predictions}
    for name, dtype in (wire or {}).items():
        sent, known = slots is None or name in slots, [*filter(None, slots or ()), *asked]
        if not sent and name not in asked:
            raise ConfigError(
                f"wire names {name!r}, which is neither a slot nor a prediction; there are "
                f"{', '.join(map(repr, known))}"
            )
        able = narrow.ANSWER_DTYPES if name in asked else narrow.FEED_DTYPES
        if dtype not in able:
            what = "predictions" if name in asked else "slots"
            raise ConfigError(
                f"wire says {dtype!r} of {name!r}; {what} travel as {', '.join(able)}, or as they "
                "are"
            )
        if name in asked and asked[name] != name:
            raise ConfigError(
                f"wire names {name!r}, of which sparse labels are asked for: these are narrow "
                "already; leave it out"
            )
    return dict(wire or {})


@dataclass(frozen=True)
class NarrowAnswer:
    """A prediction that a teacher is to send in a narrower ``dtype``. ``spec``: what the teacher
    serves, and the student gets.
    """

    name: str
    dtype: str
    spec: TensorSpec

    @property
    def fetches(self) -> list[str]:
        """What to ask for."""
        return [narrow.ask(self.name, self.dtype)]

    def read(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The prediction, if it is in an answer, in its own dtype."""
        if self.name not in outputs:
            return {}
        return {self.name: narrow.widen(outputs[self.name], self.spec.dtype)}


@dataclass(frozen=True)
class Widths:
    """How feeds and fetches of one teacher travel: by name, the dtypes as users say them.
    ``whole``: what is said in vain, for the log; empty: nothing.
    """

    feeds: Mapping[str, str]
    fetches: Mapping[str, str]
    whole: str = ""


def plan_widths(
    wire: Mapping[str, str],
    feeds: Mapping[str, TensorSpec],
    fetches: Iterable[str],
    description: Description,
) -> Widths:
    """What of ``wire`` concerns a teacher that serves ``description``, of which ``feeds`` are fed
    and ``fetches`` asked for. What is as narrow at the teacher travels as it is.

    Raises ConfigError for what has no such narrower form.
    """
    kinds = {name: description.fetches[name] for name in fetches}
    sent = _narrower("feed", feeds, wire)
    asked = _narrower("fetch", kinds, wire)
    if narrow.server_narrows(description) or not (sent or asked):
        return Widths(sent, asked)
    said = [f"{name!r} as {feeds[name].dtype} to it" for name in sent]
    said += [f"{name!r} as {kinds[name].dtype} from it" for name in asked]
    return Widths({}, {}, ", ".join(said))


def _narrower(
    kind: str, specs: Mapping[str, TensorSpec], wire: Mapping[str, str]
) -> dict[str, str]:
    """What of ``wire`` is narrower than what the teacher has. Raises ConfigError."""
    narrower = {}
    for name in specs.keys() & wire.keys():
        own, dtype = specs[name].dtype, wire[name]
        sent = narrow.FEED_DTYPES[dtype]
        if narrow.widens(sent, own):
            narrower[name] = dtype
        elif own == "str" or np.dtype(own).itemsize > np.dtype(sent).itemsize:
            raise ConfigError(
                f"its {kind} {name!r} is {own}, which cannot travel as {dtype}: wire says so"
            )
    return {name: narrower[name] for name in wire if name in narrower}


def narrow_slot(array: np.ndarray, spec: TensorSpec, dtype: str, first: int) -> np.ndarray:
    """Rows of a slot, as they travel for a feed of this kind. ``first``: the number of the first
    one, for the error. Raises SourceError for what cannot, with a row and a value.
    """
    if dtype == "uint8" and array.dtype != np.uint8:
        raise SourceError(
            f"it is {array.dtype}, and only uint8 travels as uint8; make it that in the source, "
            f"{_WHOLE}"
        )
    try:
        return spec.conform(narrow.narrowed(array, narrow.FEED_DTYPES[dtype], first), False)
    except WireError as error:
        other = "name bfloat16 for it there, " if dtype == "float16" else ""
        raise SourceError(f"{error}, as which wire has it travel; {other}{_WHOLE}") from error
