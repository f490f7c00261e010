"""Teachers of a language model: whose labels are others, or whose tokens are, is not used.

The teachers are real servers in this process, of a function that stands for the model.
"""

import contextlib

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import ConfigError, ReaderError
from edl.serving import Description, ServerOptions, TensorSpec
from edl.serving.server.hosting import FunctionPredictor, ServedTeacher
from edl.serving.worker.handles import WorkerThread

FEEDS = {
    "ids": TensorSpec((-1,), "int64", pad=0),
    "mask": TensorSpec((-1,), "int64", pad=0, optional=True),
}
FETCHES = {"score": TensorSpec((-1,), "float32", pad=0.0)}

RIGHT = {"ids": [[3, 5]], "logs": [[-0.5, -1.0]]}
ROUNDED = {"ids": [[3, 5]], "logs": [[-0.51, -1.01]]}
BROKEN = {"ids": [[5, 3]], "logs": [[-0.1, -3.0]]}


def teacher(factor=1, **extra):
    def score(ids, mask=1):
        return factor * (ids * mask).astype("f4")

    description = Description(FEEDS, FETCHES, extra=extra, fingerprint="model:one")
    predictor = FunctionPredictor(score, description)
    options = ServerOptions(input_bytes=1 << 20)
    return ServedTeacher(lambda inputs: [WorkerThread(predictor, inputs)], options)


def batches(count=20):
    return [(np.full((2, 3), number), np.eye(2, 3, dtype=int)) for number in range(count)]


@contextlib.contextmanager
def reader_of(teachers, ins=("ids", "label"), **options):
    with contextlib.ExitStack() as stack:
        for each in teachers:
            stack.enter_context(each)
        endpoints = [each.endpoint for each in teachers]
        reader = DistillReader(ins, ["score"], source=batches(), teachers=endpoints, **options)
        with contextlib.closing(reader):
            yield reader


def test_a_replica_whose_labels_are_others_is_left_out_with_words():
    replicas = [
        teacher(factor=9, self_test=BROKEN),
        teacher(self_test=RIGHT),
        teacher(self_test=ROUNDED),
    ]
    with reader_of(replicas) as reader:
        for ids, _, score in reader:
            assert (score == ids).all()
        stats = reader.stats()
    assert replicas[0].endpoint not in stats["teachers"]
    assert "its labels are others" in stats["unusable"][replicas[0].endpoint]


def test_a_teacher_of_another_tokenizer_is_refused_by_name():
    replicas = [teacher(tokenizer="tokenizer:a"), teacher(factor=9, tokenizer="tokenizer:b")]
    with reader_of(replicas, tokenizer="tokenizer:a") as reader:
        for ids, _, score in reader:
            assert (score == ids).all()
        said = reader.stats()["unusable"][replicas[1].endpoint]
    assert said == (
        "its tokenizer is tokenizer:b, the student's tokenizer:a: its ids are of other tokens"
    )


def test_a_teacher_that_does_not_say_its_tokenizer_does_not_fit_a_student_that_asks():
    with reader_of([teacher()], tokenizer="tokenizer:a") as reader:
        with pytest.raises(ReaderError, match="does not say which tokenizer its model has"):
            next(iter(reader))


def test_the_students_tokenizer_can_be_a_directory(tmp_path):
    with pytest.raises(ConfigError, match="there is no tokenizer in"):
        DistillReader(["ids"], ["score"], tokenizer=tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with reader_of([teacher(tokenizer="tokenizer:a")], tokenizer=tmp_path) as reader:
        with pytest.raises(ReaderError, match="the student's tokenizer:"):
            next(iter(reader))


def test_an_optional_feed_is_sent_where_the_reader_has_a_slot_of_its_name():
    with reader_of([teacher()], ins=("ids", "mask")) as reader:
        for ids, mask, score in reader:
            assert (score == ids * mask).all()
