"""A language model elsewhere, for ``edl teacher --python _language:Elsewhere``.

It answers with labels that were made beforehand, in one of FORMS, after the time that computing
them is said to take: a teacher with an accelerator, which costs this machine the transfer but not
the computation. EDL_ELSEWHERE says which, as JSON: ``form``, ``classes``, ``tokens`` of a row,
``seconds`` of a row.
"""

from __future__ import annotations

import json
import os
import time
from typing import Optional

import numpy as np

from edl.serving import Description, TensorSpec
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire.labels import SEED_FEED, LabelForm, column, narrow_ids

#: What is sent of each token's logits; where it is no form of labels, all of them.
FORMS: dict[str, Optional[LabelForm]] = {
    "whole, float32": None,
    "whole, float16": None,
    "top-64": LabelForm(64),
    "48 + 16": LabelForm(48, samples=16),
    "8 + 8": LabelForm(8, samples=8),
}
ROWS = 8  # a batch's; the answers to one are held


def answers(form: str, classes: int, tokens: int) -> dict[str, np.ndarray]:
    """What a model says of a batch, by the fetch names of a program that makes such labels."""
    random = np.random.default_rng(0)
    made = FORMS[form]
    if made is None:
        logits = random.standard_normal((ROWS, tokens, classes), "f4")
        return {"logits": logits.astype(np.float16 if form.endswith("16") else np.float32)}
    few = random.standard_normal((1, 64, classes), "f4")  # tokens; the rest are like these
    parts = sparse_labels(few, made, np.zeros(1, np.int64))
    arrays = {}
    for part, array in parts.items():
        on_wire = narrow_ids(array, classes) if array.dtype == np.int32 else array
        again = np.resize(np.arange(few.shape[1]), tokens)
        arrays[f"{column('logits', part)}?{made}"] = np.repeat(on_wire[:, again], ROWS, axis=0)
    return arrays


class Elsewhere:
    """The predictor."""

    def __init__(self) -> None:
        said = json.loads(os.environ["EDL_ELSEWHERE"])
        form, tokens, self._seconds = said["form"], said["tokens"], said["seconds"]
        self._answers = answers(form, said["classes"], tokens)
        made = FORMS[form]
        seeds = {SEED_FEED: TensorSpec((), "int64")} if made and made.samples else {}
        self.description = Description(
            {"input_ids": TensorSpec((tokens,), "int64"), **seeds},
            {
                name: TensorSpec(array.shape[1:], array.dtype.name)
                for name, array in self._answers.items()
            },
        )

    def run(self, feeds: dict, fetches: list) -> dict:
        """The labels, whatever the text."""
        rows = len(feeds["input_ids"])
        time.sleep(rows * self._seconds)
        return {name: self._answers[name][:rows] for name in fetches}
