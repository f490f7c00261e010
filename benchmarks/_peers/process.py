"""A student of peers.py: a process that measures one pipeline.

    python -m _peers.process '{"pipeline": ..., "work": {...}, "options": {...}}'

says "ready" (or what went wrong) and then measures for each line of JSON on its standard input. A
process of its own, because some pipelines need a Python of their own, and because what a process
costs can be measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator

import numpy as np

from _peers.pipelines import PIPELINES, Run
from _peers.work import NOTHING, Nothing, Recorded, Work, filled_up, images, sentences

#: The slowest have a batch in half a second.
LEAST = 3


class WrongAnswer(Exception):
    """An answer that is not its batch's."""


def measure_for(run: Run, work: Work, seconds: float) -> dict[str, float]:
    """Batches, seconds and CPU seconds of a pipeline that runs for so long, or until it has had
    LEAST batches; a fifth of that time goes before, and is not counted. Raises WrongAnswer.
    """
    begun = time.perf_counter()

    def batches() -> Iterator[np.ndarray]:
        number = 0
        while number < LEAST or time.perf_counter() - begun < seconds * 1.2:
            yield work.batch(number)
            number += 1

    started = first = number = 0
    cpu = 0.0
    for number, answer in enumerate(run(batches())):
        if not work.matches(number, answer):
            raise WrongAnswer(f"answer {number} is not that batch's")
        if not started and time.perf_counter() - begun > seconds * 0.2:
            started, first, cpu = time.perf_counter(), number, time.process_time()
    elapsed = time.perf_counter() - started
    return {"batches": number - first, "seconds": elapsed, "cpu": time.process_time() - cpu}


def measure_batches(run: Run, work: Work, count: int) -> dict[str, float]:
    """The same for so many batches, all of which count; with the times of begin and end."""
    begun, cpu = time.monotonic(), time.process_time()
    number = -1
    for number, answer in enumerate(run(map(work.batch, range(count)))):
        if not work.matches(number, answer):
            raise WrongAnswer(f"answer {number} is not that batch's")
    if number != count - 1:
        raise WrongAnswer(f"{number + 1} answers to {count} batches")
    ended = time.monotonic()
    used = time.process_time() - cpu
    return {
        "batches": count, "seconds": ended - begun, "cpu": used, "begun": begun, "ended": ended
    }  # fmt: skip


def record(run: Run, work: Work, count: int, path: str) -> dict[str, float]:
    """Write what the model says to the first batches, row for row."""
    rows = [row for (answer,) in run(map(work.batch, range(count))) for row in answer]
    np.save(path, np.stack(rows))
    return {"rows": len(rows)}


def prove(run: Run, work: Nothing) -> None:
    """Ask a few batches, and whether all of a batch has arrived. Raises WrongAnswer."""
    batch, expected = work.proof()
    (answer,) = map(list, run([batch]))
    if not all(map(np.array_equal, answer, expected)):
        raise WrongAnswer("a batch did not arrive as it was")
    answers = map(list, run(map(work.batch, range(4))))
    if not all(work.is_whole(number, answer) for number, answer in enumerate(answers)):
        raise WrongAnswer("an answer did not arrive as it was")


def work_of(
    name: str,
    batch_rows: int = 0,
    count: int = 0,
    part: tuple[int, int] = (0, 1),
    recorded: str = "",
) -> Work:
    """The work of that name. ``recorded``: the file with a real model's answers to all rows.
    ``part``: of ``count`` sentences, this one of so many students' (they take turns).
    """
    if name in NOTHING:
        return NOTHING[name]
    answers = np.load(recorded) if recorded else None
    if name == "ResNet-18":
        batches = images(batch_rows)
        feed = "img"
    else:
        mine = sentences(count)[part[0] :: part[1]]
        batches = filled_up(mine, batch_rows)
        feed = "ids"
        answers = answers[part[0] :: part[1]] if answers is not None else None
    starts = np.cumsum([0, *map(len, batches)])
    split = [] if answers is None else [answers[a:b] for a, b in zip(starts, starts[1:])]
    return Recorded(feed, "logits", batches, split)


def main() -> None:
    spec = json.loads(sys.argv[1])
    # Libraries print what they like: not between our lines.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kinds = {"for": measure_for, "batches": measure_batches, "record": record}
    try:
        work = work_of(**spec["work"])
        with PIPELINES[spec["pipeline"]](work, **spec["options"]) as run:
            if isinstance(work, Nothing):
                prove(run, work)
            print(json.dumps("ready"), file=lines)
            for line in sys.stdin:
                kind, *arguments = json.loads(line)
                print(json.dumps(kinds[kind](run, work, *arguments)), file=lines)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"), file=lines)
        raise


if __name__ == "__main__":
    main()
