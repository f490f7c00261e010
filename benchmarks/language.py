"""Labels of language models: what travels, what it costs, and what the student waits for.

OMP_NUM_THREADS=1 python benchmarks/language.py [--json FILE] [wire] [json] [training]

*wire*: a reader with one ``edl teacher`` whose model costs nothing, so that only transfer and what
both sides do to each token are measured: whole logits in float32 and float16, and sparse labels.
Each line is a student of its own. Bytes a token are those of all that crossed the loopback device
meanwhile, requests and the headers of TCP included: measure on a machine that does nothing else.
Memory is the most that the student, and all of the teacher's processes together, had.

*json*: the same numbers in JSON, with arrays as base64, as servers with OpenAI's interface send
them, beside the frames of this project; encoding and decoding in one process.

*training*: a student with its labels' loss, whose teacher is in its own process ("online"), or a
service of so many SIMULATED REMOTE teachers: real ``edl teacher`` processes that receive the real
tokens and send labels that were made before, after the time that the teacher's forward pass took
in the student's process, so that what they would compute elsewhere costs this machine nothing.
"Pure" is the same student with labels that are there already: the same loss, no teacher.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _language import FORMS, ROWS, answers
from _teachers import teachers
from rich.console import Console
from rich.table import Table

from edl.distill import DistillReader
from edl.serving.wire import frame
from edl.serving.wire.labels import widen_ids
from edl.serving.wire.messages import decode_response, encode_response

CONSOLE = Console(width=None if sys.stdout.isatty() else 120)
PARTS = ("wire", "json", "training")
HOST = ["--python", "_language:Elsewhere", "--max-batch-rows", str(ROWS)]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="wire|json|training", default=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--student", type=json.loads, help=argparse.SUPPRESS)  # one line's
    options = parser.parse_args()
    logging.getLogger("edl").setLevel(logging.WARNING)
    if options.student:
        print(json.dumps(read(**options.student)))
        return
    if not set(options.parts) <= set(PARTS):
        parser.error(f"there are {', '.join(PARTS)}")
    figures = {}
    if "wire" in options.parts:
        figures["wire"] = measure_wire(options.rounds)
    if "json" in options.parts:
        figures["json"] = measure_json(options.rounds * 5)
    if "training" in options.parts:
        figures["training"] = measure_training(options.rounds)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def elsewhere(
    number: int, form: str, classes: int, tokens: int, seconds: float = 0.0
) -> contextlib.AbstractContextManager[list[str]]:
    """So many teachers whose model costs nothing here."""
    said = {"form": form, "classes": classes, "tokens": tokens, "seconds": seconds}
    return teachers(number, HOST, {"EDL_ELSEWHERE": json.dumps(said)})


# --- wire ---------------------------------------------------------------------------------------


def measure_wire(rounds: int) -> list[dict[str, Any]]:
    """One line for each form and number of classes."""
    table = Table("classes", "sent of each token", "tokens of a batch", title="wire, one teacher")
    for column_name in ("tokens/s", "spread", "bytes a token", "student, GB", "teacher, GB"):
        table.add_column(column_name, justify="right")
    lines = []
    for classes in (32_000, 150_000):
        for form, made in FORMS.items():
            tokens = 2048 if made else 8 if classes > 100_000 else 32
            line = {"classes": classes, "form": form, "tokens": tokens}
            line |= wire_line(form, classes, tokens, rounds)
            lines.append(line)
            table.add_row(
                f"{classes:,}", form, f"{ROWS} x {tokens:,}", f"{line['tokens_per_s']:,.0f}",
                f"{line['spread']:.0%}", f"{line['bytes_per_token']:,.0f}",
                f"{line['student_gb']:.2f}", f"{line['teacher_gb']:.2f}",
            )  # fmt: skip
    CONSOLE.print(table)
    return lines


def wire_line(form: str, classes: int, tokens: int, rounds: int) -> dict[str, float]:
    """A teacher, and a student for each round."""
    with elsewhere(1, form, classes, tokens) as endpoints:
        given = {"endpoint": endpoints[0], "form": form, "tokens": tokens}
        command = [sys.executable, __file__, "--student", json.dumps(given)]
        found = [json.loads(subprocess.check_output(command)) for _ in range(rounds)]
        most = teacher_memory()
    speeds = [each["tokens_per_s"] for each in found]
    middle = statistics.median(speeds)
    return {
        "tokens_per_s": middle,
        "spread": (max(speeds) - min(speeds)) / middle,
        "bytes_per_token": statistics.median(each["bytes_per_token"] for each in found),
        "student_gb": max(each["gb"] for each in found),
        "teacher_gb": most,
    }


def read(endpoint: str, form: str, tokens: int, seconds: float = 4.0) -> dict[str, float]:
    """The student: reads for so long, and says what came."""
    ids = np.random.default_rng(0).integers(0, 30_000, (ROWS, tokens))
    stop = float("inf")

    def texts() -> Iterator[dict[str, np.ndarray]]:
        while time.perf_counter() < stop:
            yield {"input_ids": ids}

    made = FORMS[form]
    sparse = {"top_k": made.top_k, "samples": made.samples} if made else {}
    with DistillReader(["input_ids"], ["logits"], texts, [endpoint], **sparse) as reader:
        batches = iter(reader)
        for _ in range(10):
            next(batches)
        started, before, count = time.perf_counter(), crossed(), 0
        stop = started + seconds
        for count, _ in enumerate(batches, 1):  # noqa: B007
            pass
        took, passed = time.perf_counter() - started, crossed() - before
    rows = count * ROWS
    return {
        "tokens_per_s": rows * tokens / took,
        "bytes_per_token": passed / rows / tokens,
        "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def crossed() -> int:
    """Bytes that have crossed the loopback device."""
    return int(Path("/sys/class/net/lo/statistics/rx_bytes").read_text())


def teacher_memory() -> float:
    """GB that this process's children and theirs have had at most, each its own."""
    total, parents = 0, [os.getpid()]
    while parents:
        parent = parents.pop()
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            total += int(status.partition("VmHWM:")[2].split()[0])
            parents.append(int(child))
    return total / 1e6


# --- json ---------------------------------------------------------------------------------------


def measure_json(rounds: int) -> list[dict[str, Any]]:
    """The labels of a batch, there and back again."""
    table = Table("8 x 2,048 tokens of 150,000 classes", title="the same numbers in JSON")
    for name in ("bytes a token", "encode, ms", "decode, ms", "both, ratio"):
        table.add_column(name, justify="right")
    lines = []
    for form in ("top-64", "8 + 8"):
        said = {
            name.partition("?")[0]: array for name, array in answers(form, 150_000, 2048).items()
        }
        ways = {"frame": (in_frame, from_frame), "base64 in JSON": (in_json, from_json)}
        times: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in ways}
        sizes = {}
        for _ in range(rounds):
            for way, (encode, decode) in ways.items():
                started = time.perf_counter()
                sent = encode(said)
                encoded = time.perf_counter()
                decode(sent)
                times[way][0].append(encoded - started)
                times[way][1].append(time.perf_counter() - encoded)
                sizes[way] = len(sent) / ROWS / 2048
        base = sum(map(statistics.median, times["frame"]))
        for way, (encoding, decoding) in times.items():
            there, back = statistics.median(encoding) * 1e3, statistics.median(decoding) * 1e3
            ratio = (there + back) / base / 1e3
            lines.append({"form": form, "way": way, "bytes_per_token": sizes[way], "ratio": ratio})
            table.add_row(
                f"{form}, {way}",
                f"{sizes[way]:,.0f}",
                f"{there:.1f}",
                f"{back:.1f}",
                f"{ratio:.1f}",
            )
    CONSOLE.print(table)
    return lines


def in_frame(arrays: dict[str, np.ndarray]) -> bytes:
    """As a teacher sends them; joined, as a socket would."""
    return b"".join(frame.encode_frame(frame.ResponseMeta(1), encode_response(arrays)))


def from_frame(sent: bytes) -> dict[str, np.ndarray]:
    """As a reader reads them."""
    body_size, meta_size = frame.parse_header(memoryview(sent)[: frame.HEADER_SIZE], len(sent))
    body = memoryview(sent)[frame.HEADER_SIZE :][:body_size]
    return decode_response(frame.parse_body(body, meta_size)[1]).outputs


def in_json(arrays: dict[str, np.ndarray]) -> bytes:
    """Each array's bytes as base64."""
    said = {
        name: {
            "shape": array.shape,
            "dtype": array.dtype.str,
            "data": base64.b64encode(array).decode(),
        }
        for name, array in arrays.items()
    }
    return json.dumps(said).encode()


def from_json(sent: bytes) -> dict[str, np.ndarray]:
    """The inverse."""
    return {
        name: np.frombuffer(base64.b64decode(said["data"]), said["dtype"]).reshape(said["shape"])
        for name, said in json.loads(sent).items()
    }


# --- training -----------------------------------------------------------------------------------

CLASSES, TOKENS, STEPS, FORM = 4_000, 128, 32, "8 + 8"
SIMULATED = (1, 2, 4, 8)
FILLING = 6


def measure_training(rounds: int) -> list[dict[str, Any]]:
    """Tokens a second of the three modes, in turn."""
    import paddle

    teacher = transformer(256, layers=4)
    teacher.eval()
    texts = [paddle.randint(0, CLASSES, [ROWS, TOKENS]) for _ in range(STEPS)]
    seconds = statistics.median(forward_seconds(teacher, ids) for ids in texts[:8])
    speeds: dict[str, list[float]] = {"pure": [], "online": []}
    speeds |= {f"service, {count} simulated remote": [] for count in SIMULATED}
    with elsewhere(max(SIMULATED), FORM, CLASSES, TOKENS, seconds / ROWS) as endpoints:
        for number in range(rounds + 1):
            for mode, found in speeds.items():
                with labelled(mode, texts, teacher, endpoints) as batches:
                    speed = train(batches)
                if number:  # the first one warms up
                    found.append(speed)
    return show_training(speeds, seconds)


def transformer(width: int, layers: int) -> Any:
    """A small causal language model, in plain Paddle: ids (rows, tokens) to logits."""
    import paddle

    class Transformer(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            layer = paddle.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0)
            self.embedding = paddle.nn.Embedding(CLASSES, width)
            self.positions = paddle.nn.Embedding(TOKENS, width)
            self.body = paddle.nn.TransformerEncoder(layer, layers)
            self.head = paddle.nn.Linear(width, CLASSES)
            self.later = paddle.triu(paddle.full([TOKENS, TOKENS], -1e9), 1)

        def forward(self, ids: Any) -> Any:
            hidden = self.embedding(ids) + self.positions(paddle.arange(TOKENS))
            return self.head(self.body(hidden, self.later))

    paddle.seed(layers)
    return Transformer()


def label(teacher: Any, ids: Any) -> dict[str, Any]:
    """The teacher's labels, in this process."""
    import paddle

    from edl.serving.model.sparse import sparse_labels

    with paddle.no_grad():
        return sparse_labels(teacher(ids), FORMS[FORM], paddle.arange(ROWS))


def forward_seconds(teacher: Any, ids: Any) -> float:
    """Of one batch, labels included."""
    started = time.perf_counter()
    label(teacher, ids)["values"].numpy()
    return time.perf_counter() - started


@contextlib.contextmanager
def labelled(
    mode: str, texts: list[Any], teacher: Any, endpoints: list[str]
) -> Iterator[Iterator[dict[str, Any]]]:
    """A run's batches, with labels from where the mode says."""
    import paddle

    form = FORMS[FORM]
    assert form is not None
    if mode == "pure":
        made = answers(FORM, CLASSES, TOKENS)
        there = {
            part: paddle.to_tensor(widen_ids(array, 3) if array.dtype == np.uint8 else array)
            for part, array in zip(form.parts, made.values())
        }
        yield ({"input_ids": ids, **there} for ids in texts)
    elif mode == "online":
        yield ({"input_ids": ids, **label(teacher, ids)} for ids in texts)
    else:
        count = int(mode.split()[1])
        sparse = {"top_k": form.top_k, "samples": form.samples}
        source = [{"input_ids": ids} for ids in texts]
        with DistillReader(
            ["input_ids"], ["logits"], source, endpoints[:count], **sparse
        ) as reader:
            yield (
                {name.rpartition(".")[2]: value for name, value in batch.items()}
                for batch in reader
            )


def train(batches: Iterator[dict[str, Any]]) -> float:
    """Tokens a second, without the first steps, while the first answers are on their way."""
    import paddle

    from edl.distill.losses import sparse_distillation

    student = transformer(128, layers=2)
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=student.parameters())
    started, counted = 0.0, 0
    for step, batch in enumerate(batches):
        if step == FILLING:
            started = time.perf_counter()
        logits = student(batch.pop("input_ids"))
        parts = {part: batch[part] for part in ("values", "indices", "logsumexp", "samples")}
        loss = sparse_distillation(logits, **parts)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        float(loss)
        counted += step >= FILLING
    return counted * ROWS * TOKENS / (time.perf_counter() - started)


def show_training(speeds: dict[str, list[float]], seconds: float) -> list[dict[str, Any]]:
    """The table; ratios are of a round's own lines."""
    table = Table(
        "teacher",
        title=f"training, {FORM}; a teacher's forward pass takes {seconds * 1e3:.0f} ms a batch",
    )
    for name in ("tokens/s", "of pure", "from", "to"):
        table.add_column(name, justify="right")
    lines = []
    for mode, found in speeds.items():
        ratios = [mine / pure for mine, pure in zip(found, speeds["pure"])]
        line = {"mode": mode, "tokens_per_s": statistics.median(found)}
        line |= {"of_pure": statistics.median(ratios), "from": min(ratios), "to": max(ratios)}
        lines.append(line)
        table.add_row(
            mode, f"{line['tokens_per_s']:,.0f}", f"{line['of_pure']:.2f}", f"{line['from']:.2f}",
            f"{line['to']:.2f}",
        )  # fmt: skip
    CONSOLE.print(table)
    return lines


if __name__ == "__main__":
    main()
