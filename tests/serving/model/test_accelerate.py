"""What is asked of the hardware is set up, or refused with the remedy: never ignored."""

import os

import pytest

from edl.errors import ConfigError, ModelError
from edl.serving.model.accelerate import Machine, check, configure, gpu_of
from edl.serving.model.predictor import PredictorOptions

ABLE = {"gpus": 2, "bf16": True, "onednn": True, "tensorrt_built": True, "tensorrt": True}


@pytest.fixture
def config():
    inference = pytest.importorskip("paddle").inference
    return inference.Config()


def summary(config):
    """Paddle's own table of a configuration: option to value."""
    rows = (line.split("|")[1:3] for line in config.summary().splitlines() if "|" in line)
    return {name.strip(): value.strip() for name, value in rows}


def test_on_the_cpu_all_of_it_computes_unless_a_number_of_threads_is_said(config):
    configure(config, PredictorOptions(cpu_threads=3))
    assert (summary(config)["use_gpu"], summary(config)["cpu_math_thread"]) == ("false", "3")
    configure(config, PredictorOptions())
    assert int(summary(config)["cpu_math_thread"]) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("onednn", [True, False])
def test_onednn_is_as_it_was_asked_for(config, onednn):
    configure(config, PredictorOptions(onednn=onednn))
    assert config.mkldnn_enabled() == onednn


def test_bf16_on_the_cpu_is_onednns_or_refused(config):
    from paddle.base import core

    if core.supports_bfloat16():
        configure(config, PredictorOptions(precision="bf16"))
        assert config.mkldnn_enabled()
    else:
        with pytest.raises(ModelError, match="AVX-512"):
            configure(config, PredictorOptions(precision="bf16"))


@pytest.mark.parametrize(("device", "gpu"), [("cpu", None), ("gpu", 0), ("gpu:3", 3)])
def test_devices(device, gpu):
    assert gpu_of(device) == gpu


@pytest.mark.parametrize("device", ["", "CPU", "cpu:0", "gpu:", "gpu:x", "gpu:-1", "gpu:²", "npu"])
def test_what_is_not_a_device_is_refused(device):
    with pytest.raises(ConfigError, match="is not cpu, gpu or gpu:N"):
        gpu_of(device)


@pytest.mark.parametrize(
    ("options", "lacks", "complaint"),
    [
        ({"device": "gpu"}, {"gpus": None}, "built for CPU only; install paddlepaddle-gpu"),
        ({"device": "gpu"}, {"gpus": 0}, "gpu:0 was asked for, but Paddle sees 0 GPUs"),
        ({"device": "gpu:2"}, {}, "gpu:2 was asked for, but Paddle sees 2 GPUs"),
        ({"device": "gpu", "precision": "bf16"}, {"bf16": False}, "--precision fp16"),
        ({"device": "gpu", "tensorrt": True}, {"tensorrt_built": False}, "built without TensorRT"),
        ({"device": "gpu", "tensorrt": True}, {"tensorrt": False}, "libraries are not installed"),
        ({"onednn": True}, {"onednn": False}, "built without oneDNN"),
        ({"precision": "bf16"}, {"onednn": False}, "built without oneDNN"),
        ({"precision": "bf16"}, {"bf16": False}, "AVX-512 is needed"),
    ],
)
def test_what_a_machine_cannot_do_is_refused_and_what_it_can_is_not(options, lacks, complaint):
    asked = PredictorOptions(**options)
    gpu = gpu_of(asked.device)
    with pytest.raises(ModelError, match=complaint):
        check(asked, gpu, Machine(**{**ABLE, **lacks}))
    check(asked, gpu, Machine(**{**ABLE, "gpus": 3}))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"device": "gpu", "onednn": True}, "oneDNN is for the CPU"),
        ({"tensorrt": True}, "TensorRT is for GPUs"),
        ({"precision": "fp16"}, "fp16 is for GPUs"),
        ({"precision": "int4"}, "'int4' is not one of fp32, fp16, bf16"),
    ],
)
def test_options_that_contradict_each_other_are_refused_on_any_machine(options, complaint):
    asked = PredictorOptions(**options)
    with pytest.raises(ConfigError, match=complaint):
        check(asked, gpu_of(asked.device), Machine(**ABLE))
