"""Runs under Paddle Serving's Python: its save_model 0.9.0 writes a model, and computes with it.

official_save_model.py DIRECTORY: writes serving_server and serving_client there, and prints the
outputs for a known input as JSON. The tool is written for Paddle before 2.5, whose ``paddle.fluid``
is ``paddle.base`` since; the names that it imports are made available under the old ones.
"""

import json
import sys
import types

import numpy as np
import paddle
import paddle.base
import paddle.base.compiler
import paddle.base.executor
import paddle.base.log_helper
import paddle.static.io


def provide_fluid():
    fluid = types.ModuleType("paddle.fluid")
    public = {name: value for name, value in vars(paddle.base).items() if name[:2] != "__"}
    fluid.__dict__.update(public, __path__=[], Variable=paddle.static.Variable)
    fluid.layers = types.ModuleType("paddle.fluid.layers")
    fluid.unique_name = paddle.utils.unique_name
    fluid.io = types.ModuleType("paddle.fluid.io")
    fluid.io.prepend_feed_ops = paddle.static.io.prepend_feed_ops
    fluid.io.append_fetch_ops = paddle.static.io.append_fetch_ops
    sys.modules["paddle.fluid"] = paddle.fluid = fluid
    for name in ("compiler", "framework", "core", "executor", "log_helper", "io"):
        sys.modules[f"paddle.fluid.{name}"] = getattr(fluid, name)


def main():
    provide_fluid()
    from paddle_serving_client.io import save_model

    directory = sys.argv[1]
    paddle.enable_static()
    x = paddle.static.data("x", [None, 3], "float32")
    y = paddle.static.nn.fc(x, 2, name="out")
    executor = paddle.static.Executor()
    executor.run(paddle.static.default_startup_program())
    program = paddle.static.default_main_program()
    save_model(
        f"{directory}/serving_server",
        f"{directory}/serving_client",
        {"img": x},
        {"prob": y},
        program,
    )
    data = np.arange(6, dtype="float32").reshape(2, 3)
    (outputs,) = executor.run(program, {"x": data}, [y])
    print(json.dumps(outputs.tolist()))


main()
