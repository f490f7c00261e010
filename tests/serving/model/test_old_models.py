"""Teachers of Paddle 1's time: ``__model__``, confs of another Paddle, LoD tensors."""

import numpy as np
import pytest

from edl.errors import ModelError
from edl.serving import TeacherClient
from edl.serving.model.files import find_model
from edl.serving.model.fingerprint import fingerprint_of
from edl.serving.model.program import parameter_names
from edl.serving.model.prototxt import ModelConfig, read_config
from tests.support.processes import Teacher, edl

pytest.importorskip("paddle")

from edl.serving.model.predictor import PaddlePredictor, PredictorOptions
from tests.support import old_models

IMG = np.random.default_rng(0).random((5, 3), dtype=np.float32)

CONF = """
feed_var {{ name: "img" alias_name: "image" is_lod_tensor: {lod} feed_type: 1 shape: 3 }}
fetch_var {{ name: "{fetch}" alias_name: "prob"
  is_lod_tensor: false fetch_type: {kind} shape: {n} }}
"""


def conf(fetch, lod="false", dtype=1, size=4):
    return CONF.format(lod=lod, fetch=fetch, kind=dtype, n=size)


def softmax(weight, bias):
    logits = np.exp(IMG @ weight + bias)
    return logits / logits.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A directory with ``__model__`` and separate parameters, and what it computes."""
    directory = tmp_path_factory.mktemp("old")
    weight, bias, fetch = old_models.save_old_model(directory)
    return directory, softmax(weight, bias), fetch


@pytest.fixture
def copy(old, tmp_path):
    """The directory once more, for a test to change."""
    for path in old[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def predictor(directory):
    return PaddlePredictor(find_model(directory), PredictorOptions())


def test_edl_teacher_serves_a_model_whose_parameters_have_a_file_each(old):
    directory, expected, fetch = old
    assert {path.name for path in directory.iterdir()} == {"__model__", "fc_0.w_0", "fc_0.b_0"}
    with Teacher("--model", directory) as teacher, TeacherClient(teacher.endpoint) as client:
        assert list(client.describe().feeds) == ["img"]
        outputs = client.infer({"img": IMG})
    np.testing.assert_allclose(outputs[fetch], expected, rtol=1e-5)


def test_one_file_for_all_parameters_works_as_before(tmp_path):
    weight, bias, fetch = old_models.save_old_model(tmp_path / "model", "__params__")
    served = predictor(tmp_path / "model")
    np.testing.assert_allclose(
        served.run({"img": IMG}, [fetch])[fetch], softmax(weight, bias), rtol=1e-5
    )


def test_a_program_of_that_time_may_have_no_parameters(tmp_path):
    old_models.save_program_without_parameters(tmp_path / "model")
    served = predictor(tmp_path / "model")
    (output,) = served.run({"img": IMG}, list(served.description.fetches)).values()
    np.testing.assert_allclose(output, 2 * IMG)


def test_its_fingerprint_is_that_of_its_parameters_and_of_nothing_else_there(copy):
    def fingerprint():
        return fingerprint_of(find_model(copy), ModelConfig((), ()))

    before = fingerprint()
    (copy / "README").write_text("something")
    assert fingerprint() == before
    bias = bytearray((copy / "fc_0.b_0").read_bytes())
    bias[-1] ^= 1
    (copy / "fc_0.b_0").write_bytes(bias)
    assert fingerprint() != before


def test_a_parameter_without_its_file_is_named(copy):
    (copy / "fc_0.b_0").unlink()
    with pytest.raises(ModelError, match=r"of its 2 parameters 1 are missing: fc_0.b_0"):
        find_model(copy)


@pytest.mark.parametrize("content", [b"{}", b"\xff" * 9])
def test_a_file_of_that_name_that_is_no_program_is_refused(tmp_path, content):
    (tmp_path / "__model__").write_bytes(content)
    with pytest.raises(ModelError, match="__model__ is not a Paddle program"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", [b"../b.b_0", b"/etc/pas", b"fc_0\0b_0", b"a/../b_0"])
def test_parameters_that_would_lie_elsewhere_are_refused(copy, name):
    program = (copy / "__model__").read_bytes()
    (copy / "__model__").write_bytes(program.replace(b"fc_0.b_0", name))
    with pytest.raises(ModelError, match="no names of files"):
        parameter_names(copy / "__model__")


def test_it_can_be_exported_with_names(old, tmp_path):
    directory, expected, _ = old
    result = edl(
        "export", "--model", directory, "--feed", "image", "--fetch", "prob", "--out", tmp_path
    )
    assert result.returncode == 0, result.stderr
    served = predictor(tmp_path)
    np.testing.assert_allclose(served.run({"image": IMG}, ["prob"])["prob"], expected, rtol=1e-5)


def test_fetches_of_a_conf_written_by_another_paddle_go_by_their_order(copy, old, caplog):
    _, expected, fetch = old
    (copy / "serving_server_conf.prototxt").write_text(conf("save_infer_model/scale_0"))
    served = predictor(copy)
    assert f"'save_infer_model/scale_0' is taken to be the model's {fetch!r}" in caplog.text
    np.testing.assert_allclose(served.run({"image": IMG}, ["prob"])["prob"], expected, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"dtype": 0}, {"size": 5}])
def test_unless_they_are_of_another_kind(copy, wrong):
    (copy / "serving_server_conf.prototxt").write_text(conf("save_infer_model/scale_0", **wrong))
    with pytest.raises(ModelError, match=r"names save_infer_model/scale_0, but the model beside"):
        predictor(copy)


def test_a_lod_tensor_in_a_conf_is_refused_by_name(copy, old):
    (copy / "serving_server_conf.prototxt").write_text(conf(old[2], lod="true"))
    result = edl("teacher", "--model", copy)
    assert result.returncode == 1
    assert "serving_server_conf.prototxt: 'img' is a LoD tensor" in result.stderr
    assert "padded" in result.stderr


def test_and_in_a_student_s_conf(tmp_path):
    path = tmp_path / "serving_client_conf.prototxt"
    path.write_text(conf("prob", lod="true"))
    with pytest.raises(ModelError, match="'img' is a LoD tensor"):
        read_config(path)


def test_and_in_a_program_without_a_conf(tmp_path):
    old_models.save_lod_model(tmp_path / "model")
    with pytest.raises(ModelError, match="feed 'words' is a LoD tensor"):
        predictor(tmp_path / "model")
