"""Writing models that teachers host, in Paddle Serving's two directories.

``serving_server`` holds the model and its description, which ``edl teacher`` and Paddle Serving's
servers load; ``serving_client`` holds the description for clients of Paddle Serving. Students of
``edl teacher`` need neither: they ask the teacher.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from edl._paddle import import_paddle
from edl.errors import ConfigError, ModelError
from edl.serving.model.files import SERVER_DIRECTORY, ModelFiles, find_model
from edl.serving.model.predictor import PaddlePredictor, PredictorOptions
from edl.serving.model.prototxt import (
    CLIENT_CONF,
    SERVER_CONF,
    ModelConfig,
    Variable,
    write_config,
)

CLIENT_DIRECTORY = "serving_client"
_PREFIX = "model"


def export_model(
    layer: Any,
    directory: Union[str, Path],
    feeds: Mapping[str, tuple[Sequence[int], str]],
    fetches: Sequence[str],
    *,
    pdmodel: bool = False,
) -> ModelFiles:
    """Write ``layer`` as ``directory/serving_server`` and ``directory/serving_client``.

    ``layer``: a ``paddle.nn.Layer``; it is saved in evaluation mode and left as it was.
    ``feeds``: for each argument of ``forward``, in order, its name, row shape (no batch dimension)
    and dtype, as in ``{"img": ((3, 224, 224), "float32")}``.
    ``fetches``: a name for each value that ``forward`` returns, in order.
    ``pdmodel``: write a program of Paddle 2, as Paddle Serving 0.9 needs it, instead of a ``.json``
    one of Paddle 3.

    Raises ConfigError if the names do not fit the layer, ModelError if Paddle cannot export it.
    """
    paddle = import_paddle("exporting a model")
    server = Path(directory) / SERVER_DIRECTORY
    _make_way(server)
    spec = [
        paddle.static.InputSpec([None, *shape], dtype, name)
        for name, (shape, dtype) in feeds.items()
    ]
    was_training = layer.training
    layer.eval()
    try:
        with _program_format(paddle, pdmodel):
            paddle.jit.save(layer, str(server / _PREFIX), input_spec=spec)
    except Exception as error:  # Paddle's own variety
        raise ModelError(f"Paddle cannot export {type(layer).__name__}: {error}") from error
    finally:
        if was_training:
            layer.train()
    return _describe(Path(directory), list(feeds), list(fetches))


def export_inference_model(
    model: Union[str, Path],
    directory: Union[str, Path],
    feeds: Optional[Sequence[str]] = None,
    fetches: Optional[Sequence[str]] = None,
) -> ModelFiles:
    """Copy an inference model to ``directory/serving_server`` and ``directory/serving_client``.

    ``model``: what ``paddle.jit.save`` or ``paddle.static.save_inference_model`` wrote: a directory
    or prefix. ``feeds``, ``fetches``: the names that users will say, in the model's own order;
    default: the names it has.

    Raises ModelError if there is no such model, ConfigError if the number of names is wrong.
    """
    files = find_model(Path(model))
    server = Path(directory) / SERVER_DIRECTORY
    if files.program.parent.resolve() == server.resolve():
        raise ConfigError(f"{model} is in {server} already; export it to another directory")
    _make_way(server)
    suffix = files.program.suffix or ".pdmodel"  # __model__ is one
    shutil.copyfile(files.program, server / f"{_PREFIX}{suffix}")
    if files.params is not None:
        shutil.copyfile(files.params, server / f"{_PREFIX}.pdiparams")
    return _describe(Path(directory), feeds, fetches)


def _make_way(server: Path) -> None:
    """An empty model directory, or one whose model is to be replaced."""
    server.mkdir(parents=True, exist_ok=True)
    for path in server.iterdir():
        if path.is_file() and path.stem in (_PREFIX, SERVER_CONF.partition(".")[0]):
            path.unlink()


def _program_format(paddle: Any, pdmodel: bool) -> contextlib.AbstractContextManager:
    if pdmodel and hasattr(paddle, "pir_utils"):
        return paddle.pir_utils.OldIrGuard()
    return contextlib.nullcontext()


def _describe(
    directory: Path, feeds: Optional[Sequence[str]], fetches: Optional[Sequence[str]]
) -> ModelFiles:
    """Write the prototxt files of the model that is in ``directory/serving_server``."""
    server, client = directory / SERVER_DIRECTORY, directory / CLIENT_DIRECTORY
    own = PaddlePredictor(find_model(server / _PREFIX), PredictorOptions()).model
    model = ModelConfig(_named(own.feeds, feeds, "feed"), _named(own.fetches, fetches, "fetch"))
    client.mkdir(exist_ok=True)
    write_config(server / SERVER_CONF, model)
    write_config(client / CLIENT_CONF, model)
    return find_model(server)


def _named(
    variables: tuple[Variable, ...], names: Optional[Sequence[str]], kind: str
) -> tuple[Variable, ...]:
    if names is None:
        return variables
    if len(names) != len(variables):
        plural = f"{kind}es" if kind == "fetch" else f"{kind}s"
        own = ", ".join(variable.name for variable in variables)
        raise ConfigError(
            f"{len(names)} {plural} were named ({', '.join(names)}), but the model has "
            f"{len(variables)} ({own})"
        )
    return tuple(
        Variable(variable.name, name, variable.spec) for variable, name in zip(variables, names)
    )
