"""Rows of different length through real teachers: trimmed on the way there, wide when back."""

import itertools

import numpy as np
import pytest

from edl.distill import DistillReader, Limits, TeacherPool
from edl.errors import SourceError
from edl.serving import Description, ServerOptions, TensorSpec, export_model
from edl.serving.server.hosting import ServedTeacher
from edl.serving.worker.handles import WorkerThread
from tests.support.predictors import Encoder, Sequences
from tests.support.processes import Teacher, eventually, python_teacher

paddle = pytest.importorskip("paddle")

ROWS, WIDTH, BATCHES = 6, 24, 40
PLAIN = Description(
    {name: TensorSpec(spec.shape, spec.dtype) for name, spec in Encoder.description.feeds.items()},
    {
        name: TensorSpec(spec.shape, spec.dtype)
        for name, spec in Encoder.description.fetches.items()
    },
    fingerprint="encoder",
)


def batch(number):
    """ids and their mask, always the same; now and then rows as wide as the batch."""
    generator = np.random.default_rng(number)
    most = WIDTH if number % 5 == 0 else WIDTH // 2
    lengths = generator.integers(1, most + 1, (ROWS, 1))
    mask = (np.arange(WIDTH) < lengths).astype("int64")
    return generator.integers(1, 50, (ROWS, WIDTH)) * mask, mask


#: Tokens of all batches, each pair of rows cut behind the longer one.
SENT = sum(
    2 * pair.max() for number in range(BATCHES) for pair in batch(number)[1].sum(1).reshape(-1, 2)
)


class Batches(paddle.io.Dataset):
    def __len__(self):
        return BATCHES * ROWS

    def __getitem__(self, index):
        return tuple(slot[index % ROWS] for slot in batch(index // ROWS))


def batches():
    return (batch(number) for number in range(BATCHES))


def served(predictor, description=None, **options):
    predictor.description = description or predictor.description
    return ServedTeacher(lambda inputs: [WorkerThread(predictor, inputs)], ServerOptions(**options))


def reader_of(*teachers, source=batches, predicts=("logits", "pooled"), **options):
    options = {"lengths": "mask", "teacher_batch_size": 2, **options}
    endpoints = [teacher.endpoint for teacher in teachers]
    return DistillReader(["ids", "mask"], list(predicts), source, endpoints, **options)


@pytest.fixture(scope="module")
def whole():
    """What the model answers to whole batches."""
    encoder = Encoder()
    feeds = [dict(zip(("ids", "mask"), batch(number))) for number in range(BATCHES)]
    return [encoder.run(each, ["logits", "pooled"]) for each in feeds]


@pytest.fixture(scope="module")
def teacher():
    with served(Encoder()) as teacher:
        yield teacher


def assert_labels(number, slots, whole, filled=True):
    """``filled``: whether the teacher was sent what was trimmed."""
    ids, mask, logits, pooled = (np.asarray(slot) for slot in slots)
    np.testing.assert_array_equal(ids, batch(number)[0])
    assert logits.shape == (ROWS, WIDTH, Encoder.classes)
    real = mask == 1
    np.testing.assert_allclose(logits[real], whole[number]["logits"][real], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled, whole[number]["pooled"], rtol=1e-4, atol=1e-5)
    if filled:
        longest = mask.sum(1).reshape(-1, 2).max(1).repeat(2)
        beyond = np.arange(WIDTH) >= longest[:, None]
        assert not logits[beyond].any()


def assert_all(reader, whole, start=0, **options):
    for number, slots in enumerate(reader, start):
        assert_labels(number, slots, whole, **options)
    assert number == BATCHES - 1


def test_labels_are_those_of_whole_rows_and_as_wide(teacher, whole):
    with reader_of(teacher) as reader:
        assert_all(reader, whole)
        stats = reader.stats()
    assert (stats["unit"], stats["work"], stats["rows"]) == ("tokens", SENT, BATCHES * ROWS)


def test_requests_to_a_pool_are_trimmed_too(teacher, whole):
    options = {"lengths": "mask", "teacher_batch_size": 2}
    with TeacherPool(["logits", "pooled"], teacher.endpoint, **options) as pool:
        for number in range(BATCHES):
            ids, mask = batch(number)
            answer = pool.infer({"ids": ids, "mask": mask})
            assert_labels(number, (ids, mask, *answer.values()), whole)
        assert pool.stats()["work"] == SENT


def test_without_lengths_whole_rows_are_sent_and_counted(teacher, whole):
    with reader_of(teacher, lengths=None) as reader:
        assert_all(reader, whole, filled=False)
        assert reader.stats()["work"] == BATCHES * ROWS * WIDTH


def test_a_teacher_sees_no_more_padding_than_it_must():
    with served(Sequences(), max_batch_rows=2) as teacher:
        with reader_of(teacher, predicts=["twice", "seen"]) as reader:
            for ids, mask, twice, seen in reader:
                np.testing.assert_array_equal(twice, np.repeat(2.0 * ids[:, :, None], 2, 2))
                lengths = mask.sum(1)
                longest = lengths.reshape(-1, 2).max(1).repeat(2)
                np.testing.assert_array_equal(seen[:, 1], longest - lengths)


def test_sparse_labels_are_the_same_too_samples_and_targets_included(teacher):
    options = {"top_k": 3, "samples": 4, "targets": "ids", "predicts": ["logits"]}
    with reader_of(teacher, **options) as reader:
        trimmed = list(reader)
    with reader_of(teacher, lengths=None, **options) as reader:
        untrimmed = list(reader)
    differing = 0
    for one, other in zip(trimmed, untrimmed):
        mask = one[1] == 1
        for name, column, wanted in zip(("v", "i", "l", "s", "t"), one[2:], other[2:]):
            assert (column.shape, column.dtype) == (wanted.shape, wanted.dtype)
            if name in ("i", "s"):  # one may lie on the edge between two classes
                differing += (column[mask] != wanted[mask]).sum()
            else:
                np.testing.assert_allclose(column[mask], wanted[mask], rtol=2e-3, atol=1e-4)
    assert differing <= 2


def test_labels_that_are_made_by_the_student_are_as_wide():
    with served(Encoder()) as teacher:
        engine = teacher._server.engine
        said = engine.description
        engine.description = Description(said.feeds, said.fetches, {}, said.fingerprint)
        options = {"top_k": 3, "samples": 4, "targets": "ids", "predicts": ["logits"]}
        with reader_of(teacher, **options) as reader:
            shapes = [(values.shape, target.shape) for _, _, values, *_, target in reader]
    assert shapes == [((ROWS, WIDTH, 3), (ROWS, WIDTH))] * BATCHES


@pytest.mark.parametrize("workers", [0, 2])
def test_dataloader_workers_give_the_same(teacher, whole, workers):
    inner = paddle.io.DataLoader(Batches(), batch_size=ROWS, shuffle=False)
    with reader_of(teacher, source=inner, return_tensors="np") as reader:
        assert_all(paddle.io.DataLoader(reader, batch_size=None, num_workers=workers), whole)


def test_a_resumed_student_goes_on_with_the_same(teacher, whole):
    with reader_of(teacher) as reader:
        for _ in itertools.islice(reader, 15):
            pass
        state = reader.state_dict()
    with reader_of(teacher) as reader:
        reader.load_state_dict(state)
        assert_all(reader, whole, start=15)


def test_teachers_that_declare_no_sequences_answer_beside_those_that_do(teacher, whole, caplog):
    with served(Encoder(), PLAIN) as plain, reader_of(teacher, plain) as reader:
        for _ in range(20):  # until the one that has just begun is not too late with each
            assert_all(reader, whole, filled=False)
            by_teacher = reader.stats()["teachers"]
            if all(figures["rows"] for figures in by_teacher.values()):
                break
        assert len(by_teacher) == 2
        assert all(figures["rows"] for figures in by_teacher.values()), by_teacher
    said = [record.message for record in caplog.records if "whole length" in record.message]
    assert len(said) == 1
    assert plain.endpoint in said[0]
    assert "does not say that a feed's rows are sequences" in said[0]


@pytest.mark.slow
def test_a_hedged_task_and_a_killed_teacher_change_nothing(whole):
    limits = Limits(hedge_min=0.05, hedge_factor=1.0, hedge_share=1.0)
    slow = python_teacher("Encoder", delay=0.3)
    with slow, python_teacher("Encoder") as fast:
        with reader_of(slow, fast, limits=limits) as reader:
            for number, slots in enumerate(reader):
                assert_labels(number, slots, whole)
                if number == BATCHES // 2:
                    slow.kill()
            assert number == BATCHES - 1
            assert reader.stats()["hedged"] >= 1
            eventually(lambda: reader.stats()["lost_teachers"] == 1)


class Classifier(paddle.nn.Layer):
    """Logits of each token, and of each row, in which no token sees where the mask is 0."""

    def __init__(self):
        super().__init__()
        self.embed = paddle.nn.Embedding(50, 8)
        self.encode = paddle.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.head = paddle.nn.Linear(8, Encoder.classes)

    def forward(self, ids, mask):
        weights = mask.astype("float32")
        hidden = self.encode(self.embed(ids), (weights.unsqueeze([1, 2]) - 1) * 1e9)
        pooled = (hidden * weights.unsqueeze(2)).sum(1) / weights.sum(1, keepdim=True)
        return self.head(hidden), pooled


def test_a_teacher_of_an_exported_program_is_told_what_its_sequences_are(tmp_path):
    layer = Classifier()
    layer.eval()
    feeds = dict.fromkeys(("ids", "mask"), ((-1,), "int64"))
    export_model(layer, tmp_path, feeds, ["logits", "pooled"])
    pads = [text for name in ("ids", "mask", "logits") for text in ("--pad", f"{name}=0")]
    whole = []
    for number in range(BATCHES):
        outputs = layer(*map(paddle.to_tensor, batch(number)))
        whole.append(dict(zip(("logits", "pooled"), (output.numpy() for output in outputs))))
    with Teacher("--model", tmp_path / "serving_server", *pads) as teacher:
        with reader_of(teacher) as reader:
            assert_all(reader, whole)
            assert reader.stats()["unit"] == "tokens"


def test_rows_that_are_filled_up_in_front_are_refused_when_their_turn_comes(teacher, whole):
    def source():
        for number in range(BATCHES):
            ids, mask = batch(number)
            yield (ids[:, ::-1], mask[:, ::-1]) if number == 7 else (ids, mask)

    with reader_of(teacher, source=source) as reader:
        items = iter(reader)
        for number in range(7):
            assert_labels(number, next(items), whole)
        with pytest.raises(SourceError, match=r"slot 1 \('mask'\), the lengths: row \d of the"):
            next(items)


def test_rows_in_lists_of_different_length_are_refused_with_the_remedy(teacher):
    ragged = [([[1, 2], [3]], [[1, 1], [1]])]
    with reader_of(teacher, source=ragged) as reader:
        with pytest.raises(SourceError, match=r"slot 1 \('mask'\).*differ in length.*pad them"):
            next(iter(reader))
