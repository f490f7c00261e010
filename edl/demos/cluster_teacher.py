"""The teachers of ``edl demo cluster``: a small model that takes its time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edl.serving.model.files import find_model
from edl.serving.model.predictor import PaddlePredictor, PredictorOptions

#: The directory of the model.
MODEL = "EDL_DEMO_MODEL"

#: Seconds for each row beyond what the small model takes, so that three teachers and two students
#: have to share, and a small machine is not busy with it.
_PER_ROW = 0.0008


class Teacher:
    """A Paddle model on one thread, in place of a large one elsewhere."""

    def __init__(self) -> None:
        options = PredictorOptions(cpu_threads=1)
        self._model = PaddlePredictor(find_model(Path(os.environ[MODEL])), options)
        self.description = self._model.description

    def run(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> dict[str, np.ndarray]:
        """See Predictor."""
        rows = len(next(iter(feeds.values())))
        time.sleep(_PER_ROW * rows)
        return self._model.run(feeds, fetches)


def teacher() -> Teacher:
    """For ``edl teacher --python``."""
    return Teacher()
