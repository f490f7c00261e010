"""What a pipeline answers, in the dtypes that were promised."""

import concurrent.futures
import contextlib
import socket
import threading

import grpc
import numpy as np
import pytest

from edl.errors import (
    RequestRefused,
    TeacherConnectionLost,
    TeacherFailed,
    TeacherProtocolError,
    TeacherTimeout,
    TeacherUnavailable,
    TeacherUnreachable,
)
from edl.serving import Description, TensorSpec
from edl.serving.client.pipeline import PipelineClient
from edl.serving.wire import protobuf as pb
from edl.serving.wire.pipeline_messages import METHOD, SERVICE

X = {"x": np.zeros((2, 1), "f4")}


@contextlib.contextmanager
def pipeline(respond, method=METHOD):
    """The endpoint of a gRPC server that answers what ``respond(context)`` returns."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: respond(context))
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {method: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def y_is(text):
    """An answer with ``text`` as its fetch ``y``."""
    return pb.text(3, "y") + pb.text(4, text)


def ask(text, dtype):
    description = Description({"x": TensorSpec((1,), "float32")}, {"y": TensorSpec((2,), dtype)})
    with pipeline(lambda context: y_is(text)) as endpoint:
        with PipelineClient(endpoint, description) as client:
            return client.infer(X, ["y"])["y"]


@pytest.mark.parametrize(
    ("text", "dtype", "values"),
    [
        ("[[0.1 1.] [2. 3.]]", "float32", np.array([[0.1, 1], [2, 3]], "f4")),
        ("[[1 2] [3 4]]", "float32", np.array([[1, 2], [3, 4]], "f4")),
        ("[[1 2] [3 4]]", "int32", np.array([[1, 2], [3, 4]], "i4")),
        ("[[0.5 1.] [2. 3.]]", "uint16", np.array([[0x3F00, 0x3F80], [0x4000, 0x4040]], "u2")),
        (
            "array([[16256, 1], [2, 3]], dtype=uint16)",
            "uint16",
            np.array([[16256, 1], [2, 3]], "u2"),
        ),
    ],
)
def test_text_becomes_what_was_promised(text, dtype, values):
    answer = ask(text, dtype)
    assert answer.dtype == values.dtype
    assert (answer == values).all()


@pytest.mark.parametrize(
    ("text", "dtype", "complaint"),
    [
        ("[[16256 0] [0 0]]", "uint16", "'y' may be bfloat16's bits or integers"),
        ("[[1e300 0.] [0. 0.]]", "float32", "'y': float32 cannot hold the float64 value 1e\\+300"),
        ("[[2147483653 0] [0 0]]", "int32", "'y': int32 cannot hold the int64 value 2147483653"),
    ],
)
def test_text_of_what_was_not_promised_is_refused(text, dtype, complaint):
    with pytest.raises(TeacherProtocolError, match=complaint):
        ask(text, dtype)


def test_a_port_that_does_not_speak_grpc_is_not_waited_for_longer_than_was_said():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TeacherUnreachable, match=r"no gRPC connection within 0\.3 s"):
            PipelineClient(endpoint, connect_timeout=0.3)


def test_a_pipeline_does_not_say_what_it_serves_unless_it_was_said():
    with pipeline(lambda context: b"") as endpoint, PipelineClient(endpoint) as client:
        with pytest.raises(RequestRefused, match="does not say what it serves"):
            client.describe()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (5001, RequestRefused),  # the user's
        (6000, TeacherUnavailable),  # a time-out
        (3001, TeacherUnavailable),  # going away
        (4001, TeacherFailed),
    ],
)
def test_a_pipelines_error_is_what_its_code_says_in_its_own_words(code, kind):
    with pipeline(lambda context: pb.integer(1, code) + pb.text(2, "x: too odd\n")) as endpoint:
        with PipelineClient(endpoint) as client:
            with pytest.raises(kind, match=rf"x: too odd \(error {code}\)"):
                client.infer(X)


@pytest.mark.parametrize(
    ("code", "kind", "complaint"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, RequestRefused, "too large for it: some reason"),
        (grpc.StatusCode.UNAVAILABLE, TeacherConnectionLost, "unavailable: some reason"),
        (grpc.StatusCode.UNKNOWN, TeacherProtocolError, "some reason"),
    ],
)
def test_an_error_of_grpc_is_what_a_student_can_act_on(code, kind, complaint):
    with pipeline(lambda context: context.abort(code, "some reason")) as endpoint:
        with PipelineClient(endpoint) as client, pytest.raises(kind, match=complaint):
            client.infer(X)


def test_a_grpc_server_that_is_no_pipeline_is_a_protocol_error():
    with pipeline(lambda context: b"", method="other") as endpoint:
        with PipelineClient(endpoint) as client, pytest.raises(TeacherProtocolError):
            client.infer(X)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [(b"\xff\xff", "its answer is malformed"), (y_is("[[1] [2]]"), "it answers y, but no 'z'")],
)
def test_an_answer_that_is_none_is_a_protocol_error(answer, complaint):
    with pipeline(lambda context: answer) as endpoint, PipelineClient(endpoint) as client:
        with pytest.raises(TeacherProtocolError, match=complaint):
            client.infer(X, ["z"])


def test_what_is_forgotten_or_in_flight_at_the_end_is_answered_at_most_once():
    gate, answers = threading.Event(), []

    def slow(context):
        gate.wait(10)
        return y_is("[[1] [2]]")

    with pipeline(slow) as endpoint:
        client = PipelineClient(endpoint)
        with pytest.raises(TeacherTimeout):
            client.infer(X, timeout=0.1)
        client.submit(X, ["y"], answers.append)
        client.close()
        client.submit(X, ["y"], answers.append)
        gate.set()
    assert [type(answer) for answer in answers] == [TeacherConnectionLost] * 2
    assert "was closed" in str(answers[0])
