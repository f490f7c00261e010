"""Models in Paddle Serving's two directories."""

import dataclasses
import filecmp
import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest

from edl.errors import ConfigError, ModelError
from edl.serving import TensorSpec, export_model
from edl.serving.model.export import export_inference_model
from edl.serving.model.files import find_model
from edl.serving.model.prototxt import ModelConfig, Variable, read_config, write_config
from tests.support.processes import Teacher, edl

paddle = pytest.importorskip("paddle")
from edl.serving.model.predictor import PredictorOptions, load_predictor  # noqa: E402

OFFICIAL = Path(__file__).parents[2] / "vectors" / "official_save_model"
X = np.arange(6, dtype="f4").reshape(2, 3)


def outputs(model, feed="img", **options):
    predictor = load_predictor(PredictorOptions(model=str(model), **options))
    return predictor.run({feed: X}, list(predictor.description.fetches))


def test_a_layer_becomes_two_directories(tmp_path):
    net = paddle.nn.Linear(3, 2)
    files = export_model(net, tmp_path, {"img": ((3,), "float32")}, ["prob"])
    assert files == find_model(tmp_path) == find_model(tmp_path / "serving_server")
    server, client = tmp_path / "serving_server", tmp_path / "serving_client"
    assert {path.name for path in client.iterdir()} == {
        "serving_client_conf.prototxt",
        "serving_client_conf.stream.prototxt",
    }
    conf = read_config(client / "serving_client_conf.prototxt")
    assert conf == read_config(server / "serving_server_conf.prototxt")
    assert [variable.alias for variable in conf.fetches] == ["prob"]
    expected = net(paddle.to_tensor(X)).numpy()
    np.testing.assert_allclose(outputs(tmp_path)["prob"], expected, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_sublayers_keep_their_modes_and_are_exported_in_evaluation(training, tmp_path):
    net = paddle.nn.Sequential(
        paddle.nn.Dropout(0.5), paddle.nn.BatchNorm1D(3), paddle.nn.Linear(3, 2)
    )
    net.train() if training else net.eval()
    net[1].eval()
    net[2].train()
    before = [each.training for each in net.sublayers(include_self=True)]
    export_model(net, tmp_path, {"img": ((3,), "float32")}, ["prob"])
    assert [each.training for each in net.sublayers(include_self=True)] == before
    assert (outputs(tmp_path)["prob"] == outputs(tmp_path)["prob"]).all()


def test_fetches_may_say_shapes_and_dtypes_as_feeds_do(tmp_path):
    net = paddle.nn.Linear(3, 2)
    feeds = {"img": ((3,), "float32")}
    files = export_model(net, tmp_path, feeds, {"prob": ((2,), "float32")})
    for spec in [((3,), "float32"), ((2,), "int64"), ((2, 1), "float32")]:
        with pytest.raises(ConfigError, match=r"'prob' is said to be .* returns float32 \(2,\)"):
            export_model(net, tmp_path, feeds, {"prob": spec})
        assert files == find_model(tmp_path)
    assert set(outputs(tmp_path)) == {"prob"}


def test_a_fetch_may_be_called_like_a_feed(tmp_path):
    export_model(Scaled(lambda x, twice: twice), tmp_path, {"x": ((3,), "float32")}, ["x"])
    np.testing.assert_array_equal(outputs(tmp_path, "x")["x"], 2 * X)


class Scaled(paddle.nn.Layer):
    """Its parameter is called ``w``, its outputs what ``choose`` makes of x and 2 * x."""

    def __init__(self, choose):
        super().__init__()
        two = paddle.nn.initializer.Constant(2.0)
        self.w = self.create_parameter([3], default_initializer=two)
        self.choose = choose

    def forward(self, x):
        return self.choose(x, x * self.w)


@pytest.mark.parametrize("pdmodel", [False, True])
@pytest.mark.parametrize("name", ["the parameter's", "feed", "fetch_name_0", "tmp_0", "x"])
def test_a_feed_may_be_called_like_a_variable_of_the_program(name, pdmodel, tmp_path):
    net = Scaled(lambda x, twice: x * twice)
    name = net.w.name if name == "the parameter's" else name
    export_model(net, tmp_path, {name: ((3,), "float32")}, ["y"], pdmodel=pdmodel)
    np.testing.assert_array_equal(outputs(tmp_path, name)["y"], 2 * X * X)


@pytest.mark.parametrize("pdmodel", [False, True])
@pytest.mark.parametrize(
    ("choose", "values"),
    [
        (lambda x, twice: (twice, x), {"a": 2 * X, "b": X}),
        (lambda x, twice: [twice, twice], {"a": 2 * X, "b": 2 * X}),
        (lambda x, twice: (x, [x, None, x], (twice,)), {"a": X, "b": X, "c": X, "d": 2 * X}),
        (lambda x, twice: {"b": twice, "a": x}, {"b": 2 * X, "a": X}),
        (lambda x, twice: {"b": twice, "a": x}, {"a": X, "b": 2 * X}),
        (lambda x, twice: {"b": twice, "a": x}, {"first": 2 * X, "second": X}),
        (lambda x, twice: {"b": twice, "a": x, "c": x}, {"a": X, "b": 2 * X}),
    ],
    ids=["feed", "twice", "nested", "dict", "dict by name", "dict in order", "dict of more"],
)
def test_outputs_are_what_forward_returns_whatever_that_is(choose, values, pdmodel, tmp_path):
    export_model(Scaled(choose), tmp_path, {"x": ((3,), "float32")}, list(values), pdmodel=pdmodel)
    answer = outputs(tmp_path, "x")
    assert answer.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(answer[name], value)


@pytest.mark.parametrize(
    ("fetches", "words"),
    [
        (["a", "c"], "^the layer returns a dict of b, a, without c: name the fetches as it does$"),
        ("a", "fetches must be a list of names"),
        (["a", "a"], "must hold different names"),
    ],
)
def test_names_that_are_not_those_of_a_dict_are_refused(fetches, words, tmp_path):
    layer = Scaled(lambda x, twice: {"b": twice, "a": x})
    with pytest.raises((ConfigError, ModelError), match=words):
        export_model(layer, tmp_path, {"x": ((3,), "float32")}, fetches)
    assert not list(tmp_path.rglob("*.json"))


def test_a_layers_own_hooks_are_part_of_it(tmp_path):
    net = paddle.nn.Linear(3, 2)
    net.register_forward_post_hook(lambda layer, inputs, output: output + 100)
    export_model(net, tmp_path, {"img": ((3,), "float32")}, ["prob"])
    expected = net(paddle.to_tensor(X)).numpy()
    np.testing.assert_allclose(outputs(tmp_path)["prob"], expected, rtol=1e-5)


class Broken(paddle.nn.Layer):
    def forward(self, x):
        raise RuntimeError("broken")


def test_a_model_stays_whole_if_its_successor_cannot_be_exported(tmp_path):
    good, feeds = paddle.nn.Linear(3, 2), {"img": ((3,), "float32")}
    export_model(good, tmp_path, feeds, ["prob"])
    (tmp_path / "serving_server" / "labels.txt").write_text("cat\ndog\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ModelError, match="cannot export Broken"):
        export_model(Broken(), tmp_path, feeds, ["prob"])
    with pytest.raises(ConfigError, match="2 fetches were named"):
        export_model(good, tmp_path, feeds, ["prob", "hint"])
    with pytest.raises(ConfigError, match="2 feeds were named"):
        export_inference_model(OFFICIAL, tmp_path, ["a", "b"])
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert {path.name for path in tmp_path.iterdir()} == {"serving_server", "serving_client"}


class Failing(paddle.nn.Linear):
    def forward(self, x):
        super().forward(x)
        raise ValueError("no")


def test_of_a_layer_that_cannot_be_exported_nothing_is_left_for_the_next_one(tmp_path):
    """Paddle would keep its parameters, and give them to a program that has its address."""
    net = Failing(3, 2)
    weight = weakref.ref(net.weight)
    with pytest.raises(ModelError, match="no"):
        export_model(net, tmp_path, {"img": ((3,), "float32")}, ["prob"])
    del net
    gc.collect()
    assert weight() is None


def test_a_model_is_replaced_by_any_other_and_what_else_is_there_stays(tmp_path):
    shutil.copytree(OFFICIAL, tmp_path, dirs_exist_ok=True)
    (tmp_path / "serving_server" / "labels.txt").write_text("cat\ndog\n")
    files = export_model(paddle.nn.Linear(3, 2), tmp_path, {"img": ((3,), "float32")}, ["prob"])
    assert {path.name for path in files.program.parent.iterdir()} == {
        *("model.json", "model.pdiparams", "labels.txt"),
        *("serving_server_conf.prototxt", "serving_server_conf.stream.prototxt"),
    }


def test_the_older_format_for_paddle_serving_itself(tmp_path):
    net = paddle.nn.Linear(3, 2)
    files = export_model(net, tmp_path, {"img": ((3,), "float32")}, ["prob"], pdmodel=True)
    assert files.program.name == "model.pdmodel"
    expected = net(paddle.to_tensor(X)).numpy()
    np.testing.assert_allclose(outputs(tmp_path)["prob"], expected, rtol=1e-5)


def test_what_the_official_tool_wrote_is_read(tmp_path):
    expected = json.loads((OFFICIAL / "outputs.json").read_text())
    np.testing.assert_allclose(outputs(OFFICIAL)["prob"], expected, rtol=1e-5)


def test_the_official_tools_prototxt_is_written_byte_for_byte(tmp_path):
    model = ModelConfig(
        (Variable("x", "img", TensorSpec((3,), "float32")),),
        (Variable("out.tmp_1", "prob", TensorSpec((2,), "float32")),),
    )
    for kind in ("server", "client"):
        name = f"serving_{kind}_conf.prototxt"
        write_config(tmp_path / name, model)
        for path in (tmp_path / name, (tmp_path / name).with_suffix(".stream.prototxt")):
            assert filecmp.cmp(path, OFFICIAL / f"serving_{kind}" / path.name, shallow=False)


def test_an_inference_model_gets_names(tmp_path):
    spec = [paddle.static.InputSpec([None, 3], "float32", "x")]
    net = paddle.nn.Linear(3, 2)
    paddle.jit.save(net, str(tmp_path / "in" / "m"), input_spec=spec)
    export_inference_model(tmp_path / "in", tmp_path / "out", ["img"], ["prob"])
    np.testing.assert_allclose(
        outputs(tmp_path / "out")["prob"], net(paddle.to_tensor(X)).numpy(), rtol=1e-5
    )
    export_inference_model(tmp_path / "in" / "m", tmp_path / "out")
    assert list(outputs(tmp_path / "out", "x")) == ["fetch_name_0"], "its own names; replaced"


def test_what_the_official_tool_wrote_can_be_exported_again(tmp_path):
    export_inference_model(OFFICIAL, tmp_path, ["picture"], ["scores"])
    expected = json.loads((OFFICIAL / "outputs.json").read_text())
    np.testing.assert_allclose(outputs(tmp_path, "picture")["scores"], expected, rtol=1e-5)


def test_wrong_numbers_of_names_and_missing_models_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"2 feeds were named \(a, b\), but the model has 1 \(x\)"
    ):
        export_inference_model(OFFICIAL, tmp_path, ["a", "b"])
    with pytest.raises(ConfigError, match="2 fetches were named"):
        export_inference_model(OFFICIAL, tmp_path, None, ["a", "b"])
    with pytest.raises(ModelError, match="no inference model at"):
        export_inference_model(tmp_path / "nothing", tmp_path / "out")
    shutil.copytree(OFFICIAL, tmp_path / "copy")
    with pytest.raises(ConfigError, match="already; export it to another directory"):
        export_inference_model(tmp_path / "copy", tmp_path / "copy")


def test_the_command_exports_a_layer_with_its_weights(tmp_path):
    net = paddle.vision.models.LeNet()
    paddle.save(net.state_dict(), str(tmp_path / "w.pdparams"))
    result = edl(
        *("export", "--layer", "paddle.vision.models:LeNet", "--weights", tmp_path / "w.pdparams"),
        *("--feed", "img:float32:1,28,28", "--fetch", "logits", "--out", tmp_path / "out"),
    )
    assert (result.returncode, "exported" in result.stdout) == (0, True)
    image = np.ones((2, 1, 28, 28), "f4")
    with Teacher("--model", tmp_path / "out", "--no-local") as teacher:
        from edl.serving import TeacherClient

        with TeacherClient(teacher.endpoint) as client:
            logits = client.infer({"img": image})["logits"]
            served = client.describe()
    here = load_predictor(PredictorOptions(model=str(tmp_path / "out"))).description
    own = (
        "labels",
        "narrow",
        "local",
        "times",
        "batch_rows",
    )  # what the server does with any model
    extra = {key: value for key, value in served.extra.items() if key not in own}
    assert dataclasses.replace(served, extra=extra) == here, "the fingerprint too"
    net.eval()
    np.testing.assert_allclose(logits, net(paddle.to_tensor(image)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--model, or a layer with --layer"),
        (["--layer", "x:y"], "a layer needs --feed NAME:DTYPE:SHAPE and --fetch NAME"),
        (["--layer", "x:y", "--feed", "img", "--fetch", "p"], "is not NAME:DTYPE:SHAPE"),
        (["--layer", "no:thing", "--feed", "x:float32:3", "--fetch", "p"], "'no:thing'"),
        (["--model", "/no/such"], "no inference model at /no/such"),
        (["--model", "/no/such", "--pdmodel"], "go with --layer"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(arguments, complaint, tmp_path):
    result = edl("export", *arguments, "--out", tmp_path)
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_precisions_and_onednn_compute_the_same_within_their_precision(tmp_path):
    from paddle.base import core

    paddle.seed(0)
    net = paddle.nn.Sequential(paddle.nn.Linear(3, 64), paddle.nn.ReLU(), paddle.nn.Linear(64, 2))
    export_model(net, tmp_path, {"img": ((3,), "float32")}, ["prob"])
    expected = net(paddle.to_tensor(X)).numpy()
    for options in ({}, {"cpu_threads": 1}, {"onednn": True}, {"onednn": False}):
        np.testing.assert_allclose(outputs(tmp_path, **options)["prob"], expected, rtol=1e-4)
    if not core.supports_bfloat16():
        with pytest.raises(ModelError, match="AVX-512"):
            outputs(tmp_path, precision="bf16")
    else:
        np.testing.assert_allclose(outputs(tmp_path, precision="bf16")["prob"], expected, rtol=0.1)


def test_a_gpu_that_is_not_there_is_refused():
    if not paddle.is_compiled_with_cuda():
        with pytest.raises(ModelError, match="built for CPU only"):
            outputs(OFFICIAL, device="gpu:0")
    else:
        with pytest.raises(ModelError, match="Paddle sees"):
            outputs(OFFICIAL, device="gpu:99")
