"""PaddleSlim's Distill, with a teacher that is somewhere else."""

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.serving import serve

paddle = pytest.importorskip("paddle")
pytest.importorskip("paddleslim")
from paddleslim.dygraph.dist import Distill  # noqa: E402

from edl.integrations.paddleslim import RemoteTeacher  # noqa: E402


class Net(paddle.nn.Layer):
    def __init__(self, width):
        super().__init__()
        self.body = paddle.nn.Linear(3, width)
        self.logits = paddle.nn.Linear(width, 4)

    def forward(self, img):
        return self.logits(paddle.tanh(self.body(img)))


def distill(student, teacher, loss):
    layers = [{"layers_name": ["logits", "logits"], "loss_function": loss}]
    # convert_fn would change Paddle's functions for the whole process, once
    return Distill([{"layers": layers}], [student], [teacher], convert_fn=False)


@pytest.mark.parametrize("loss", ["KLLoss", "CELoss", "DistanceLoss"])
def test_losses_and_gradients_are_those_of_a_teacher_in_the_same_process(loss):
    paddle.seed(1)
    student, net = Net(2), Net(8)
    net.eval()
    source = [(np.random.rand(6, 3).astype("f4"), np.zeros(6, "i8")) for _ in range(4)]

    def run(teacher, images):
        both, losses = distill(student, teacher, loss), []
        for img in images:
            value, student_out, _ = both(paddle.to_tensor(img))
            assert student_out.shape == [6, 4]
            value.backward()
            losses.append(float(value))
        gradients = [each.grad.numpy() for each in student.parameters()]
        student.clear_gradients()
        return losses, gradients

    local = run(net, [img for img, _ in source])
    with serve(net, {"img": ((3,), "float32")}, ["logits"]) as served:
        options = {"source": source, "teachers": served.endpoint}
        with DistillReader(["img", "label"], ["logits"], **options) as reader:
            teacher = RemoteTeacher(["logits"])
            remote = run(teacher, (img for img, _ in teacher.batches(reader)))
    np.testing.assert_allclose(remote[0], local[0], rtol=1e-5)
    for ours, theirs in zip(remote[1], local[1]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    assert any(np.abs(each).max() > 0 for each in remote[1])
