"""What a worker process runs: a Paddle inference model, or anything with the same two members."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Protocol, Union

import numpy as np

from edl._checks import check_count
from edl._paddle import import_paddle
from edl.errors import ModelError
from edl.serving.model.accelerate import configure, gpu_of
from edl.serving.model.factory import make
from edl.serving.model.files import ModelFiles, find_model
from edl.serving.model.fingerprint import fingerprint_of
from edl.serving.model.prototxt import (
    WITHOUT_LOD,
    ModelConfig,
    Variable,
    in_order,
    read_config,
)
from edl.serving.wire.description import Description, TensorSpec, with_pads


class Predictor(Protocol):
    """Computes outputs from feeds, one call at a time. It raises BadRequest where these are wrong.

    Where several models may be under one service, its description has a fingerprint of its own.
    With an attribute ``fresh_outputs`` that is true it promises that it does not touch outputs once
    it has returned them: then large ones are copied out while it computes the next batch.
    """

    description: Description

    def run(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> dict[str, np.ndarray]:
        """Outputs (rows first) for feeds with the same number of rows, both by alias."""


@dataclass(frozen=True)
class PredictorOptions:
    """Which predictor a worker makes.

    ``model``: a model directory or prefix. ``python``: ``module:factory`` instead, where
    ``factory()`` returns a Predictor. ``causal_lm``: a checkpoint directory of PaddleFormers
    instead, to be computed in ``dtype`` (empty: its own, on a CPU float32); ``top_k``: the largest
    that may be asked of it. ``device``: ``cpu``, ``gpu`` or ``gpu:N``.
    ``cpu_threads``: threads of the CPU math library; 0: as many as CPUs may be used.
    ``cpus``: the CPUs that may be used; empty: all that the process may use.
    ``onednn``: use oneDNN on the CPU or not; None leaves it to Paddle. ``precision``: ``fp32``, or
    ``fp16`` (GPU) or ``bf16`` (GPU, or CPU with oneDNN) for the operators that have it.
    ``tensorrt``: build TensorRT engines. ``pads``: for feeds and fetches whose rows are sequences,
    what short ones are filled up with, where the predictor does not say it itself. Raises
    ConfigError if ``cpu_threads`` is not a number of threads; the rest is judged when a worker
    makes its predictor.
    """

    model: str = ""
    python: str = ""
    device: str = "cpu"
    cpu_threads: int = 0
    cpus: Sequence[int] = ()
    onednn: Optional[bool] = None
    precision: str = "fp32"
    tensorrt: bool = False
    causal_lm: str = ""
    dtype: str = ""
    top_k: int = 256
    pads: Mapping[str, Union[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("top_k", self.top_k)
        check_count("cpu_threads", self.cpu_threads, 0)


def load_predictor(options: PredictorOptions) -> Predictor:
    """Make the predictor and run it once on zeros, so that no student waits for its first run."""
    predictor: Predictor
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)
    if options.python:
        predictor = make(options.python, "predictor")
    elif options.causal_lm:
        from edl.serving.model.checkpoint import load_checkpoint

        predictor = load_checkpoint(options)
    else:
        predictor = PaddlePredictor(find_model(Path(options.model)), options)
    if options.pads:
        predictor.description = with_pads(predictor.description, options.pads)
    _warm_up(predictor)
    return predictor


def _warm_up(predictor: Predictor) -> None:
    specs = predictor.description.needed
    if all(spec.has_fixed_size for spec in specs.values()):  # else no telling what makes sense
        zeros = {name: spec.zeros() for name, spec in specs.items()}
        predictor.run(zeros, list(predictor.description.fetches))


def run_checked(
    predictor: Any, feeds: dict[str, np.ndarray], fetches: Sequence[str], on_device: bool = False
) -> dict[str, Any]:
    """The predictor's outputs; ``on_device``: as tensors where it computes. Raises ModelError if
    they have not as many rows as the feeds.
    """
    rows = len(next(iter(feeds.values())))
    outputs = (predictor.run_on_device if on_device else predictor.run)(feeds, fetches)
    for name in fetches:
        have = tuple(outputs[name].shape[:1])
        if have != (rows,):
            raise ModelError(f"output {name!r} has {have} rows for an input of {rows}")
    return outputs


class PaddlePredictor:
    """A Paddle inference model behind :class:`Predictor`'s interface.

    Raises ModelError if the files are not a model that can be served, MissingDependencyError if
    Paddle is not installed.
    """

    fresh_outputs = True

    def __init__(self, files: ModelFiles, options: PredictorOptions) -> None:
        paddle = import_paddle("hosting a Paddle model")
        from paddle import inference

        if files.is_directory:
            config = inference.Config(str(files.program.parent))
        else:
            config = inference.Config(str(files.program), str(files.params or ""))
        config.disable_glog_info()
        configure(config, options)
        try:
            before = _identity(files)
            model = _read_model(paddle, files)
            self._predictor = inference.create_predictor(config)
            fingerprint = fingerprint_of(files, model)
            if _identity(files) != before:  # what was loaded is not what was read after it
                raise ModelError(f"{files.program} was replaced while it was loaded; try again")
        except ModelError:
            raise
        except Exception as error:  # whatever Paddle's C++ says of a broken file
            raise ModelError(f"Paddle cannot load {files.program}: {error}") from error
        gpu = gpu_of(options.device)
        # Where the operators are missing that labels take (Paddle 2), they are made in numpy.
        self.on_gpu = gpu is not None and hasattr(paddle, "bitwise_right_shift")
        self._place = paddle.CPUPlace() if gpu is None else paddle.CUDAPlace(gpu)
        # Apart, for a fetch may be called like a feed.
        self._feeds = {variable.alias: variable.name for variable in model.feeds}
        self._fetches = {variable.alias: variable.name for variable in model.fetches}
        self.model = model
        self.description = model.describe(
            fingerprint, device=options.device, precision=options.precision
        )

    def run(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> dict[str, np.ndarray]:
        """See :class:`Predictor`."""
        for alias, array in feeds.items():
            handle = self._predictor.get_input_handle(self._feeds[alias])
            handle.reshape(array.shape)
            handle.copy_from_cpu(np.ascontiguousarray(array))
        self._predictor.run()
        return {
            alias: self._predictor.get_output_handle(self._fetches[alias]).copy_to_cpu()
            for alias in fetches
        }

    def run_on_device(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> dict[str, Any]:
        """The same as tensors, on the device that has computed them."""
        paddle = import_paddle("hosting a Paddle model")
        by_name = {self._feeds[alias]: array for alias, array in feeds.items()}
        given = [
            paddle.to_tensor(by_name[name], place=self._place)
            for name in self._predictor.get_input_names()
        ]
        tensors = dict(zip(self._predictor.get_output_names(), self._predictor.run(given)))
        return {alias: tensors[self._fetches[alias]] for alias in fetches}


def _identity(files: ModelFiles) -> list[tuple[int, ...]]:
    """Of the files as they are now."""
    paths = (files.program, files.params, files.conf, *files.separate)
    states = (path.stat() for path in paths if path is not None)
    return [(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def _read_model(paddle: Any, files: ModelFiles) -> ModelConfig:
    """Names, shapes and dtypes, from the program itself; aliases from the prototxt, if any."""
    model = _read_program(paddle, files)
    if files.conf is None:
        return model
    conf = read_config(files.conf)
    feeds = _with_aliases(model.feeds, conf.feeds, files.conf)
    named = in_order(model.fetches, conf.fetches) or conf.fetches
    fetches = _with_aliases(model.fetches, named, files.conf)
    return ModelConfig(feeds, fetches)


def _with_aliases(
    variables: tuple[Variable, ...], named: tuple[Variable, ...], conf: Path
) -> tuple[Variable, ...]:
    by_name = {variable.name: variable for variable in variables}
    missing = [variable.name for variable in named if variable.name not in by_name]
    if missing:
        raise ModelError(
            f"{conf} names {', '.join(missing)}, but the model beside it has {', '.join(by_name)}"
        )
    return tuple(
        Variable(variable.name, variable.alias, by_name[variable.name].spec) for variable in named
    )


def _read_program(paddle: Any, files: ModelFiles) -> ModelConfig:
    static_before = not paddle.in_dynamic_mode()
    paddle.enable_static()
    try:
        # A .pdmodel holds a program of Paddle 2; Paddle 3 reads one only in its old mode.
        old = files.program.suffix != ".json" and hasattr(paddle, "pir_utils")
        with contextlib.ExitStack() as stack:
            if old:
                stack.enter_context(paddle.pir_utils.OldIrGuard())
            stack.enter_context(paddle.static.scope_guard(paddle.static.Scope()))
            executor = paddle.static.Executor(paddle.CPUPlace())
            prefix, names = files.program.with_suffix(""), {}
            if files.is_directory:
                prefix, names = files.program.parent, {"model_filename": files.program.name}
            elif files.params is not None and files.params.stem != files.program.stem:
                prefix = files.program.parent
                names = {"model_filename": files.program.name, "params_filename": files.params.name}
            program, feed_names, fetch_vars = paddle.static.load_inference_model(
                str(prefix), executor, **names
            )
            feeds = _feed_variables(program, feed_names)
            fetches = [
                _variable(_fetch_name(value, index), value)
                for index, value in enumerate(fetch_vars)
            ]
            return ModelConfig(tuple(feeds), tuple(fetches))
    finally:
        if not static_before:
            paddle.disable_static()


def _feed_variables(program: Any, names: Sequence[str]) -> list[Variable]:
    block = program.global_block()
    if hasattr(block, "var"):  # a .pdmodel program
        return [_variable(name, _dense(block.var(name))) for name in names]
    values = {
        operator.attrs()["name"]: operator.results()[0]
        for operator in block.ops
        if operator.name() == "pd_op.data"
    }
    return [_variable(name, values[name]) for name in names]


def _dense(variable: Any) -> Any:
    if variable.lod_level:
        raise ModelError(f"feed {variable.name!r} is a LoD tensor; {WITHOUT_LOD}")
    return variable


def _fetch_name(value: Any, index: int) -> str:
    """The name the inference predictor gives this output."""
    try:
        return value.name
    except ValueError:  # values of a .json program have no names; the predictor numbers them
        return f"fetch_name_{index}"


def _variable(name: str, value: Any) -> Variable:
    shape = tuple(int(size) for size in value.shape)
    if not shape or shape[0] != -1:
        raise ModelError(
            f"variable {name!r} has shape {list(shape)}: its first dimension must be the batch's, "
            "of any size; export the model with InputSpec([None, ...])"
        )
    return Variable(name, name, TensorSpec(shape[1:], _dtype_name(value.dtype)))


def _dtype_name(dtype: Any) -> str:
    """Numpy's name for a Paddle dtype (``paddle.float32``, or ``VarType.FP32`` of Paddle 2)."""
    name = str(dtype).rpartition(".")[2].lower()
    old_names = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}
    return "uint16" if name in ("bf16", "bfloat16") else old_names.get(name, name)
