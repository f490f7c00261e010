"""How a predictor computes: device, threads, oneDNN, precision, TensorRT.

Everything that is asked for is passed to ``paddle.inference.Config``, or refused with the reason
where this build of Paddle or this machine lacks it: Paddle itself ignores some of it with no more
than a line in its log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from edl.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from edl.serving.model.predictor import PredictorOptions

PRECISIONS = ("fp32", "fp16", "bf16")

_GPU_MEMORY_MB = 256  # to begin with; Paddle's pool grows
_TENSORRT_WORKSPACE = 1 << 30
_TENSORRT_MAX_BATCH = 64
_TENSORRT_MIN_SUBGRAPH = 3
_NONE = (0, 0, 0)  # what Paddle says of a TensorRT that is not there


@dataclass(frozen=True)
class Machine:
    """What Paddle can do here. ``gpus``: how many it sees; None if it is built without CUDA.
    ``bf16``: on the device that is asked for. ``tensorrt_built``: this Paddle is built with it;
    ``tensorrt``: its libraries are installed too.
    """

    gpus: Optional[int]
    bf16: bool
    onednn: bool
    tensorrt_built: bool
    tensorrt: bool


def configure(config: Any, options: PredictorOptions) -> None:
    """Set up a ``paddle.inference.Config``.

    Raises ConfigError for options that contradict each other, ModelError for what this Paddle or
    this machine cannot do.
    """
    gpu = gpu_of(options.device)
    check(options, gpu, machine_of(gpu))
    if gpu is None:
        _use_cpu(config, options)
    else:
        _use_gpu(config, options, gpu)


def gpu_of(device: str) -> Optional[int]:
    """The number of the GPU that ``device`` names; None for the CPU. Raises ConfigError."""
    kind, colon, index = device.partition(":")
    if kind == "gpu" and (index.isdecimal() or not colon):
        return int(index or 0)
    if device == "cpu":
        return None
    raise ConfigError(f"device {device!r} is not cpu, gpu or gpu:N")


def check(options: PredictorOptions, gpu: Optional[int], machine: Machine) -> None:
    """Raises ConfigError for options that contradict each other, ModelError for what is asked of a
    ``machine`` that cannot do it. ``gpu``: see ``gpu_of``.
    """
    if options.precision not in PRECISIONS:
        raise ConfigError(f"precision {options.precision!r} is not one of {', '.join(PRECISIONS)}")
    if gpu is None:
        _check_cpu(options, machine)
    else:
        _check_gpu(options, gpu, machine)


def _check_gpu(options: PredictorOptions, gpu: int, machine: Machine) -> None:
    if options.onednn:
        raise ConfigError("oneDNN is for the CPU; leave --onednn out, or say --device cpu")
    if machine.gpus is None:
        raise ModelError(
            f"device {options.device} was asked for, but this Paddle is built for CPU only; "
            "install paddlepaddle-gpu or say --device cpu"
        )
    if gpu >= machine.gpus:
        raise ModelError(
            f"device gpu:{gpu} was asked for, but Paddle sees {machine.gpus} GPUs here"
        )
    if options.precision == "bf16" and not machine.bf16:
        raise ModelError(f"gpu:{gpu} cannot compute in bf16; say --precision fp16 or fp32")
    if options.tensorrt and not machine.tensorrt_built:
        raise ModelError("this Paddle is built without TensorRT; leave --tensorrt out")
    if options.tensorrt and not machine.tensorrt:
        raise ModelError("TensorRT's libraries are not installed here; leave --tensorrt out")


def _check_cpu(options: PredictorOptions, machine: Machine) -> None:
    if options.tensorrt:
        raise ConfigError("TensorRT is for GPUs; say --device gpu, or leave --tensorrt out")
    if options.precision == "fp16":
        raise ConfigError("fp16 is for GPUs; on the CPU say --precision bf16 or fp32")
    if _wants_onednn(options) and not machine.onednn:
        raise ModelError("this Paddle is built without oneDNN; leave --onednn and bf16 out")
    if options.precision == "bf16" and not machine.bf16:
        raise ModelError("this CPU cannot compute in bf16 (AVX-512 is needed); say fp32")


def _wants_onednn(options: PredictorOptions) -> bool:
    return bool(options.onednn) or options.precision == "bf16"


def machine_of(gpu: Optional[int]) -> Machine:
    """What there is, for the device that is asked for."""
    import paddle
    from paddle import inference
    from paddle.base import core

    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else None
    if gpu is None:
        bf16 = core.supports_bfloat16()
    else:
        bf16 = bool(gpus and gpu < gpus and paddle.amp.is_bfloat16_supported(f"gpu:{gpu}"))
    return Machine(
        gpus,
        bf16,
        onednn=core.is_compiled_with_mkldnn(),
        tensorrt_built=inference.get_trt_compile_version() != _NONE,
        tensorrt=inference.get_trt_runtime_version() != _NONE,
    )


def _use_cpu(config: Any, options: PredictorOptions) -> None:
    config.disable_gpu()
    threads = options.cpu_threads or len(os.sched_getaffinity(0))
    config.set_cpu_math_library_num_threads(threads)
    if _wants_onednn(options):
        config.enable_mkldnn()
    elif options.onednn is False:
        config.disable_mkldnn()
    if options.precision == "bf16":
        config.enable_mkldnn_bfloat16()


def _use_gpu(config: Any, options: PredictorOptions, gpu: int) -> None:  # pragma: no cover
    # Not measured: without a GPU, Paddle's Config accepts none of this.
    from paddle.inference import PrecisionType

    precision = {
        "fp32": PrecisionType.Float32,
        "fp16": PrecisionType.Half,
        "bf16": PrecisionType.Bfloat16,
    }[options.precision]
    config.enable_use_gpu(_GPU_MEMORY_MB, gpu, precision)
    if options.tensorrt:
        config.enable_tensorrt_engine(
            workspace_size=_TENSORRT_WORKSPACE,
            max_batch_size=_TENSORRT_MAX_BATCH,
            min_subgraph_size=_TENSORRT_MIN_SUBGRAPH,
            precision_mode=precision,
            use_static=False,
            use_calib_mode=False,
        )
