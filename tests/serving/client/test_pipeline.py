"""What a pipeline answers, in the dtypes that were promised."""

import concurrent.futures
import contextlib

import grpc
import numpy as np
import pytest

from edl.errors import TeacherProtocolError
from edl.serving import Description, TensorSpec
from edl.serving.client.pipeline import PipelineClient
from edl.serving.wire import protobuf as pb
from edl.serving.wire.pipeline_messages import METHOD, SERVICE

X = {"x": np.zeros((2, 1), "f4")}


@contextlib.contextmanager
def answering(text):
    """The endpoint of a gRPC server that answers ``text`` as its fetch ``y``."""
    answer = pb.text(3, "y") + pb.text(4, text)
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def ask(text, dtype):
    description = Description({"x": TensorSpec((1,), "float32")}, {"y": TensorSpec((2,), dtype)})
    with answering(text) as endpoint, PipelineClient(endpoint, description) as client:
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
