"""Sparse labels as a reader gets them: made by the teacher's server, by its program, or here.

What a teacher can do is seen in its description, so teachers of all kinds may work side by side:
the columns are the same (see ``serving.wire.labels``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Optional

import numpy as np

from edl.errors import ConfigError, WireError
from edl.serving.wire import labels
from edl.serving.wire.description import Description, TensorSpec
from edl.serving.wire.labels import LabelForm


class Maker(Enum):
    """Who makes the labels."""

    SERVER = auto()
    PROGRAM = auto()
    STUDENT = auto()


@dataclass(frozen=True)
class Labelling:
    """How the labels of one prediction come from one teacher. ``classes``: -1 if that is not known.
    ``program``: the form in which the teacher's program makes them, if it does.
    """

    name: str
    form: LabelForm
    maker: Maker
    spec: TensorSpec
    program: Optional[LabelForm] = None

    @property
    def columns(self) -> dict[str, TensorSpec]:
        """Names and kinds of the columns."""
        specs = labels.part_specs(self.name, self.spec, self.form)
        return {labels.column(self.name, part): spec for part, spec in specs.items()}

    @property
    def fetches(self) -> list[str]:
        """What to ask for."""
        if self.maker is Maker.SERVER:
            return [labels.ask(self.name, self.form)]
        if self.program is None:
            return [self.name]
        return [self._of_program(part) for part in self.form.parts]

    @property
    def feeds(self) -> dict[str, TensorSpec]:
        """What making them takes beside the model's own feeds, wherever they are made."""
        return labels.feed_specs(self.spec, self.program or self.form)

    def read(
        self, outputs: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The columns, from a teacher's answer. ``given``: the arrays for ``feeds``.

        Raises WireError for an answer that is not what was asked for, ConfigError for logits of
        which no labels can be made.
        """
        if self.maker is Maker.STUDENT:
            parts = self._made_here(outputs, given)
        else:
            program = self.program
            names = {
                part: labels.column(self.name, part) if program is None else self._of_program(part)
                for part in self.form.parts
            }
            parts = {part: _output(outputs, name) for part, name in names.items()}
            parts = labels.as_parts(parts, self.spec.shape[-1])
        widths = {
            labels.VALUES: self.form.top_k,
            labels.INDICES: self.form.top_k,
            labels.SAMPLES: self.form.samples,
        }
        if self.program is not None:
            parts = {part: _first(array, widths.get(part)) for part, array in parts.items()}
        self._check_shapes(parts)
        try:
            labels.check_range(parts[labels.VALUES], parts[labels.LOGSUMEXP])
        except WireError as error:
            raise ConfigError(f"labels of {self.name!r}: {error}") from error
        return {labels.column(self.name, part): array for part, array in parts.items()}

    def _made_here(
        self, outputs: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        from edl.serving.model.sparse import sparse_labels

        logits = _output(outputs, self.name)
        wrong = self.spec.mismatch(logits)
        if wrong:
            raise WireError(f"{self.name!r}: {wrong}")
        return sparse_labels(
            logits, self.form, given.get(labels.SEED_FEED), given.get(labels.TARGET_FEED)
        )

    def _check_shapes(self, parts: Mapping[str, np.ndarray]) -> None:
        """Raises WireError for a part that is not of its kind, or not of as many rows and tokens as
        the others.
        """
        specs = labels.part_specs(self.name, self.spec, self.form)
        lead = parts[labels.LOGSUMEXP].shape
        for part, array in parts.items():
            column = labels.column(self.name, part)
            wrong = specs[part].mismatch(array)
            if wrong:
                raise WireError(f"{column!r}: {wrong}")
            if array.shape[: len(lead)] != lead:
                raise WireError(f"{column!r} has shape {array.shape} beside a logsumexp of {lead}")

    def _of_program(self, part: str) -> str:
        return f"{labels.column(self.name, part)}?{self.program}"


def _output(outputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in outputs:
        raise WireError(f"its answer lacks {name!r}")
    return outputs[name]


def _first(array: np.ndarray, width: Optional[int]) -> np.ndarray:
    """The first so many of each row's, if there are more."""
    return array if width is None or not array.ndim else array[..., :width]


def plan_labelling(name: str, form: LabelForm, description: Description) -> Labelling:
    """How labels of the fetch ``name`` come from a teacher that serves ``description``.

    Raises ConfigError if it has no such fetch, or nothing of which these labels can be made.
    """
    program = labels.program_makes_labels(description, name)
    if program is not None:
        _check_program(name, form, program)
        values = description.fetches[f"{labels.column(name, labels.VALUES)}?{program}"]
        pad = None if values.pad is None else 0.0
        spec = TensorSpec((*values.shape[:-1], -1), "float32", pad)
        return Labelling(name, form, Maker.PROGRAM, spec, program)
    spec = description.fetches[name]
    labels.part_specs(name, spec, form)
    able = labels.server_makes_labels(description)
    return Labelling(name, form, Maker.SERVER if able else Maker.STUDENT, spec)


def _check_program(name: str, form: LabelForm, program: LabelForm) -> None:
    """Raises ConfigError if a program's labels do not hold what is wanted."""
    enough = (
        program.temperature == form.temperature
        and program.top_k >= form.top_k
        and (not form.samples or program.top_k == form.top_k)  # what is drawn is the rest
        and program.samples >= form.samples
        and program.target >= form.target
    )
    if not enough:
        raise ConfigError(
            f"its model was exported with labels of {name!r} as {program}, from which {form} "
            "cannot be had"
        )


def row_seeds(slots: Sequence[np.ndarray], epoch: int) -> np.ndarray:
    """A seed for each row from what it holds in every slot, and the epoch: (rows,) int64. So
    whoever draws for this row in this epoch draws the same.
    """
    start = epoch.to_bytes(8, "little")
    digests = [hashlib.blake2b(start, digest_size=8) for _ in range(len(slots[0]))]
    for slot in slots:
        for digest, row in zip(digests, slot):
            digest.update(_octets(row))
    seeds = [int.from_bytes(digest.digest(), "little", signed=True) for digest in digests]
    return np.array(seeds, np.int64)


def _octets(row: Any) -> Any:
    """A row's bytes; a view of them where that can be."""
    row = np.asarray(row)
    if row.dtype.kind in "OU":  # text, whose width depends on that of its neighbours
        return repr(row.tolist()).encode()
    return np.ascontiguousarray(row).reshape(-1).view(np.uint8)
