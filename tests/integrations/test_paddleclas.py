"""A PaddleClas config with its teacher somewhere else, in what stands in for PaddleClas."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edl.errors import BatchRefused, ConfigError, NoTeacherError
from edl.serving import TensorSpec, serve
from edl.serving.model.files import find_model
from edl.serving.model.predictor import PredictorOptions, load_predictor
from tests.support.processes import ROOT

paddle = pytest.importorskip("paddle")

STANDIN = Path(__file__).parent / "standin"
ROWS, COUNT = 8, 40
FEEDS, FETCHES = {"x": ((3,), "float32")}, ["logits"]

CONFIG = {
    "Global": {"device": "cpu", "epochs": 2, "image_shape": [3]},
    "Arch": {
        "name": "DistillationModel",
        "freeze_params_list": [True, False],
        "models": [
            {"Teacher": {"name": "Net", "width": 32}},
            {"Student": {"name": "Net", "width": 2}},
        ],
    },
    "DataLoader": {
        "Train": {
            "dataset": {"count": COUNT},
            "sampler": {"batch_size": ROWS, "shuffle": True, "drop_last": False},
            "loader": {"num_workers": 0},
        },
        "Eval": {
            "dataset": {"count": COUNT},
            "sampler": {"batch_size": ROWS},
            "loader": {"num_workers": 0},
        },
    },
}


@pytest.fixture(autouse=True)
def ppcls(monkeypatch):
    monkeypatch.syspath_prepend(str(STANDIN))


@pytest.fixture
def net():
    from ppcls.arch import Net
    from ppcls.utils.logger import init_logger

    init_logger()
    paddle.seed(3)
    return Net(32)


@pytest.fixture
def teacher(net):
    with serve(net, FEEDS, FETCHES) as served:
        yield served


def configured(directory, teachers=None, **settings):
    config = copy.deepcopy(CONFIG)
    config["Global"]["output_dir"] = str(directory)
    if teachers is not None:
        config["EDL"] = {"teachers": teachers, **settings}
    return config


def engine_of(config, mode="train"):
    from edl.integrations.paddleclas import Engine

    paddle.seed(5)
    return Engine(config, mode)


def test_a_config_trains_with_its_teacher_somewhere_else(tmp_path, teacher):
    engine = engine_of(configured(tmp_path, teacher.endpoint))
    before = engine.model.Student.head.weight.numpy()
    engine.train()
    assert (engine.model.Student.head.weight.numpy() != before).any()
    assert len(engine.losses) == 2 * COUNT // ROWS
    assert sorted(engine.labels) == sorted(2 * [index % 4 for index in range(COUNT)])
    assert len(engine.accuracies) == 2
    weights = paddle.load(str(tmp_path / "epoch_2.pdparams"))
    assert weights
    assert all(name.startswith("Student.") for name in weights)


def test_losses_are_those_with_the_teacher_in_the_same_process(tmp_path, net):
    net.drop.p = 0.0

    def losses(config, frozen):
        engine = engine_of(config)
        engine.model.Student.set_state_dict({"head.weight": paddle.ones([2, 4]) / 4})
        engine.model.Student.body.weight.set_value(paddle.ones([3, 2]) / 2)
        engine.model.Student.drop.p = 0.0
        if frozen:
            engine.model.Teacher.set_state_dict(net.state_dict())
            engine.model.Teacher.drop.p = 0.0
        engine.train()
        return engine.losses

    local = losses(configured(tmp_path), frozen=True)
    with serve(net, FEEDS, FETCHES) as served:
        remote = losses(configured(tmp_path, served.endpoint), frozen=False)
    np.testing.assert_allclose(remote, local, rtol=1e-4)


def test_resume_goes_on_with_the_order_of_the_next_epoch(tmp_path, teacher):
    whole = engine_of(configured(tmp_path, teacher.endpoint))
    whole.train()
    config = configured(tmp_path, teacher.endpoint)
    config["Global"]["checkpoints"] = str(tmp_path / "epoch_1")
    resumed = engine_of(config)
    resumed.train()
    assert len(resumed.labels) == COUNT
    assert resumed.labels == whole.labels[COUNT:] != whole.labels[:COUNT]


def test_what_the_engine_looks_at_is_the_loaders_own(tmp_path):
    loader = engine_of(configured(tmp_path, "127.0.0.1:1")).train_dataloader
    assert len(loader) == COUNT // ROWS
    assert len(loader.dataset) == COUNT
    assert loader.batch_size is None
    assert loader.collate_fn is None
    assert len(copy.copy(loader)) == len(loader)
    assert not hasattr(loader, "batch_transform")


def test_an_error_of_ours_is_not_taken_for_the_end_of_the_data(tmp_path):
    nobody = configured(tmp_path, "127.0.0.1:1", no_teacher_timeout=0.3)
    with pytest.raises(NoTeacherError):
        engine_of(nobody).train()


def test_an_error_in_the_middle_of_an_epoch_is_raised_once(tmp_path):
    asked = []

    def breaks(x):
        asked.append(len(x))
        if len(asked) > 2:
            raise RuntimeError("out of memory")
        return np.zeros((len(x), 4), "f4")

    with serve(breaks, FEEDS, {"logits": ((4,), "float32")}) as served:
        engine = engine_of(configured(tmp_path, served.endpoint))
        with pytest.raises(BatchRefused, match="out of memory"):
            engine.train()
    assert len(engine.losses) < COUNT // ROWS
    iter(engine.train_dataloader)  # it has been raised


def test_several_fetches_are_a_dict_as_of_models_that_return_one(tmp_path, net):
    def two(x):
        logits = net(paddle.to_tensor(x))
        return logits, logits * 2

    net.eval()
    four = ((4,), "float32")
    with serve(two, FEEDS, {"logits": four, "feature": four}) as served:
        config = configured(tmp_path, served.endpoint, fetches=["logits", "feature"])
        engine = engine_of(config)
        batch = next(iter(engine.train_dataloader))
        out = engine.model(batch[0])["Teacher"]
        engine.train_dataloader.close()
    assert (out["feature"].numpy() == 2 * out["logits"].numpy()).all()


def test_without_the_section_or_in_other_modes_it_is_paddleclas_engine(tmp_path):
    engine = engine_of(configured(tmp_path))
    assert isinstance(engine.train_dataloader, paddle.io.DataLoader)
    engine.train()
    assert len(engine.model.Teacher.parameters()) == 4
    evaluating = engine_of(configured(tmp_path, "127.0.0.1:1"), "eval")
    assert 0 <= evaluating.eval() <= 1
    assert evaluating.model.Teacher.parameters() == []


@pytest.mark.parametrize(
    ("section", "change", "complaint"),
    [
        ("Global", {"use_dali": True}, "Global.use_dali: False"),
        ("Global", {"to_static": True}, "Global.to_static: False"),
        ("Arch", {"pretrained_list": ["a", None]}, "leave out Arch.pretrained_list"),
        ("Arch", {"name": "Net"}, "only a DistillationModel has a teacher"),
        ("Arch", {"freeze_params_list": None}, "EDL.model must be one of Teacher, Student"),
        ("EDL", {"model": "Tutor"}, "EDL.model must be one of Teacher, Student"),
        ("EDL", {"teacher": "a:1"}, "EDL: .*unexpected keyword argument 'teacher'"),
        ("EDL", {"teachers": "a"}, "'a'"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, section, change, complaint):
    config = configured(tmp_path, "127.0.0.1:1")
    config[section].update(change)
    with pytest.raises(ConfigError, match=complaint):
        engine_of(config)


def test_the_configs_teacher_is_exported_as_it_answers_in_training(tmp_path):
    from edl.integrations.paddleclas import export_teacher

    paddle.seed(7)
    export_teacher(configured(tmp_path), tmp_path / "model")
    predictor = load_predictor(PredictorOptions(model=str(tmp_path / "model")))
    assert predictor.description.feeds == {"x": TensorSpec((3,), "float32")}
    assert list(predictor.description.fetches) == ["logits"]
    config = configured(tmp_path)
    del config["Global"]["image_shape"]
    with pytest.raises(ConfigError, match=r"Global\.image_shape"):
        export_teacher(config, tmp_path)


def run(config, *arguments):
    path = Path(config["Global"]["output_dir"]) / "config.json"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "edl.integrations.paddleclas", *arguments, "-c", str(path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{STANDIN}"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_commands_export_and_train(tmp_path, teacher):
    done = run(configured(tmp_path), "export", str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    assert find_model(tmp_path / "model")
    config = configured(tmp_path, teacher.endpoint)
    done = run(config, "train", "-o", "Global.epochs=1")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.pdparams")) == ["epoch_1.pdparams"]
