"""Finding models, and Paddle Serving's prototxt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.errors import ModelError
from edl.serving.model.files import find_model
from edl.serving.model.prototxt import ModelConfig, Variable, read_config, write_config
from edl.serving.wire.description import TensorSpec

#: As Paddle Serving 0.9's save_model writes it.
OFFICIAL = """\
feed_var {
  name: "x"
  alias_name: "img"
  is_lod_tensor: false
  feed_type: 1
  shape: 1
  shape: 28
  shape: 28
}
fetch_var {
  name: "softmax_0.tmp_0"
  alias_name: "prob"
  is_lod_tensor: false
  fetch_type: 1
  shape: 10
}
"""


def touch(directory, *names):
    for name in names:
        (directory / name).write_text("{}")


@pytest.mark.parametrize(
    "names", [("m.json", "m.pdiparams"), ("m.pdmodel", "m.pdiparams"), ("__model__", "__params__")]
)
def test_a_directory_with_one_model_is_enough(tmp_path, names):
    touch(tmp_path, *names)
    files = find_model(tmp_path)
    assert (files.program.name, files.params.name, files.conf) == (*names, None)


def test_the_prototxt_beside_a_model_is_found(tmp_path):
    touch(tmp_path, "m.json", "m.pdiparams", "serving_server_conf.prototxt")
    assert find_model(tmp_path).conf == tmp_path / "serving_server_conf.prototxt"


def test_of_several_models_one_is_named_by_its_prefix(tmp_path):
    touch(tmp_path, "a.json", "a.pdiparams", "b.v2.json", "b.v2.pdiparams", "notes.json")
    with pytest.raises(ModelError, match=r"several models \(a.json, b.v2.json\); name one"):
        find_model(tmp_path)
    assert find_model(tmp_path / "b.v2").program.name == "b.v2.json"
    assert find_model(tmp_path / "a.json").program.name == "a.json"


def test_a_program_without_parameters_is_one_file(tmp_path):
    (tmp_path / "sum.json").write_text('{"base_code": {"magic": "pir", "version": 1}}')
    (tmp_path / "notes.json").write_text("{}")
    files = find_model(tmp_path)
    assert (files.program.name, files.params) == ("sum.json", None)


def test_no_model_says_what_was_found_instead(tmp_path):
    touch(tmp_path, "weights.bin")
    with pytest.raises(ModelError, match=r"NAME.pdiparams .*holds weights.bin"):
        find_model(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        find_model(tmp_path / "no" / "where")


def test_the_official_prototxt_is_read_and_written(tmp_path):
    path = tmp_path / "conf.prototxt"
    path.write_text(OFFICIAL)
    config = read_config(path)
    image = Variable("x", "img", TensorSpec((1, 28, 28), "float32"))
    assert config.feeds == (image,)
    assert config.fetches[0].alias == "prob"
    write_config(path, config)
    assert path.read_text() == OFFICIAL


def test_a_prototxt_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read .*conf.prototxt: No such file"):
        read_config(tmp_path / "conf.prototxt")


def test_a_file_that_is_not_a_prototxt_is_refused_by_name(tmp_path):
    path = tmp_path / "conf.prototxt"
    path.write_text("feed_var { nonsense: 1 }")
    with pytest.raises(ModelError, match=r"conf.prototxt is not .*nonsense"):
        read_config(path)


dtypes = st.sampled_from(["int64", "float32", "uint16", "bool", "str"])
specs = st.builds(TensorSpec, st.lists(st.integers(-1, 5), max_size=3).map(tuple), dtypes)


@given(
    st.lists(st.builds(Variable, st.text("abc_.0", min_size=1), st.text("xyz", min_size=1), specs))
)
def test_configurations_round_trip_through_prototxt(tmp_path_factory, variables):
    path = tmp_path_factory.mktemp("conf") / "conf.prototxt"
    config = ModelConfig(tuple(variables), tuple(variables))
    write_config(path, config)
    assert read_config(path) == config
