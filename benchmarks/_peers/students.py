"""The processes of ``process.py``, as peers.py sees them."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

from _children import Child

from _peers.aims import Sample

Turn = Callable[[], Sample]


def student(
    pipeline: str, work: dict[str, Any], options: dict[str, Any], python: str = sys.executable
) -> Child:
    """A process with one pipeline."""
    spec = {"pipeline": pipeline, "work": work, "options": options}
    return Child("_peers.process", json.dumps(spec), python=python)


def started(stack: ExitStack, *specs: tuple) -> list[Child]:
    """Students that are ready, until the stack is closed. Raises NotReady."""
    found = [student(*spec) for spec in specs]
    for child in found:
        stack.callback(child.close)
    for child in found:
        child.wait_until_ready()
    return found


def sample(said: dict[str, float]) -> Sample:
    return Sample(said["batches"] / said["seconds"], said["cpu"] / said["batches"])


def together(crowd: Sequence[Child], batches: int) -> Sample:
    """All at once, each its part: from the first one's begin to the last one's end."""
    for child in crowd:
        child.tell("batches", batches)
    said = [child.hear() for child in crowd]
    elapsed = max(each["ended"] for each in said) - min(each["begun"] for each in said)
    total = batches * len(crowd)
    return Sample(total / elapsed, sum(each["cpu"] for each in said) / total)


def turns_of(lines: Mapping[str, Turn], rounds: int) -> dict[str, list[Sample]]:
    """All lines in turn in every round, in an order that is turned each time."""
    samples: dict[str, list[Sample]] = {name: [] for name in lines}
    for number in range(rounds):
        for name in reversed(list(lines)) if number % 2 else lines:
            samples[name].append(lines[name]())
    return samples


def recorded(stack: ExitStack, work: dict[str, Any], given: dict[str, Any], batches: int) -> Child:
    """A loop over a model; what it says is what is expected of all from now on."""
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    path = str(Path(directory) / "answers.npy")
    with ExitStack() as once:
        (model,) = started(once, ("predictor", work, given))
        model.ask("record", batches, path)
    work["recorded"] = path
    (loop,) = started(stack, ("predictor", work, given))
    return loop
