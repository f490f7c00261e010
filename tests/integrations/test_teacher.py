"""A teacher that is somewhere else, in the place of a layer."""

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import ConfigError, SourceError
from edl.serving import serve

paddle = pytest.importorskip("paddle")
from edl.integrations.teacher import RemoteTeacher  # noqa: E402


def batches(form=list):
    return [form((np.full((4, 3), n, "f4"), np.full(4, n), np.full((4, 2), n))) for n in range(3)]


def as_dict(slots):
    return dict(zip(("img", "label", "prob"), slots))


@pytest.mark.parametrize("form", [list, tuple])
def test_it_answers_with_the_labels_of_the_batch_that_the_student_is_at(form):
    teacher = RemoteTeacher(["prob"])
    for number, batch in enumerate(teacher.batches(batches(form))):
        assert isinstance(batch, form)
        img, label = batch
        (prob,) = teacher(paddle.to_tensor(img))
        assert label[0] == number
        assert (prob.numpy() == number).all()
        assert prob.stop_gradient


def test_paddleslims_users_find_it_under_that_name():
    from edl.integrations import paddleslim

    assert paddleslim.RemoteTeacher is RemoteTeacher


def test_a_dicts_predictions_go_by_name():
    teacher = RemoteTeacher(["prob", "label"])
    (batch, *_) = teacher.batches([as_dict(batches()[2])])
    assert list(batch) == ["img"]
    prob, label = teacher()
    assert (prob.shape, label.shape) == ([4, 2], [4])


def test_each_prediction_is_the_output_of_a_sublayer_with_its_name():
    teacher, seen = RemoteTeacher(["a", "b"]), {}
    for name, layer in teacher.named_sublayers():
        layer.register_forward_post_hook(lambda _, __, out, name=name: seen.update({name: out}))
    teacher.hold(paddle.zeros([1]), np.ones(1, "f4"))
    teacher()
    assert {name: out.item() for name, out in seen.items()} == {"a": 0.0, "b": 1.0}
    assert teacher.parameters() == []
    assert not teacher.state_dict()


def test_a_reader_is_read_and_its_teacher_answers():
    net = paddle.nn.Linear(3, 2)
    source = [(np.random.rand(4, 3).astype("f4"), np.zeros(4)) for _ in range(5)]
    with serve(net, {"img": ((3,), "float32")}, ["logits"]) as served:
        options = {"source": source, "teachers": served.endpoint}
        with DistillReader(["img", "label"], ["logits"], **options) as reader:
            teacher = RemoteTeacher(["logits"])
            for img, _ in teacher.batches(reader):
                expected = net(paddle.to_tensor(img)).numpy()
                np.testing.assert_allclose(teacher(img)[0].numpy(), expected, rtol=1e-5)


def test_labels_of_another_batch_or_none_are_refused():
    teacher = RemoteTeacher(["prob"])
    with pytest.raises(ConfigError, match=r"told no predictions: iterate over its batches\(reader"):
        teacher(paddle.zeros([4, 3]))
    teacher.hold(np.zeros((4, 2), "f4"))
    with pytest.raises(ConfigError, match="3 rows, but the teacher's predictions have 4"):
        teacher(paddle.zeros([3, 3]))
    with pytest.raises(ConfigError, match="2 predictions were given for prob"):
        teacher.hold(1, 2)


@pytest.mark.parametrize("batch", [[np.zeros(3)], {"img": np.zeros(3)}])
def test_a_batch_without_predictions_is_refused(batch):
    with pytest.raises(SourceError, match="1 slots does not have prob"):
        next(RemoteTeacher(["prob"]).batches([batch]))


@pytest.mark.parametrize("predicts", [[], "prob", ["a", "a"]])
def test_predictions_are_a_list_of_different_names(predicts):
    with pytest.raises(ConfigError, match="predicts must"):
        RemoteTeacher(predicts)
