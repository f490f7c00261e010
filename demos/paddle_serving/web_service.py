"""A teacher behind Paddle Serving's own Python pipeline. Copy this one file; it needs no EDL.

    python web_service.py --model serving_server [--port 9998] [--threads 2] [--gpu 0]

It needs ``paddle-serving-server``, ``paddle-serving-app`` and a Paddle they work with (tried with
version 0.9.0 of both, paddlepaddle 2.6.2 and protobuf 3.20.3 on Python 3.9). ``--model`` is the
directory that ``paddle_serving_client.io.save_model`` or ``edl export`` writes. Then, beside it::

    edl register --etcd HOST:2379 --service NAME --server HOST:9998 --protocol pipeline \
        --conf serving_client/serving_client_conf.prototxt

Differences from a pipeline as Paddle Serving comes: answers are tensors where the request was made
of tensors (its own are text), their bytes are never unpickled, and several requests are computed at
a time as one batch if ``--batch`` says so.
"""

import argparse
import io
import re
import sys

import numpy as np
from paddle_serving_server.pipeline import PipelineServer, RequestOp, ResponseOp
from paddle_serving_server.pipeline.proto import pipeline_service_pb2
from paddle_serving_server.web_service import Op

TENSORS = "edl.tensors"  # marks what is to be answered with tensors
NPY = 13  # the element type of a .npy file in byte_data
FIELDS = {
    0: ("int64_data", "int64"),
    1: ("float_data", "float32"),
    2: ("int_data", "int32"),
    3: ("float64_data", "float64"),
    4: ("int_data", "int16"),
    5: ("float_data", "float16"),
    6: ("uint32_data", "uint16"),
    7: ("uint32_data", "uint8"),
    8: ("int_data", "int8"),
    9: ("bool_data", "bool"),
    NPY: ("byte_data", None),
}


def from_tensor(tensor):
    """A tensor of a request as an array."""
    if tensor.elem_type not in FIELDS:
        raise ValueError(f"tensor {tensor.name}: element type {tensor.elem_type}")
    field, dtype = FIELDS[tensor.elem_type]
    if dtype is None:
        return np.load(io.BytesIO(tensor.byte_data), allow_pickle=False)
    return np.array(getattr(tensor, field), dtype).reshape(tensor.shape)


def from_text(text):
    """The array that numpy's text shows: ``array([[1., 2.]], dtype=float32)``. Not evaluated."""
    start, end = text.index("["), text.rindex("]") + 1
    body = text[start:end]
    tokens = re.sub(r"[\[\],]", " ", body).split()
    values = np.array([token == "True" if token in ("True", "False") else float(token)
                       for token in tokens])  # fmt: skip
    opened, depth = {}, 0
    for bracket in re.findall(r"[\[\]]", body):
        if bracket == "[":
            opened[depth] = opened.get(depth, 0) + 1
        depth += 1 if bracket == "[" else -1
    counts = [opened[level] for level in sorted(opened)] + [len(tokens)]
    return values.reshape([inner // outer for outer, inner in zip(counts, counts[1:])])


class TeacherRequestOp(RequestOp):
    """Takes a request apart, whichever form it has."""

    def unpack_request_package(self, request):
        """The arrays by name; the model's op converts their dtypes."""
        feeds = {tensor.name: from_tensor(tensor) for tensor in request.tensors}
        if feeds:
            feeds[TENSORS] = True
        for key, value in zip(request.key, request.value):
            feeds[key] = from_text(value)
        return feeds, request.logid, None, ""


class TeacherOp(Op):
    """The model."""

    def preprocess(self, input_dicts, data_id=0, log_id=0):
        """The feeds, without the mark."""
        ((_, feeds),) = input_dicts.items()
        return {name: feeds[name] for name in feeds if name != TENSORS}, False, None, ""

    def postprocess(self, input_data, fetch_data, data_id=0, log_id=0):
        """The outputs, with the mark."""
        outputs = {name: value for name, value in fetch_data.items() if not name.endswith(".lod")}
        ((_, feeds),) = input_data.items()
        if TENSORS in feeds:
            outputs[TENSORS] = np.ones(1)
        return outputs, None, ""


class TeacherResponseOp(ResponseOp):
    """Puts an answer together, in the form of the request."""

    def pack_response_package(self, channeldata):
        """A response; errors are Paddle Serving's own."""
        outputs = getattr(channeldata, "npdata", None) or {}
        if TENSORS not in outputs:
            np.set_printoptions(threshold=sys.maxsize, floatmode="unique")
            return super().pack_response_package(channeldata)
        response = pipeline_service_pb2.Response()
        for name, array in outputs.items():
            if name != TENSORS:
                file = io.BytesIO()
                np.save(file, array, allow_pickle=False)
                response.tensors.add(name=name, elem_type=NPY, byte_data=file.getvalue())
        return response


def main():
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the serving_server directory")
    parser.add_argument("--port", type=int, default=9998, help="gRPC port")
    parser.add_argument("--threads", type=int, default=2, help="math threads of a predictor")
    parser.add_argument("--concurrency", type=int, default=1, help="predictor processes")
    parser.add_argument("--gpu", default="", help="GPU ids, comma-separated; empty: CPU")
    parser.add_argument("--batch", type=int, default=1, help="requests computed as one batch")
    arguments = parser.parse_args()

    op = TeacherOp(name="teacher", input_ops=[TeacherRequestOp()])
    server = PipelineServer("teacher")
    server.set_response_op(TeacherResponseOp(input_ops=[op]))
    local = {
        "client_type": "local_predictor",
        "model_config": arguments.model,
        "device_type": 1 if arguments.gpu else 0,
        "devices": arguments.gpu,
        "thread_num": arguments.threads,
        "fetch_list": fetches_of(arguments.model),
    }
    server.prepare_server(
        yml_dict={
            "rpc_port": arguments.port,
            "worker_num": 16,  # requests in progress
            "dag": {"is_thread_op": False},
            "op": {
                "teacher": {
                    "concurrency": arguments.concurrency,
                    "batch_size": arguments.batch,
                    "auto_batching_timeout": 2,
                    "local_service_conf": local,
                }
            },
        }
    )
    server._http_port = 0  # version 0.9.0 does not start without one, unless it is 0
    server.run_server()


def fetches_of(model):
    """The aliases of the model's outputs."""
    import google.protobuf.text_format
    from paddle_serving_server.proto import general_model_config_pb2

    with open(f"{model}/serving_server_conf.prototxt") as file:
        config = google.protobuf.text_format.Parse(
            file.read(), general_model_config_pb2.GeneralModelConfig()
        )
    return [variable.alias_name for variable in config.fetch_var]


if __name__ == "__main__":
    main()
