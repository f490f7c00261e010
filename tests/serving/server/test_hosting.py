"""A Python function as a teacher."""

import threading

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import ConfigError, TeacherFailed, TeacherUnreachable
from edl.serving import ServerOptions, TeacherClient, TensorSpec, serve
from edl.serving.wire.description import SPECS_ONLY

X = np.arange(6, dtype="f4").reshape(3, 2)
FEEDS = {"x": ((2,), "float32")}
FETCHES = {"y": ((2,), "float32")}


def ask(function, fetches=None, feeds=None, x=X):
    with serve(function, feeds or FEEDS, fetches or FETCHES) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            return client.infer({"x": x})


@pytest.mark.parametrize(
    "function",
    [lambda x: 2 * x, lambda x: (2 * x,), lambda x: {"y": 2 * x}, lambda x: 2.0 * x.astype("f8")],
)
def test_one_array_a_tuple_or_a_dict_is_returned(function):
    outputs = ask(function)
    assert outputs["y"].dtype == np.float32
    assert (outputs["y"] == 2 * X).all()


@pytest.mark.parametrize(
    ("dtype", "output"),
    [
        ("float32", np.arange(3)),
        ("float32", np.array([True, False, True])),
        ("float16", np.array([0.1, 0.2, 0.3])),
        ("int64", np.array([1, 2, 3], "i4")),
    ],
)
def test_outputs_of_another_dtype_are_converted_if_that_keeps_them(dtype, output):
    answer = ask(lambda x: output, {"y": ((), dtype)})["y"]
    assert answer.dtype == dtype
    assert (answer == output.astype(dtype)).all()


def test_an_output_for_bfloat16_is_converted_to_its_bits():
    answer = ask(lambda x: x[:, 0], {"y": ((), "uint16")})["y"]
    assert ((answer.astype("u4") << 16).view("f4") == X[:, 0]).all()


def test_a_fingerprint_tells_functions_apart():
    def description(**options):
        with serve(lambda x: x, FEEDS, FETCHES, **options) as teacher:
            with TeacherClient(teacher.endpoint) as client:
                return client.describe()

    assert description(fingerprint="resnet50-v3").fingerprint == "resnet50-v3"
    assert description().fingerprint.startswith(SPECS_ONLY)
    with pytest.raises(ConfigError, match="fingerprint"):
        description(fingerprint="\n")


def test_an_ensemble_of_paddle_layers():
    paddle = pytest.importorskip("paddle")
    nets = [paddle.nn.Linear(2, 2) for _ in range(3)]

    def ensemble(x):
        with paddle.no_grad():
            return sum(net(paddle.to_tensor(x)) for net in nets) / len(nets)

    expected = ensemble(X).numpy()
    np.testing.assert_allclose(ask(ensemble)["y"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("output", "shape", "dtype"),
    [
        (lambda x: x, (2,), "float32"),
        (lambda x: x.sum(axis=1).astype("i8"), (), "int64"),
        (lambda x: {"y": np.zeros((len(x), 3, 4), "f2")}, (3, 4), "float16"),
    ],
)
def test_of_fetches_that_are_only_named_the_function_shows_the_rest(output, shape, dtype):
    with serve(output, FEEDS, ["y"]) as teacher, TeacherClient(teacher.endpoint) as client:
        assert client.describe().fetches == {"y": TensorSpec(shape, dtype)}
        assert (client.infer({"x": X})["y"] == _one(output(X))).all()


def _one(output):
    return output["y"] if isinstance(output, dict) else output


@pytest.mark.parametrize(
    ("function", "feeds", "complaint"),
    [
        (lambda x: x, {"x": ((-1,), "float32")}, "rows of 'x' have no fixed size: say it, as in"),
        (
            lambda x: (x, x),
            FEEDS,
            r"row of zeros does not .*: say it, as in .*\(ModelError: the function returned 2",
        ),
        (lambda x: {"z": x}, FEEDS, r"row of zeros does not .*\(KeyError: 'y'"),
        (lambda x: 1 // int(x.sum()), FEEDS, r"row of zeros does not .*\(ZeroDivisionError"),
    ],
)
def test_where_names_alone_do_not_say_enough_the_rest_is_asked_for(function, feeds, complaint):
    with pytest.raises(ConfigError, match=complaint):
        serve(function, feeds, ["y"])


def test_a_student_reads_from_a_function():
    with serve(lambda x: x + 1, FEEDS, FETCHES) as teacher:
        source = [(np.full((4, 2), number, "f4"),) for number in range(20)]
        with DistillReader(["x"], ["y"], source=source, teachers=[teacher.endpoint]) as reader:
            for x, y in reader:
                assert (y == x + 1).all()


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda x: (x, x), "returned 2 values for the fetches y"),
        (lambda x: {"z": x}, "returned z, but no 'y'"),
        (lambda x: x[:2], "rows for an input of 3"),
        (lambda x: x[:, :1], r"output 'y': expected shape \(rows, 2\)"),
        (lambda x: 1e300 * x.astype("f8"), "output 'y': float32 cannot hold the float64 value"),
        (lambda x: x.astype("i8") + 2**24 + 1, "output 'y': float32 cannot hold the int64 value"),
        (lambda x: x.astype(str), "output 'y': <U32 values cannot become float32"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda z: z, "unexpected keyword argument 'x'"),
    ],
)
def test_what_a_function_does_wrong_is_said(function, complaint):
    with pytest.raises(TeacherFailed, match=complaint):
        ask(function)


def test_a_teacher_needs_feeds_and_fetches_that_can_travel():
    with pytest.raises(ConfigError, match="at least one feed"):
        serve(lambda: None, {}, FETCHES)
    with pytest.raises(ConfigError, match="'x': dtype 'complex64'"):
        serve(lambda x: x, {"x": ((1,), "complex64")}, FETCHES)
    for shape in ((-2,), (2.5,), 3):
        with pytest.raises(ConfigError, match="'x': "):
            serve(lambda x: x, {"x": (shape, "float32")}, FETCHES)


def test_an_address_that_is_taken_is_refused():
    with serve(lambda x: x, FEEDS, FETCHES) as teacher:
        port = int(teacher.endpoint.split(":")[1])
        with pytest.raises(ConfigError, match="Address already in use"):
            serve(lambda x: x, FEEDS, FETCHES, options=ServerOptions(port=port))


def test_closing_answers_what_was_accepted_and_leaves_no_thread():
    before = set(threading.enumerate())
    gate, entered, answers = threading.Event(), threading.Event(), []

    def slow(x):
        entered.set()
        gate.wait(10)
        return x

    teacher = serve(slow, FEEDS, FETCHES)
    with TeacherClient(teacher.endpoint) as client:
        client.submit({"x": X}, [], answers.append)
        entered.wait(10)
        threading.Timer(0.2, gate.set).start()
        teacher.close()
        teacher.close()
        assert (answers[0]["y"] == X).all()
    with pytest.raises(TeacherUnreachable):
        TeacherClient(teacher.endpoint)
    left = {thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()}
    assert not {name for name in left if name.startswith("edl-teacher")}
