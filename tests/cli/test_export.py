"""``edl export`` with weights of another layer. The rest is with the export itself."""

import pytest

from edl.serving import TensorSpec
from edl.serving.model.prototxt import read_config
from edl.serving.wire.labels import LabelForm
from tests.support.processes import edl


def test_weights_that_do_not_fit_are_refused_with_their_names(tmp_path):
    paddle = pytest.importorskip("paddle")
    paddle.save(paddle.nn.Linear(2, 2).state_dict(), str(tmp_path / "w.pdparams"))
    result = edl(
        *("export", "--layer", "paddle.vision.models:LeNet", "--weights", tmp_path / "w.pdparams"),
        *("--feed", "img:float32:1,28,28", "--fetch", "logits", "--out", tmp_path / "out"),
    )
    assert result.returncode == 1
    assert "does not fit paddle.vision.models:LeNet: missing features" in result.stderr
    assert "unexpected weight, bias" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_layer_is_exported_with_sparse_labels(tmp_path):
    pytest.importorskip("paddle")
    layer = ("export", "--layer", "paddle.vision.models:LeNet", "--out", tmp_path)
    feed = ("--feed", "img:float32:1,28,28", "--fetch", "logits")
    result = edl(*layer, *feed, "--top-k", 3, "--temperature", 2, "--samples", 2)
    assert result.returncode == 0, result.stderr
    conf = read_config(tmp_path / "serving_server" / "serving_server_conf.prototxt")
    form = LabelForm(3, 2.0, 2)
    assert [v.alias for v in conf.fetches] == [f"logits.{part}?{form}" for part in form.parts]
    assert [variable.alias for variable in conf.feeds] == ["img", "labels.seed"]


@pytest.mark.parametrize(
    "option", [["--top-k", "3"], ["--pdmodel"], ["--samples", "2"], ["--preprocess", "img"]]
)
def test_a_model_that_is_there_is_copied_as_it_is(option, tmp_path):
    result = edl("export", "--model", tmp_path, "--out", tmp_path, *option)
    assert result.returncode == 2
    assert "go with --layer" in result.stderr


def test_a_layer_is_exported_for_raw_images(tmp_path):
    pytest.importorskip("paddle")
    layer = ("export", "--layer", "paddle.vision.models:LeNet", "--out", tmp_path)
    feed = ("--feed", "img:float32:1,28,28", "--fetch", "logits")
    result = edl(*layer, *feed, "--preprocess", "img:scale=1/255:mean=0.5:std=0.5:layout=HWC")
    assert result.returncode == 0, result.stderr
    conf = read_config(tmp_path / "serving_server" / "serving_server_conf.prototxt")
    assert [variable.spec for variable in conf.feeds] == [TensorSpec((28, 28, 1), "uint8")]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("img:mean=a", "'mean=a' is none of scale=N, mean=N,N,N, std=N,N,N and layout=HWC"),
        ("img:scale=1/0", "'scale=1/0' is none of"),
        ("img:size=3", "'size=3' is none of"),
        ("img:std=0", "std must not be 0"),
        ("image", "preprocess names 'image', which is no feed"),
    ],
)
def test_a_normalisation_that_is_none_is_refused(said, words, tmp_path):
    pytest.importorskip("paddle")
    result = edl(
        *("export", "--layer", "paddle.vision.models:LeNet", "--out", tmp_path / "out"),
        *("--feed", "img:float32:1,28,28", "--fetch", "logits", "--preprocess", said),
    )
    assert result.returncode in (1, 2)
    assert words in " ".join(result.stderr.split())
