"""How a predictor computes: device, threads, oneDNN, precision, TensorRT.

Everything that is asked for is passed to ``paddle.inference.Config``, or refused with the reason
where this build of Paddle or this machine lacks it: Paddle itself ignores some of it with no more
than a line in its log.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edl.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from edl.serving.model.predictor import PredictorOptions

PRECISIONS = ("fp32", "fp16", "bf16")

_GPU_MEMORY_MB = 256  # to begin with; Paddle's pool grows
_TENSORRT_WORKSPACE = 1 << 30
_TENSORRT_MAX_BATCH = 64
_TENSORRT_MIN_SUBGRAPH = 3


def configure(config: Any, options: PredictorOptions) -> None:
    """Set up a ``paddle.inference.Config``.

    Raises ConfigError for options that contradict each other, ModelError for what this Paddle or
    this machine cannot do.
    """
    kind, _, index = options.device.partition(":")
    if options.precision not in PRECISIONS:
        raise ConfigError(f"precision {options.precision!r} is not one of {', '.join(PRECISIONS)}")
    if kind == "gpu" and (index.isdigit() or not index):
        _configure_gpu(config, options, int(index or 0))
    elif options.device == "cpu":
        _configure_cpu(config, options)
    else:
        raise ConfigError(f"device {options.device!r} is not cpu, gpu or gpu:N")


def _configure_gpu(config: Any, options: PredictorOptions, index: int) -> None:
    import paddle

    if options.onednn:
        raise ConfigError("oneDNN is for the CPU; leave --onednn out, or say --device cpu")
    if not paddle.is_compiled_with_cuda():
        raise ModelError(
            f"device {options.device} was asked for, but this Paddle is built for CPU only; "
            "install paddlepaddle-gpu or say --device cpu"
        )
    count = paddle.device.cuda.device_count()
    if index >= count:
        raise ModelError(f"device gpu:{index} was asked for, but Paddle sees {count} GPUs here")
    if options.precision == "bf16" and not paddle.amp.is_bfloat16_supported(f"gpu:{index}"):
        raise ModelError(f"gpu:{index} cannot compute in bf16; say --precision fp16 or fp32")
    precision = _precision(options.precision)
    config.enable_use_gpu(_GPU_MEMORY_MB, index, precision)
    if options.tensorrt:
        _enable_tensorrt(config, precision)


def _enable_tensorrt(config: Any, precision: Any) -> None:
    from paddle import inference

    if inference.get_trt_compile_version() == (0, 0, 0):
        raise ModelError("this Paddle is built without TensorRT; leave --tensorrt out")
    if inference.get_trt_runtime_version() == (0, 0, 0):
        raise ModelError("TensorRT's libraries are not installed here; leave --tensorrt out")
    config.enable_tensorrt_engine(
        workspace_size=_TENSORRT_WORKSPACE,
        max_batch_size=_TENSORRT_MAX_BATCH,
        min_subgraph_size=_TENSORRT_MIN_SUBGRAPH,
        precision_mode=precision,
        use_static=False,
        use_calib_mode=False,
    )


def _configure_cpu(config: Any, options: PredictorOptions) -> None:
    from paddle.base import core

    if options.tensorrt:
        raise ConfigError("TensorRT is for GPUs; say --device gpu, or leave --tensorrt out")
    if options.precision == "fp16":
        raise ConfigError("fp16 is for GPUs; on the CPU say --precision bf16 or fp32")
    config.disable_gpu()
    threads = options.cpu_threads or len(os.sched_getaffinity(0))
    config.set_cpu_math_library_num_threads(threads)
    wants_onednn = options.onednn or options.precision == "bf16"
    if wants_onednn:
        if not core.is_compiled_with_mkldnn():
            raise ModelError("this Paddle is built without oneDNN; leave --onednn and bf16 out")
        config.enable_mkldnn()
    elif options.onednn is False:
        config.disable_mkldnn()
    if options.precision == "bf16":
        if not core.supports_bfloat16():
            raise ModelError("this CPU cannot compute in bf16 (AVX-512 is needed); say fp32")
        config.enable_mkldnn_bfloat16()


def _precision(name: str) -> Any:
    from paddle.inference import PrecisionType

    return {
        "fp32": PrecisionType.Float32,
        "fp16": PrecisionType.Half,
        "bf16": PrecisionType.Bfloat16,
    }[name]
