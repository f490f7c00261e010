"""The processes of ``process.py``, as peers.py sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

from _teachers import ROOT

from _peers.aims import Sample
from edl._process import die_with_parent

Turn = Callable[[], Sample]


class LeftOut(Exception):
    """A line that cannot be measured here; says why."""


class Student:
    """A process with one pipeline. Raises LeftOut if it does not start."""

    def __init__(
        self, pipeline: str, work: dict[str, Any], options: dict[str, Any], python: str = ""
    ) -> None:
        spec = {"pipeline": pipeline, "work": work, "options": options}
        self._process = subprocess.Popen(
            [python or sys.executable, "-W", "ignore", "-m", "_peers.process", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT / "benchmarks",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=die_with_parent,  # noqa: PLW1509 (it only sets a flag)
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Raises LeftOut."""
        said = self._read()
        if said != "ready":
            raise LeftOut(str(said))

    def tell(self, *command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, float]:
        """Raises SystemExit with what the student said in place of figures."""
        said = self._read()
        if not isinstance(said, dict):
            raise SystemExit(f"a student failed: {said}")
        return said

    def ask(self, *command: Any) -> dict[str, float]:
        self.tell(*command)
        return self.hear()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or '"it ended"')

    def close(self) -> None:
        """Let it end by itself, so that it ends what it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def started(stack: ExitStack, *specs: tuple) -> list[Student]:
    """Students that are ready, until the stack is closed. Raises LeftOut."""
    found = [Student(*spec) for spec in specs]
    for student in found:
        stack.callback(student.close)
    for student in found:
        student.wait_until_ready()
    return found


def sample(said: dict[str, float]) -> Sample:
    return Sample(said["batches"] / said["seconds"], said["cpu"] / said["batches"])


def together(crowd: Sequence[Student], batches: int) -> Sample:
    """All at once, each its part: from the first one's begin to the last one's end."""
    for student in crowd:
        student.tell("batches", batches)
    said = [student.hear() for student in crowd]
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


def recorded(
    stack: ExitStack, work: dict[str, Any], given: dict[str, Any], batches: int
) -> Student:
    """A loop over a model; what it says is what is expected of all from now on."""
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    path = str(Path(directory) / "answers.npy")
    with ExitStack() as once:
        (model,) = started(once, ("predictor", work, given))
        model.ask("record", batches, path)
    work["recorded"] = path
    (loop,) = started(stack, ("predictor", work, given))
    return loop
