"""A checkpoint directory of PaddleFormers as a teacher. The only place that knows PaddleFormers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edl._paddle import import_paddle
from edl.errors import ConfigError, MissingDependencyError, ModelError
from edl.serving.model.accelerate import check, gpu_of, machine_of
from edl.serving.model.fingerprint import add_file
from edl.serving.model.language import LanguagePredictor, halves, has_head
from edl.serving.model.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from edl.serving.model.predictor import PredictorOptions

DTYPES = ("bfloat16", "float32", "float16")

_CONFIG = "config.json"
_WEIGHTS = (".safetensors", ".pdparams", ".bin")

_MOST_NAMED = 10

#: What PaddleFormers writes beside the weights whenever it loads them.
_WRITTEN = ".auto_generated.metadata"

#: What a configuration says of how and by what the model is computed, rather than what it is.
_NOT_THE_MODEL = (
    *("dtype", "torch_dtype", "use_cache", "_name_or_path", "name_or_path"),
    *("transformers_version", "paddleformers_version", "paddlenlp_version"),
)


def load_checkpoint(options: PredictorOptions) -> LanguagePredictor:
    """The model in the directory ``options.causal_lm``, tested.

    Raises ModelError if there is none that can be loaded and computed, ConfigError for options that
    cannot be, MissingDependencyError if Paddle or PaddleFormers is not installed.
    """
    directory = Path(options.causal_lm)
    weights = _find_weights(directory)
    if options.dtype and options.dtype not in DTYPES:
        raise ConfigError(f"dtype {options.dtype!r} is not one of {', '.join(DTYPES)}")
    paddle = import_paddle("hosting a language model")
    gpu = gpu_of(options.device)
    check(options, gpu, machine_of(gpu))
    auto_model = _import_paddleformers()
    paddle.set_device(options.device)
    if gpu is None:
        threads = options.cpu_threads or len(os.sched_getaffinity(0))
        paddle.base.core.set_num_threads(threads)
    dtype = options.dtype or _usual_dtype(directory, gpu)
    _check_dtype(paddle, dtype, options.device)
    with ThreadPoolExecutor(1) as pool, _linked(directory) as link:
        before = _identity(weights)
        fingerprint = pool.submit(_fingerprint, directory, weights)  # while they are loaded
        layer = _load(auto_model, link, dtype, directory, weights)
        extra = {"device": options.device, "precision": dtype}
        tokenizer = tokenizer_of(directory)
        if tokenizer:
            extra["tokenizer"] = tokenizer
        predictor = LanguagePredictor(
            halves(layer), fingerprint=fingerprint.result(), extra=extra, top_k=options.top_k
        )
        if _identity(weights) != before:
            raise ModelError(f"{directory} was replaced while it was loaded; try again")
    predictor.test(lambda ids: _first(layer(input_ids=ids, use_cache=False)))
    return predictor


def _find_weights(directory: Path) -> list[Path]:
    """The files of weights. Raises ModelError if this is no checkpoint directory, or one of them
    is no file.
    """
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise ModelError(f"no checkpoint directory at {directory}: {error.strerror}") from error
    weights = [directory / name for name in names if name.endswith(_WEIGHTS)]
    if _CONFIG not in names or not weights:
        there = ", ".join(names[:_MOST_NAMED]) or "nothing"
        raise ModelError(
            f"no checkpoint in {directory}: expected {_CONFIG} and weights (*.safetensors), as "
            f"save_pretrained writes them, but there is {there}"
        )
    for path in weights:
        if not path.is_file():
            target = f", but a link to {os.readlink(path)}" if path.is_symlink() else ""
            raise ModelError(f"{path} is no file of weights{target}")
    return weights


def _import_paddleformers() -> Any:
    try:
        from paddleformers.transformers import AutoModelForCausalLM
        from paddleformers.utils.log import logger
    except ImportError as error:
        raise MissingDependencyError(
            f"--causal-lm needs PaddleFormers: pip install 'paddle-edl[llm]' ({error})"
        ) from error
    logger.set_level("ERROR")
    return AutoModelForCausalLM


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / _CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {directory / _CONFIG}: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"cannot read {directory / _CONFIG}: it is no JSON object")
    return config


def _usual_dtype(directory: Path, gpu: Any) -> str:
    """What the checkpoint was saved in; on the CPU float32, which holds the same values."""
    config = _config(directory)
    dtype = config.get("dtype") or config.get("torch_dtype")
    return dtype if gpu is not None and dtype in DTYPES else "float32"


def _check_dtype(paddle: Any, dtype: str, device: str) -> None:
    """Raises ModelError if the device cannot compute in it."""
    try:
        with paddle.no_grad():
            one = paddle.ones([2, 2], dtype=dtype)
            paddle.matmul(one, one).numpy()
    except Exception as error:  # whatever Paddle's C++ says of a kernel that is not there
        raise ModelError(
            f"{device} cannot compute in {dtype} with this Paddle; say --dtype float32"
        ) from error


def _load(auto_model: Any, link: str, dtype: str, directory: Path, weights: list[Path]) -> Any:
    """The layer, in evaluation mode. Raises ModelError."""
    try:
        layer = auto_model.from_pretrained(link, dtype=dtype)
    except Exception as error:  # whatever is wrong with the files
        reason = str(error).replace(link, str(directory))
        raise ModelError(
            f"PaddleFormers cannot load {directory}: {type(error).__name__}: {reason}"
        ) from error
    if not has_head(layer):
        raise ModelError(
            f"{directory} holds a {type(layer).__name__}, which has no lm_head, or no config with "
            "vocab_size and hidden_size: it is no causal language model that can be hosted"
        )
    _check_shapes(layer, directory, weights)
    layer.eval()
    # PaddleFormers leaves sliding windows out of some models' masks unless it is "eager".
    sliding = "sliding_attention" in (getattr(layer.config, "layer_types", None) or ())
    layer.config._attn_implementation = "eager" if sliding else "sdpa"
    return layer


def _check_shapes(layer: Any, directory: Path, weights: list[Path]) -> None:
    """Raises ModelError for parameters that are larger or smaller in the files, of which
    PaddleFormers takes what fits and leaves the rest as it was drawn.
    """
    from safetensors import safe_open  # which PaddleFormers needs, too

    shapes = {}
    for path in weights:
        if path.suffix == ".safetensors":
            with safe_open(str(path), "np") as file:
                names = file.keys()
                shapes.update({name: file.get_slice(name).get_shape() for name in names})
    for name, parameter in layer.state_dict().items():
        own, saved = list(parameter.shape), list(shapes.get(name, parameter.shape))
        if sorted(own) != sorted(saved):  # it may have been transposed
            raise ModelError(
                f"{directory} does not fit its {_CONFIG}, by which {name} has shape {own}: in the "
                f"weights it has {saved}"
            )


def _first(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs.logits


@contextlib.contextmanager
def _linked(directory: Path) -> Iterator[str]:
    """Another directory with the same files: PaddleFormers writes into the one that it loads from,
    which others may load from as well, or which may be read-only.
    """
    with tempfile.TemporaryDirectory(prefix="edl-checkpoint-") as link:
        for path in directory.iterdir():
            if not path.name.endswith(_WRITTEN):
                os.symlink(path.resolve(), os.path.join(link, path.name))
        yield link


def _identity(paths: list[Path]) -> list[tuple[int, ...]]:
    """Of the files as they are now."""
    states = (path.stat() for path in paths)
    return [(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def _fingerprint(directory: Path, weights: list[Path]) -> str:
    """Of the weights' files and of the configuration, but for how it is computed."""
    digest = hashlib.blake2b(digest_size=16)
    for path in weights:
        digest.update(f"{path.name} {add_file(digest, path)} ".encode())
    config = {key: value for key, value in _config(directory).items() if key not in _NOT_THE_MODEL}
    digest.update(json.dumps(config, sort_keys=True).encode())
    return f"model:{digest.hexdigest()}"
