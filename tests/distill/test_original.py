"""Programs for the original paddle_edl 0.3.1: the same calls, the same results."""

import numpy as np
import pytest

from edl.distill.distill_reader import DistillReader
from edl.errors import ReaderError
from edl.serving.wire import frame
from edl.serving.wire.description import DESCRIBE_SERVICE
from edl.serving.wire.messages import encode_response
from tests.distill.test_bad_teachers import BadTeacher, respond, right
from tests.support.processes import python_teacher

BATCHES, ROWS = 5, 16

CLIENT_CONF = """
feed_var { name: "x" alias_name: "img" is_lod_tensor: false feed_type: 1 shape: 3 }
fetch_var { name: "y" alias_name: "prob" is_lod_tensor: false fetch_type: 1 shape: 2 }
"""


@pytest.fixture(scope="module")
def images_teacher():
    with python_teacher("Images") as teacher:
        yield teacher


def sample(*shape):
    return np.random.random(shape).astype("float32"), np.random.random([1]).astype("int64")


def reader_of(teacher):
    reader = DistillReader(ins=["img", None], predicts=["prob"])
    reader.set_fixed_teacher(teacher.endpoint)
    return reader


def test_the_reader_demo_with_samples(images_teacher):
    def creator():
        for _ in range(BATCHES * ROWS):
            yield sample(1, 28, 28)

    reader = reader_of(images_teacher).set_sample_generator(creator)
    count = 0
    for img, label, prob in reader():
        assert (img.shape, label.shape, prob.shape) == ((1, 28, 28), (1,), (2,))
        assert prob[0] == pytest.approx(img.sum(), rel=1e-4)
        count += 1
    assert count == BATCHES * ROWS
    reader.close()


def test_the_reader_demo_with_sample_lists(images_teacher):
    def creator():
        for _ in range(BATCHES):
            yield [list(sample(1, 28, 28)) for _ in range(ROWS)]

    reader = reader_of(images_teacher)
    train_reader = reader.set_sample_list_generator(creator)
    for _ in range(2):
        lists = list(train_reader())
        assert [len(samples) for samples in lists] == [ROWS] * BATCHES
        for img, label, prob in lists[0]:
            assert (img.shape, label.shape, prob.shape) == ((1, 28, 28), (1,), (2,))
    reader.close()


def test_the_reader_demo_with_batches(images_teacher):
    def creator():
        for _ in range(BATCHES):
            yield sample(ROWS, 1, 28, 28)[0], np.zeros((ROWS, 1), "int64")

    reader = reader_of(images_teacher)
    reader.set_teacher_batch_size(4)
    reader = reader.set_batch_generator(creator)
    for img, label, prob in reader():
        assert (img.shape, label.shape, prob.shape) == ((ROWS, 1, 28, 28), (ROWS, 1), (ROWS, 2))
    reader.close()


def test_the_nlp_reader_whose_slots_are_lists_and_some_of_them_ragged(sums_teacher):
    keys = ["img", "ids_student", "labels"]

    def creator():
        for _ in range(BATCHES):
            fed = [np.full(3, row, "float32") for row in range(4)]
            yield [fed, [[1, 2], [3], [], [4, 5, 6]], [0, 1, 0, 1]]

    reader = DistillReader(keys, predicts=["prob"])
    reader.set_teacher_batch_size(4)
    reader.set_fixed_teacher(sums_teacher.endpoint)
    for _, ids, labels, prob in reader.set_batch_generator(creator)():
        assert ids[3] == [4, 5, 6]
        assert labels == [0, 1, 0, 1]
        assert np.array(prob)[:, 0].tolist() == [0, 3, 6, 9]
    reader.close()


def serving_without_description(conn, meta, feeds):
    respond(conn, meta, encode_response({"prob": right(feeds)}))


@pytest.fixture
def paddle_serving(monkeypatch):
    """A server of the original kind: it does not know our describe method."""
    from tests.distill import test_bad_teachers

    def refuse_to_describe(conn, meta, payload, code=0, text=""):
        if meta.service == DESCRIBE_SERVICE:
            payload, code, text = [], frame.ENOSERVICE, "Fail to find service"
        respond(conn, meta, payload, code, text)

    monkeypatch.setattr(test_bad_teachers, "respond", refuse_to_describe)
    teacher = BadTeacher(serving_without_description)
    yield teacher
    teacher.close()


@pytest.mark.parametrize("how", ["method", "environment"])
def test_a_server_that_does_not_describe_itself_is_used_by_its_conf_file(
    paddle_serving, tmp_path, monkeypatch, how
):
    conf = tmp_path / "serving_client_conf.prototxt"
    conf.write_text(CLIENT_CONF)
    reader = DistillReader(["img"], ["prob"]).set_fixed_teacher(paddle_serving.endpoint)
    if how == "method":
        reader.set_serving_conf_file(str(conf))
    else:
        monkeypatch.setenv("PADDLE_DISTILL_CONF_FILE", str(conf))
    reader.set_loader([(np.ones((2, 3), "f4"),)])
    with reader:
        assert [prob.tolist() for _, prob in reader] == [[[3, 6], [3, 6]]]


def test_without_one_the_error_says_what_to_do(paddle_serving):
    reader = DistillReader(["img"], ["prob"]).set_fixed_teacher(paddle_serving.endpoint)
    with (
        reader.set_loader([(np.ones((2, 3), "f4"),)]),
        pytest.raises(ReaderError, match="set_serving_conf_file"),
    ):
        next(iter(reader))
