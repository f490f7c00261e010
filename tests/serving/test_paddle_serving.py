"""With a real Paddle Serving 0.9.0: its clients and our teacher, its servers and our reader."""

import json
import signal

import numpy as np
import pytest

from edl.discovery import list_nodes
from edl.distill import DistillReader
from edl.errors import ReaderError, RequestRefused
from edl.serving import Description, TensorSpec, export_model
from edl.serving.client.entry import Entry
from edl.serving.client.pipeline import PipelineClient
from tests.support import paddle_serving
from tests.support.paddle_serving import Pipeline, needs_paddle_serving
from tests.support.processes import Registrar, Teacher, edl, eventually

pytestmark = [pytest.mark.slow, needs_paddle_serving]

WEB_SERVICE = "demos/paddle_serving/web_service.py"
STOCK = "tests/support/stock_web_service.py"
DESCRIPTION = Description(
    {"img": TensorSpec((3, 2, 2), "float32")}, {"prob": TensorSpec((5,), "float32")}
)
IMAGES = np.random.default_rng(0).random((7, 3, 2, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with serving_server and serving_client, and the network that is in it."""
    paddle = pytest.importorskip("paddle")
    net = paddle.nn.Sequential(
        paddle.nn.Flatten(), paddle.nn.Linear(12, 5), paddle.nn.Softmax(axis=-1)
    )
    directory = tmp_path_factory.mktemp("serving")
    export_model(net, directory, {"img": ((3, 2, 2), "float32")}, ["prob"], pdmodel=True)
    return directory, lambda images: net(paddle.to_tensor(images)).numpy()


def test_the_official_http_client_gets_its_answers_from_our_teacher(paddle_model):
    with Teacher("--model", paddle_model) as teacher:
        conf = paddle_model / "serving_client"
        results = paddle_serving.run("official_http_client.py", teacher.endpoint, conf)
    img = np.arange(600, dtype="f4").reshape(200, 3) / 8
    for name in ("protobuf", "protobuf gzip", "json", "json gzip"):
        assert np.allclose(results[name]["twice"], 2 * img + 1), name
        assert np.allclose(results[name]["total"], img.sum(axis=1, keepdims=True)), name
        assert list(results[name]) == ["total", "twice"], "in the order that was asked for"
    assert sorted(results["unknown fetches are dropped by the client"]) == ["total", "twice"]
    assert results["wrong shape"] is None, "what the client makes of an error"


def test_our_teacher_hosts_what_the_official_tool_writes(tmp_path):
    outputs = paddle_serving.run("official_save_model.py", tmp_path)
    x = np.arange(6, dtype="f4").reshape(2, 3)
    for directory in (tmp_path, tmp_path / "serving_server"):
        with Teacher("--model", directory) as teacher, Entry().connect(teacher.endpoint) as client:
            assert np.allclose(client.infer({"img": x})["prob"], outputs, atol=1e-6)


@pytest.mark.parametrize("form", ["tensors", "key_value"])
def test_our_web_service_answers_both_forms_of_requests(model, form, tmp_path):
    directory, forward = model
    with Pipeline(WEB_SERVICE, directory / "serving_server", tmp_path) as pipeline:
        with PipelineClient(pipeline.endpoint, DESCRIPTION, form) as client:
            outputs = client.infer({"img": IMAGES}, ["prob"])
            assert np.allclose(outputs["prob"], forward(IMAGES), atol=1e-6)
            with pytest.raises(RequestRefused, match="invalid arg"):
                client.infer({"image": IMAGES})


def test_a_stock_web_service_is_a_teacher_too(model, tmp_path):
    directory, forward = model
    arguments = (directory / "serving_server", tmp_path, "--fetch", "prob")
    with Pipeline(STOCK, *arguments) as pipeline:
        with PipelineClient(pipeline.endpoint, DESCRIPTION) as client:
            outputs = client.infer({"img": IMAGES}, ["prob"])
    assert outputs["prob"].dtype == np.float32
    assert np.allclose(outputs["prob"], forward(IMAGES), atol=1e-6)


def test_a_student_reads_through_a_registered_pipeline_that_comes_and_goes(
    model, tmp_path, etcd_server, etcd, service
):
    directory, forward = model
    conf = directory / "serving_client" / "serving_client_conf.prototxt"
    where = ("--etcd", etcd_server.endpoint, "--service", service)
    images = np.random.default_rng(1).random((60, 4, 3, 2, 2), dtype=np.float32)
    with Pipeline(WEB_SERVICE, directory / "serving_server", tmp_path) as pipeline:
        options = ("--protocol", "pipeline", "--conf", conf, "--probe", "--interval", 0.2)
        with Registrar(*where, "--server", pipeline.endpoint, *options, "--timeout", 2):
            eventually(lambda: list_nodes(etcd, service)[0].keys() == {pipeline.endpoint}, 20)
            with DistillReader(
                ["img"],
                ["prob"],
                source=[(batch,) for batch in images],
                teachers=f"etcd://{etcd_server.endpoint}/{service}",
                teacher_batch_size=3,
            ) as reader:
                for number, (batch, (img, prob)) in enumerate(zip(images, reader)):
                    assert img is batch or (img == batch).all()
                    assert np.allclose(prob, forward(batch), atol=1e-6)
                    if number == 20:
                        pipeline.signal(signal.SIGSTOP)
                        eventually(lambda: list_nodes(etcd, service)[0] == {}, 20)
                        pipeline.signal(signal.SIGCONT)
                assert number == 59
            eventually(lambda: list_nodes(etcd, service)[0].keys() == {pipeline.endpoint}, 20)
        assert list_nodes(etcd, service)[0] == {}, "the registrar takes its entry out"


def test_a_fixed_pipeline_needs_the_conf_file(model, tmp_path):
    directory, forward = model
    with Pipeline(WEB_SERVICE, directory / "serving_server", tmp_path) as pipeline:
        reader = DistillReader(
            ["img"], ["prob"], source=[(IMAGES,)], teachers=f"pipeline://{pipeline.endpoint}"
        )
        with pytest.raises(ReaderError, match="set_serving_conf_file"):
            list(reader)
        reader.set_serving_conf_file(
            str(directory / "serving_client" / "serving_client_conf.prototxt")
        )
        ((_, prob),) = reader
        reader.close()
    assert np.allclose(prob, forward(IMAGES), atol=1e-6)


def test_sparse_labels_of_a_paddle_serving_are_made_here_and_are_those_of_a_teacher(
    model, tmp_path, caplog
):
    directory, _ = model
    conf = directory / "serving_client" / "serving_client_conf.prototxt"
    images = np.random.default_rng(1).random((40, 4, 3, 2, 2), dtype=np.float32)
    form = {"top_k": 2, "temperature": 0.5, "samples": 3}

    def labelled_by(teacher):
        with DistillReader(["img"], ["prob"], list(images), teacher, **form) as reader:
            return list(reader.set_serving_conf_file(str(conf)))

    with Pipeline(WEB_SERVICE, directory / "serving_server", tmp_path) as pipeline:
        with Teacher("--model", directory) as teacher:
            served = f"pipeline://{pipeline.endpoint}"
            both = [labelled_by(one) for one in (teacher.endpoint, served)]
    assert "makes no sparse labels: it sends the whole 'prob'" in caplog.text
    for ours, theirs in zip(*both):
        for column, other in zip(ours[1:], theirs[1:]):
            assert (column.shape, column.dtype) == (other.shape, other.dtype)
            assert np.allclose(column, other, rtol=1e-3)


def test_a_paddle_serving_is_sent_and_sends_the_whole(model, tmp_path, caplog):
    directory, forward = model
    conf = directory / "serving_client" / "serving_client_conf.prototxt"
    wire = {"img": "float16", "prob": "bfloat16"}
    with Pipeline(WEB_SERVICE, directory / "serving_server", tmp_path) as pipeline:
        served = f"pipeline://{pipeline.endpoint}"
        with DistillReader(["img"], ["prob"], [(IMAGES,)] * 3, served, wire=wire) as reader:
            batches = list(reader.set_serving_conf_file(str(conf)))
    assert len(batches) == 3
    for _, prob in batches:
        assert prob.dtype == np.float32
        assert np.allclose(prob, forward(IMAGES), atol=1e-6)
    words = "takes and sends no narrower tensors: 'img' as float32 to it, 'prob' as float32 from it"
    assert caplog.text.count(words) == 1


def test_edl_bench_measures_a_pipeline(model, tmp_path):
    directory, _ = model
    conf = directory / "serving_client" / "serving_client_conf.prototxt"
    arguments = ("--protocol", "pipeline", "--conf", conf, "--seconds", 0.5, "--json")
    with Pipeline(WEB_SERVICE, directory / "serving_server", tmp_path) as pipeline:
        result = edl("bench", pipeline.endpoint, *arguments, "--batch", "1,8", "--clients", "2")
    assert result.returncode == 0, result.stderr
    one, eight = json.loads(result.stdout)
    assert (one["batch"], eight["batch"]) == (1, 8)
    assert eight["rows_per_second"] > one["rows_per_second"] > 0
    assert one["queue"] is None
