"""Runs under Paddle Serving's Python: its HttpClient 0.9.0 against a teacher.

official_http_client.py HOST:PORT CONF_DIRECTORY: prints, as JSON, what each way of asking gave.
"""

import json
import sys

import numpy as np
from paddle_serving_client.httpclient import HttpClient


def values(answer):
    """The numbers in an answer: a protobuf message, or JSON."""
    if answer is None:
        return None
    if isinstance(answer, dict):
        tensors = answer["outputs"][0]["tensor"]
    else:
        fields = ("alias_name", "float_data", "shape")
        tensors = [
            {name: getattr(tensor, name) for name in fields} for tensor in answer.outputs[0].tensor
        ]
    return {
        tensor["alias_name"]: np.array(tensor["float_data"]).reshape(tensor["shape"]).tolist()
        for tensor in tensors
    }


def main():
    endpoint, conf = sys.argv[1:]
    results = {}
    for proto in (True, False):
        for gzip in (False, True):
            client = HttpClient()
            client.load_client_config(conf)
            client.connect([endpoint])
            client.set_http_proto(proto)
            client.set_request_compress(gzip)
            client.set_response_compress(gzip)
            feed = {"img": np.arange(600, dtype="float32").reshape(200, 3) / 8}
            name = f"{'protobuf' if proto else 'json'}{' gzip' if gzip else ''}"
            results[name] = values(client.predict(feed, fetch=["total", "twice"], batch=True))
    results["unknown fetches are dropped by the client"] = values(
        client.predict({"img": np.ones((1, 3), "float32")}, fetch=["nothing"], batch=True)
    )
    results["wrong shape"] = values(client.predict({"img": np.ones((1, 4), "float32")}, batch=True))
    print(json.dumps(results))


main()
