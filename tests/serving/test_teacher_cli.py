"""``edl teacher`` with real Paddle models."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from edl.discovery import list_nodes
from edl.errors import ModelError
from edl.serving import TeacherClient, TensorSpec, export_model
from edl.serving.model.predictor import PredictorOptions, load_predictor
from tests.support.processes import Teacher, edl, eventually

X = np.arange(6, dtype="f4").reshape(2, 3)
SUMS = ("--python", "tests.support.predictors:Sums")


def check(endpoint):
    with TeacherClient(endpoint) as client:
        outputs = client.infer({"img": X})
    assert (outputs["twice"] == 2 * X + 1).all()
    assert (outputs["total"] == X.sum(axis=1, keepdims=True)).all()


def test_an_exported_layer_is_served_under_the_names_it_was_given(paddle_model):
    with Teacher("--model", paddle_model) as teacher:
        check(teacher.endpoint)
        with TeacherClient(teacher.endpoint) as client:
            description = client.describe()
    assert description.feeds == {"img": TensorSpec((3,), "float32")}
    assert description.fetches["twice"] == TensorSpec((3,), "float32")
    assert description.extra["device"] == "cpu"


def test_a_model_without_prototxt_is_served_under_its_own_names(paddle_model, tmp_path):
    for path in (paddle_model / "serving_server").glob("model.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with Teacher("--model", tmp_path) as teacher, TeacherClient(teacher.endpoint) as client:
        outputs = client.infer({"img": X})
    assert sorted(outputs) == ["fetch_name_0", "fetch_name_1"]


OLD_FORMAT = """
import sys, paddle
class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = paddle.nn.Linear(3, 2)
    def forward(self, img):
        return self.fc(img)
net = Net()
spec = [paddle.static.InputSpec([None, 3], "float32", "img")]
paddle.jit.save(net, sys.argv[1] + "/old", input_spec=spec)
"""


def test_a_pdmodel_is_served_too(tmp_path):
    environment = {**os.environ, "FLAGS_enable_pir_api": "0"}
    script = tmp_path / "export.py"  # a file: Paddle reads the source of what it exports
    script.write_text(OLD_FORMAT)
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "old.pdmodel").is_file()
    with Teacher("--model", tmp_path) as teacher, TeacherClient(teacher.endpoint) as client:
        (output,) = client.infer({"img": X}).values()
    assert output.shape == (2, 2)


def test_two_workers_serve_one_endpoint(paddle_model):
    with Teacher("--model", paddle_model, "--workers", 2, "--cpu-threads", 1) as teacher:
        check(teacher.endpoint)


def test_a_teacher_is_in_the_registry_from_ready_to_drain(paddle_model, etcd_server, etcd, service):
    where = ("--etcd", etcd_server.endpoint, "--service", service)
    with Teacher("--model", paddle_model, *where) as teacher:
        ((endpoint, value),) = list_nodes(etcd, service)[0].items()
        entry = json.loads(value)
        assert endpoint == teacher.endpoint
        assert entry["feeds"] == {"img": {"shape": [3], "dtype": "float32"}}
        assert entry["fetches"]["total"] == {"shape": [1], "dtype": "float32"}
        assert (entry["device"], entry["protocol"]) == ("cpu", "baidu_std")
        teacher.kill(signal.SIGTERM)
        assert teacher.wait() == 0
        assert list_nodes(etcd, service)[0] == {}


def test_a_killed_teacher_leaves_the_registry_with_its_lease(etcd_server, etcd, service):
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 1)
    with Teacher(*SUMS, *where) as teacher:
        teacher.kill(signal.SIGKILL)
        eventually(lambda: list_nodes(etcd, service)[0] == {})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "/no/such/model"], "no inference model at /no/such/model"),
        (["--python", "tests.support.predictors:Nothing"], "predictors:Nothing"),
        (["--python", "tests.support.predictors:Broken"], "no such weights"),
        ([], "--model DIR"),
        (["--python", "x:y", "--service", "s"], "--etcd and --service go together"),
        ([*SUMS, "--host", "10.255.255.1"], "cannot listen"),
        ([*SUMS, "--workers", -1], "workers must be a whole number of at least 0, not -1"),
        ([*SUMS, "--cpu-threads", -1], "cpu_threads must be a whole number of at least 0, not -1"),
        ([*SUMS, "--device", "cpu,,cpu"], "'cpu,,cpu' is not a comma-separated list of devices"),
    ],
)
def test_a_teacher_that_cannot_start_says_why_in_one_line_and_exits(arguments, complaint):
    result = edl("teacher", *arguments)
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr.replace("making the predictor failed\nTraceback", "")


def test_a_device_that_this_paddle_lacks_is_refused(paddle_model):
    paddle = pytest.importorskip("paddle")
    if paddle.is_compiled_with_cuda():
        pytest.skip("this Paddle has CUDA")
    result = edl("teacher", "--model", paddle_model, "--device", "gpu")
    assert "paddlepaddle-gpu" in result.stderr


def test_a_fixed_batch_dimension_is_refused_with_the_remedy(tmp_path):
    paddle = pytest.importorskip("paddle")
    spec = [paddle.static.InputSpec([4, 3], "float32", "img")]
    paddle.jit.save(paddle.nn.Linear(3, 2), str(tmp_path / "m"), input_spec=spec)
    result = edl("teacher", "--model", tmp_path)
    assert "must be the batch's" in result.stderr


def test_exporting_with_the_wrong_number_of_names_is_refused(tmp_path):
    paddle = pytest.importorskip("paddle")
    with pytest.raises(ValueError, match="2 fetches were named"):
        export_model(paddle.nn.Linear(3, 2), tmp_path, {"x": ((3,), "float32")}, ["a", "b"])


def test_a_prototxt_of_another_model_is_refused_by_name(paddle_model, tmp_path):
    shutil.copytree(paddle_model / "serving_server", tmp_path, dirs_exist_ok=True)
    conf = tmp_path / "serving_server_conf.prototxt"
    conf.write_text(conf.read_text().replace('name: "img"', 'name: "image"', 1))
    with pytest.raises(ModelError, match=r"names image, but the model beside it has img"):
        load_predictor(PredictorOptions(model=str(tmp_path)))


def test_a_broken_model_is_refused_by_name(paddle_model, tmp_path):
    pytest.importorskip("paddle")
    (tmp_path / "m.json").write_text('{"base_code": {"magic": "pir", "version": 1}}')
    with pytest.raises(ModelError, match=r"Paddle cannot load .*m\.json"):
        load_predictor(PredictorOptions(model=str(tmp_path)))
