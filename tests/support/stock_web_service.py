"""Runs under Paddle Serving's Python: a web service as its documentation shows it."""

import argparse

from paddle_serving_server.web_service import Op, WebService

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--port", type=int)
parser.add_argument("--fetch", nargs="+")
arguments = parser.parse_args()


class Service(WebService):
    def get_pipeline_response(self, read_op):
        return Op(name="teacher", input_ops=[read_op])


service = Service(name="teacher")
local = {
    "client_type": "local_predictor",
    "model_config": arguments.model,
    "device_type": 0,
    "devices": "",
    "fetch_list": arguments.fetch,
}
op = {"concurrency": 1, "local_service_conf": local}
service.prepare_pipeline_config(
    yml_dict={
        "rpc_port": arguments.port,
        "http_port": arguments.port + 1,
        "worker_num": 2,
        "dag": {"is_thread_op": False},
        "op": {"teacher": op},
    }
)
service.run_service()
