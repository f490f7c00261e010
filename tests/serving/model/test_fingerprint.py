"""A model's fingerprint is made of its content."""

import os
import shutil

import pytest

from edl.errors import ModelError
from edl.serving import export_model
from edl.serving.model import predictor as module
from edl.serving.model.export import export_inference_model

paddle = pytest.importorskip("paddle")
from edl.serving.model.predictor import PredictorOptions, load_predictor  # noqa: E402

FEEDS = {"a": ((3,), "float32"), "b": ((3,), "float32")}


class Net(paddle.nn.Layer):
    """Its parameters have the same names in each."""

    def __init__(self, weight=1.0, sign=1.0):
        with paddle.utils.unique_name.guard():
            super().__init__()
            initializer = paddle.nn.initializer.Constant(weight)
            self.w = self.create_parameter([3], default_initializer=initializer)
        self.sign = sign

    def forward(self, a, b):
        return a * self.w + self.sign * b, a * self.w


def fingerprint(model, **options):
    description = load_predictor(PredictorOptions(model=str(model), **options)).description
    assert description.fingerprint.startswith("model:")
    return description.fingerprint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    export_model(Net(), directory, FEEDS, ["sum", "part"])
    return directory


def test_a_copy_elsewhere_is_the_same_model(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "serving_server" / "model.pdiparams", (1, 1))
    assert fingerprint(tmp_path / "copy") == fingerprint(model)


def test_however_it_is_computed_it_is_the_same_model(model):
    from paddle.base import core

    ways = [{"onednn": True}, {"cpu_threads": 1}]
    if core.supports_bfloat16():
        ways.append({"precision": "bf16"})
    assert {fingerprint(model, **options) for options in ways} == {fingerprint(model)}


def test_what_was_exported_again_is_the_same_model(model, tmp_path):
    export_model(Net(), tmp_path, FEEDS, ["sum", "part"])
    assert fingerprint(tmp_path) == fingerprint(model)


@pytest.mark.parametrize(
    ("net", "fetches"),
    [
        ({"weight": 1.5}, ["sum", "part"]),
        ({"sign": -1.0}, ["sum", "part"]),
        ({}, ["part", "sum"]),
        ({}, ["sum", "other"]),
    ],
    ids=["weights", "program", "order", "names"],
)
def test_anything_else_is_another_model(model, net, fetches, tmp_path):
    export_model(Net(**net), tmp_path, FEEDS, fetches)
    assert fingerprint(tmp_path) != fingerprint(model)


def test_other_names_for_the_same_files_are_another_model(model, tmp_path):
    export_inference_model(model, tmp_path, ["b", "a"], ["sum", "part"])
    assert fingerprint(tmp_path) != fingerprint(model), "the feeds are swapped"


def test_a_model_that_is_replaced_while_it_is_loaded_is_not_taken_for_either(
    model, tmp_path, monkeypatch
):
    shutil.copytree(model, tmp_path / "copy")
    read = module._read_model

    def read_and_replace(paddle, files):
        result = read(paddle, files)
        shutil.copy(files.params, tmp_path / "new")
        os.replace(tmp_path / "new", files.params)
        return result

    monkeypatch.setattr(module, "_read_model", read_and_replace)
    with pytest.raises(ModelError, match="was replaced while it was loaded"):
        load_predictor(PredictorOptions(model=str(tmp_path / "copy")))
