"""A reader's sparse labels, whoever makes them: real teachers, in this process and others."""

import contextlib
import itertools
import logging
import signal

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.distill.labels import plan_labelling, row_seeds
from edl.errors import BatchRefused, ConfigError, ReaderError, SourceError, WireError
from edl.serving import Description, serve
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire import labels
from edl.serving.wire.labels import LabelForm
from tests.support.predictors import Tokens
from tests.support.processes import python_teacher
from tests.support.tokens import BATCHES, ROWS, assert_columns, batches


def reader_of(*teachers, count=BATCHES, **options):
    endpoints = [teacher.endpoint for teacher in teachers]
    options.setdefault("top_k", 8)
    return DistillReader(
        ["ids", "labels"],
        ["logits"],
        source=lambda: batches(count),
        teachers=endpoints,
        **options,
    )


FORMS = [
    (LabelForm(8), {}),
    (LabelForm(8, 2.0), {"temperature": 2}),
    (LabelForm(8, 1.5, 4), {"temperature": 1.5, "samples": 4}),
    (LabelForm(8, 1.0, 3, True), {"samples": 3, "targets": "labels"}),
    (LabelForm(1000), {"top_k": 1000}),
]


@pytest.mark.parametrize(("form", "options"), FORMS)
@pytest.mark.parametrize("which", ["tokens_teacher", "old_tokens_teacher"])
def test_the_columns_follow_the_slots_in_their_order(which, form, options, request):
    with reader_of(request.getfixturevalue(which), teacher_batch_size=4, **options) as reader:
        for (ids, labels, *columns), batch in zip(reader, batches()):
            np.testing.assert_array_equal(ids, batch[0])
            np.testing.assert_array_equal(labels, batch[1])
            assert_columns(columns, form, batch)


def test_a_teacher_and_an_old_one_give_the_same_in_one_epoch(
    tokens_teacher, old_tokens_teacher, caplog
):
    form = LabelForm(8, 2.0, 4, True)
    options = {"temperature": 2.0, "samples": 4, "targets": "labels"}
    with reader_of(
        tokens_teacher, old_tokens_teacher, teacher_batch_size=1, count=60, **options
    ) as reader:
        for (_, _, *columns), batch in zip(reader, batches(60)):
            assert_columns(columns, form, batch)
        by_teacher = reader.stats()["teachers"]
    assert all(figures["rows"] for figures in by_teacher.values()), by_teacher
    said = [record for record in caplog.records if "makes no sparse labels" in record.message]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert old_tokens_teacher.endpoint in said[0].message


def test_a_real_teacher_that_is_killed_changes_no_label():
    form = LabelForm(8, 1.0, 4)
    with python_teacher("Tokens") as first, python_teacher("Tokens") as second:
        with reader_of(first, second, teacher_batch_size=2, count=60, samples=4) as reader:
            for number, ((_, _, *columns), batch) in enumerate(zip(reader, batches(60))):
                if number == 20:
                    first.kill(signal.SIGKILL)
                assert_columns(columns, form, batch)
        assert number == 59


def test_each_epoch_draws_anew_and_a_resumed_student_draws_the_same(tokens_teacher):
    form = LabelForm(8, samples=4)
    with reader_of(tokens_teacher, samples=4) as reader:
        epochs = [list(reader) for _ in range(2)]
        third = iter(reader)
        begun = list(itertools.islice(third, 5))
        state = reader.state_dict()
    for epoch, got in enumerate([*epochs, begun]):
        for (_, _, *columns), batch in zip(got, batches()):
            assert_columns(columns, form, batch, epoch)
    assert (epochs[0][0][5] != epochs[1][0][5]).any()
    with reader_of(tokens_teacher, samples=4) as reader:
        reader.load_state_dict(state)
        rest = list(reader)
    assert len(rest) == BATCHES - 5
    for (_, _, *columns), batch in zip(rest, batches(BATCHES - 5, 5)):
        assert_columns(columns, form, batch, epoch=2)


def test_a_dictionary_gets_the_columns_by_name(tokens_teacher):
    source = [{"ids": ids, "labels": labels} for ids, labels in batches()]
    with DistillReader(
        ["ids", "labels"], ["logits"], source, [tokens_teacher.endpoint], top_k=8, targets="labels"
    ) as reader:
        names = [list(batch) for batch in reader]
    columns = ["logits.values", "logits.indices", "logits.logsumexp", "logits.target"]
    assert names == [["ids", "labels", *columns]] * BATCHES


def test_samples_get_their_own_rows(tokens_teacher):
    def source():
        for ids, _ in batches():
            yield from ((row,) for row in ids)

    with DistillReader(["ids"], ["logits"], teachers=[tokens_teacher.endpoint], top_k=8) as reader:
        reader.set_sample_generator(source).set_teacher_batch_size(ROWS)
        samples = list(reader)
    assert len(samples) == ROWS * BATCHES
    for number, batch in enumerate(batches()):
        rows = samples[number * ROWS : (number + 1) * ROWS]
        assert_columns([np.stack(column) for column in list(zip(*rows))[1:]], LabelForm(8), batch)


def test_tensors_come_as_tensors(tokens_teacher):
    paddle = pytest.importorskip("paddle")
    with reader_of(tokens_teacher, samples=2, return_tensors="pd") as reader:
        batch = next(iter(reader))
    dtypes = [column.dtype for column in batch[2:]]
    assert dtypes == [paddle.float16, paddle.int32, paddle.float32, paddle.int32]


def test_the_workers_of_a_dataloader_give_the_same(tokens_teacher):
    paddle = pytest.importorskip("paddle")
    source = list(batches())
    with DistillReader(
        ["ids", "labels"], ["logits"], source, [tokens_teacher.endpoint], top_k=8, samples=4
    ) as reader:
        loader = paddle.io.DataLoader(reader, batch_size=None, num_workers=2)
        for epoch in range(2):
            for (_, _, *columns), batch in zip(loader, source):
                arrays = [column.numpy() for column in columns]
                assert_columns(arrays, LabelForm(8, samples=4), batch, epoch)


def test_several_models_name_their_columns(tokens_teacher, old_tokens_teacher):
    source = [{"ids": ids} for ids, _ in batches()]
    teachers = {"big": [tokens_teacher.endpoint], "small": [old_tokens_teacher.endpoint]}
    predicts = {"big": ["logits"], "small": ["logits?top_k=3&temperature=2"]}
    with DistillReader(["ids"], predicts, source, teachers, top_k=8) as reader:
        got = list(reader)
    for batch, given in zip(got, batches()):
        columns = list(batch.values())
        assert list(batch)[1:] == [
            f"{name}.logits.{part}"
            for name in ("big", "small")
            for part in ("values", "indices", "logsumexp")
        ]
        assert_columns(columns[1:4], LabelForm(8), given)
        assert_columns(columns[4:], LabelForm(3, 2.0), given)


def test_a_prediction_may_say_its_own_form_beside_a_whole_one():
    specs = {"x": ((20,), "float32")}
    fetches = {"logits": ((20,), "float32"), "hidden": ((20,), "float32")}
    x = np.random.default_rng(0).random((4, 20), np.float32)
    with serve(lambda x: {"logits": 2 * x, "hidden": -x}, specs, fetches) as teacher:
        predicts = ["hidden", "logits?top_k=3"]
        with DistillReader(["x"], predicts, [{"x": x}], [teacher.endpoint]) as reader:
            [batch] = reader
    columns = ["hidden", "logits.values", "logits.indices", "logits.logsumexp"]
    assert list(batch) == ["x", *columns]
    np.testing.assert_array_equal(batch["hidden"], -x)
    np.testing.assert_array_equal(
        batch["logits.indices"], sparse_labels(2 * x, LabelForm(3))["indices"]
    )


def test_seeds_depend_on_every_slot_and_the_epoch_and_not_on_neighbours():
    ids = np.arange(12).reshape(4, 3)
    text = np.array(["a", "b", "c", "d"])
    seeds = row_seeds([ids, text], 0)
    assert len(set(seeds.tolist()) | set(row_seeds([ids, text], 1).tolist())) == 8
    assert row_seeds([ids[2:], text[2:]], 0).tolist() == seeds[2:].tolist()
    longer = np.array(["c", "a long one"])
    assert row_seeds([ids[2:], longer], 0)[0] == seeds[2]
    assert row_seeds([ids[2:], longer.astype(object)], 0)[0] == seeds[2]
    assert (row_seeds([ids[::-1]], 0)[::-1] == row_seeds([ids], 0)).all()
    assert row_seeds([ids[:0]], 0).shape == (0,)


# --- answers of teachers that are broken -----------------------------------------------------


def answer(**parts):
    """To two rows of three tokens, asked for the 4 largest; ``parts`` are other than they should
    be.
    """
    right = {
        "values": np.zeros((2, 3, 4), np.float16),
        "indices": np.zeros((2, 3, 4, 2), np.uint8),
        "logsumexp": np.zeros((2, 3), np.float32),
    }
    return {f"logits.{part}": array for part, array in {**right, **parts}.items()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"values": np.float16(0)},
        {"values": np.zeros((), np.float16), "indices": np.zeros((), np.uint8)},
        {"values": np.zeros((2, 3, 5), np.float16)},
        {"values": np.zeros((2, 4, 4), np.float16)},
        {"values": np.zeros((2, 3, 4), np.int32)},
        {"values": np.array([["a"]])},
        {"indices": np.zeros((2, 3, 5, 2), np.uint8)},
        {"indices": np.zeros((2, 4, 4, 2), np.uint8)},
        {"indices": np.full((2, 3, 4, 2), 255, np.uint8)},
        {"logsumexp": np.zeros((2, 4), np.float32)},
        {"logsumexp": np.zeros((2, 3, 9), np.float32)},
        {"logsumexp": np.zeros(7, np.float32)},
        {"logsumexp": np.array(["x"])},
    ],
    ids=lambda wrong: ",".join(
        f"{part}-{array.dtype}{array.shape}" for part, array in wrong.items()
    ),
)
def test_parts_that_do_not_fit_together_are_no_answer(wrong):
    extra = {labels.DESCRIBED: labels.VERSION}
    said = Description(Tokens.description.feeds, Tokens.description.fetches, extra)
    labelling = plan_labelling("logits", LabelForm(4), said)
    assert set(labelling.read(answer(), {})) == set(answer())
    with pytest.raises(WireError):
        labelling.read(answer(**wrong), {})


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k must be from 1 to 65536, not 0"),
        ({"top_k": 8, "temperature": 0}, "temperature must be from"),
        ({"top_k": 8, "samples": -1}, "samples must be from"),
        ({"top_k": None, "temperature": 2}, "set top_k, too"),
        ({"top_k": None, "samples": 2}, "set top_k, too"),
        ({"top_k": None, "targets": "labels"}, "set top_k, too"),
        ({"targets": "label"}, "targets is 'label', which is not one of ins"),
    ],
)
def test_what_cannot_be_is_refused_when_the_reader_is_made(options, words):
    with pytest.raises(ConfigError, match=words):
        DistillReader(["ids", "labels"], ["logits"], **{"top_k": 8, **options})


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        ("logits?top_k=x", "is none of top_k=N"),
        ("logits?top_k=8&target", "need targets="),
        ("logits?top_k=8&target&target", "is said twice"),
    ],
)
def test_a_form_that_is_none_is_refused_when_the_reader_is_made(predict, words):
    with pytest.raises(ConfigError, match=words):
        DistillReader(["ids"], [predict])


def test_one_fetch_in_two_forms_is_refused():
    with pytest.raises(ConfigError, match="different names"):
        DistillReader(["ids"], ["logits?top_k=8", "logits?top_k=4"])


@pytest.mark.parametrize("which", ["tokens_teacher", "old_tokens_teacher"])
def test_more_than_there_are_classes_is_refused(which, request):
    with reader_of(request.getfixturevalue(which), top_k=1001) as reader:
        with pytest.raises(ReaderError, match="top_k=1001 is more than the 1000 classes"):
            next(iter(reader))


@pytest.mark.parametrize("which", ["tokens_teacher", "old_tokens_teacher"])
def test_targets_of_another_shape_are_the_sources_mistake(which, request):
    source = [(np.zeros((2, 5), np.int64), np.zeros((2, 5, 3), np.int64))]
    with DistillReader(
        ["ids", "labels"],
        ["logits"],
        source,
        [request.getfixturevalue(which).endpoint],
        top_k=2,
        targets="labels",
    ) as reader:
        with pytest.raises(SourceError, match=r"slot 1 \('labels'\), the targets: expected shape"):
            next(iter(reader))


@pytest.mark.parametrize("able", [True, False])
def test_logits_beyond_float16_are_refused_in_words(able):
    specs = {"x": ((4,), "float32")}
    with contextlib.ExitStack() as stack:
        teacher = stack.enter_context(serve(lambda x: x + 1e5, specs, {"logits": specs["x"]}))
        if not able:
            engine = teacher._server.engine
            engine.description = Description(engine.description.feeds, engine.description.fetches)
        source = [(np.zeros((2, 4), np.float32),)]
        reader = DistillReader(["x"], ["logits"], source, [teacher.endpoint], top_k=2)
        with stack.enter_context(reader), pytest.raises(BatchRefused, match="beyond float16"):
            next(iter(reader))
