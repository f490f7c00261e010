"""A pool's sparse labels, and language models' teachers: the same as a reader's."""

import numpy as np
import pytest

from edl.distill import TeacherPool
from edl.errors import ConfigError, ReaderError, SourceError
from edl.serving.wire.labels import LabelForm
from tests.distill.test_replicas import RIGHT
from tests.distill.test_replicas import teacher as language_model
from tests.support.tokens import assert_columns, batches

PARTS = ["values", "indices", "logsumexp"]


@pytest.mark.parametrize("which", ["tokens_teacher", "old_tokens_teacher"])
@pytest.mark.parametrize("feeds", [None, ["ids", "labels"], ["labels", "ids"]])
def test_a_pool_gets_the_labels_that_a_reader_does(which, feeds, request):
    form = LabelForm(8, 2.0, 4, True)
    options = {"top_k": 8, "temperature": 2.0, "samples": 4, "targets": "labels"}
    endpoint = request.getfixturevalue(which).endpoint
    with TeacherPool(["logits"], endpoint, feeds=feeds, teacher_batch_size=4, **options) as pool:
        for batch in batches():
            answer = pool.infer(dict(zip(["ids", "labels"], batch)))
            names = [f"logits.{part}" for part in (*PARTS, "samples", "target")]
            assert list(answer) == names
            assert_columns(answer.values(), form, batch)


def test_the_same_rows_get_the_same_samples_whatever_surrounds_them(tokens_teacher):
    ids, _ = next(batches())
    with TeacherPool(["logits"], tokens_teacher.endpoint, top_k=8, samples=16) as pool:
        whole = pool.infer({"ids": ids})["logits.samples"]
        for row in range(len(ids)):
            alone = pool.infer({"ids": ids[row : row + 1]})["logits.samples"]
            assert (alone[0] == whole[row]).all()


def test_rows_that_are_routed_have_sparse_labels_too(tokens_teacher, old_tokens_teacher):
    teachers = {"new": tokens_teacher.endpoint, "old": old_tokens_teacher.endpoint}
    with TeacherPool(["logits"], teachers, route="domain", top_k=8) as pool:
        for ids, labels in batches():
            answer = pool.infer({"ids": ids, "domain": ["new", "old", "old"] * 2})
            assert_columns(answer.values(), LabelForm(8), (ids, labels))


def test_models_that_are_all_asked_name_their_columns(tokens_teacher, old_tokens_teacher):
    teachers = {"big": tokens_teacher.endpoint, "small": old_tokens_teacher.endpoint}
    predicts = {"big": ["logits"], "small": ["logits?top_k=3&temperature=2"]}
    batch = next(batches())
    with TeacherPool(predicts, teachers, top_k=8) as pool:
        answer = pool.infer({"ids": batch[0]})
    assert list(answer) == [f"{n}.logits.{part}" for n in ("big", "small") for part in PARTS]
    columns = list(answer.values())
    assert_columns(columns[:3], LabelForm(8), batch)
    assert_columns(columns[3:], LabelForm(3, 2.0), batch)


def test_targets_that_a_request_lacks_are_named(tokens_teacher):
    ids, _ = next(batches())
    with TeacherPool(["logits"], tokens_teacher.endpoint, top_k=8, targets="labels") as pool:
        with pytest.raises(SourceError, match="the request has no 'labels'; it has 'ids'"):
            pool.infer({"ids": ids})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k must be from 1 to 65536, not 0"),
        ({"temperature": 2}, "set top_k, too"),
        ({"targets": "labels"}, "set top_k, too"),
        ({"top_k": 8, "targets": "label", "feeds": ["ids"]}, "which is not one of ins"),
    ],
)
def test_what_cannot_be_is_refused_when_the_pool_is_made(options, words):
    with pytest.raises(ConfigError, match=words):
        TeacherPool(["logits"], "h:1", **options)


def test_an_optional_feed_is_sent_if_the_request_has_it():
    ids = np.array([[1, 2, 3]])
    with language_model(self_test=RIGHT) as teacher, TeacherPool(["score"], teacher.endpoint) as p:
        assert p.infer({"ids": ids})["score"].tolist() == [[1, 2, 3]]
        assert p.infer({"ids": ids, "mask": [[1, 1, 0]]})["score"].tolist() == [[1, 2, 0]]


def test_a_teacher_of_other_tokens_is_not_used():
    with language_model(tokenizer="tokenizer:theirs") as teacher:
        with TeacherPool(["score"], teacher.endpoint, tokenizer="tokenizer:ours") as pool:
            with pytest.raises(ReaderError, match="its ids are of other tokens"):
                pool.infer({"ids": np.array([[1, 2, 3]])})
