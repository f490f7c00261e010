"""A layer as a teacher, beside the program that made it."""

import numpy as np
import pytest

from edl.errors import ConfigError, TeacherFailed
from edl.serving import ServerOptions, TeacherClient, TensorSpec, serve

paddle = pytest.importorskip("paddle")

X = np.arange(6, dtype="f4").reshape(2, 3)
FEEDS = {"x": ((3,), "float32")}


class Two(paddle.nn.Layer):
    """Takes two arguments, whose names are not those of the feeds, and returns a dict."""

    def __init__(self, *names):
        super().__init__()
        self.names = names

    def forward(self, first, second):
        return dict(zip(self.names, (first - second, first + second)))


def mixed():
    """Layers that compute something else in training, and whose modes are not all the same."""
    net = paddle.nn.Sequential(
        paddle.nn.Dropout(0.5), paddle.nn.BatchNorm1D(3), paddle.nn.Linear(3, 2)
    )
    net[1].eval()
    return net


def modes(net):
    return [each.training for each in net.sublayers(include_self=True)]


def expected(net):
    net.eval()
    return net(paddle.to_tensor(X)).numpy()


def test_a_layer_is_served_in_evaluation_mode_and_left_as_it_was():
    net = mixed()
    before = modes(net)
    with serve(net, FEEDS, ["y"]) as teacher, TeacherClient(teacher.endpoint) as client:
        answers = [client.infer({"x": X})["y"] for _ in range(3)]
        assert client.describe().fetches == {"y": TensorSpec((2,), "float32")}
    assert modes(net) == before
    for answer in answers:
        np.testing.assert_allclose(answer, expected(net), rtol=1e-6)


def test_shapes_may_be_said_as_for_a_function_and_are_needed_for_rows_of_any_size():
    net = paddle.nn.Embedding(10, 4)
    feeds, x = {"x": ((-1,), "int64")}, np.array([[1, 2, 3]])
    with serve(net, feeds, {"y": ((-1, 4), "float32")}) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            assert (client.infer({"x": x})["y"] == net.weight.numpy()[x]).all()
    net.train()
    with pytest.raises(ConfigError, match="have no fixed size"):
        serve(net, feeds, ["y"])
    assert net.training


def test_its_computation_takes_no_gradient_and_leaves_other_threads_theirs():
    net = paddle.nn.Linear(3, 2)
    seen = []
    net.register_forward_post_hook(lambda layer, feeds, output: seen.append(output.stop_gradient))
    with serve(net, FEEDS, ["y"]) as teacher, TeacherClient(teacher.endpoint) as client:
        client.infer({"x": X})
        assert paddle.is_grad_enabled()
    assert seen == [True, True]


@pytest.mark.parametrize("names", [("sum", "difference"), ("difference", "sum"), ("a", "b")])
def test_feeds_are_arguments_in_order_and_a_dict_goes_by_name_if_it_has_them(names):
    feeds = {"x": ((3,), "float32"), "y": ((3,), "float32")}
    with serve(Two(*names), feeds, ["difference", "sum"]) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            answer = client.infer({"x": X, "y": np.ones_like(X)})
    sign = -1 if names[0] == "sum" else 1
    assert (answer["difference"] == X - sign).all()
    assert (answer["sum"] == X + sign).all()


def test_bfloat16_is_answered_as_float32():
    class Half(paddle.nn.Layer):
        def forward(self, x):
            return (x / 3).astype("bfloat16")

    with serve(Half(), FEEDS, ["y"]) as teacher, TeacherClient(teacher.endpoint) as client:
        answer = client.infer({"x": X})["y"]
    assert answer.dtype == np.float32
    assert (answer == Half()(paddle.to_tensor(X)).astype("float32").numpy()).all()


def test_a_layer_that_is_trained_meanwhile_says_so_instead_of_answering_otherwise():
    net = mixed()
    with serve(net, FEEDS, ["y"]) as teacher, TeacherClient(teacher.endpoint) as client:
        net.train()
        with pytest.raises(TeacherFailed, match="put into training mode while it is served"):
            client.infer({"x": X})


def test_a_part_of_it_that_is_trained_meanwhile_says_so_too():
    net = mixed()
    with serve(net, FEEDS, ["y"]) as teacher, TeacherClient(teacher.endpoint) as client:
        net[0].train()
        with pytest.raises(TeacherFailed, match="Dropout was put into training mode"):
            client.infer({"x": X})


class Returns(paddle.nn.Layer):
    def __init__(self, choose):
        super().__init__()
        self.choose = choose

    def forward(self, x):
        return self.choose(x)


def test_what_is_not_named_or_no_tensor_is_left_out():
    net = Returns(lambda x: {"b": x, "unused": x + 2, "a": x + 1})
    with serve(net, FEEDS, ["a", "b"]) as teacher, TeacherClient(teacher.endpoint) as client:
        answer = client.infer({"x": X})
    assert (answer["a"] == X + 1).all()
    assert (answer["b"] == X).all()
    with serve(Returns(lambda x: (x, None, [x + 1])), FEEDS, ["b", "a"]) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            assert (client.infer({"x": X})["a"] == X + 1).all()


@pytest.mark.parametrize(
    ("choose", "fetches", "words"),
    [
        (lambda x: {"b": x, "a": x}, ["a", "c"], "a dict of b, a, without c: name the fetches"),
        (lambda x: x.sum(), ["y"], r"output 'y' has shape \(\) for one row"),
        (lambda x: x, "y", "fetches must be a list of names, not 'y'"),
        (lambda x: (x, x), ["y", "y"], "must hold different names"),
        (lambda x: (x, x), [], "at least one"),
    ],
)
def test_fetches_that_are_not_what_it_returns_are_refused(choose, fetches, words):
    with pytest.raises(ConfigError, match=words):
        serve(Returns(choose), FEEDS, fetches)


def test_a_teacher_that_cannot_begin_leaves_the_layer_as_it_was():
    net = mixed()
    with serve(lambda x: x, FEEDS, ["y"]) as other:
        taken = int(other.endpoint.rpartition(":")[2])
        with pytest.raises(ConfigError, match="in use"):
            serve(net, FEEDS, ["y"], options=ServerOptions(port=taken))
    assert modes(net) == modes(mixed())
