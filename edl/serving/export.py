"""Writing a model that teachers host, with the names that students say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from edl.errors import ConfigError, ModelError
from edl.serving._paddle import import_paddle
from edl.serving.model import ModelFiles, find_model
from edl.serving.predictor import PaddlePredictor, PredictorOptions
from edl.serving.prototxt import SERVER_CONF, ModelConfig, Variable, write_config

_PREFIX = "model"


def export_model(
    layer: Any,
    directory: Union[str, Path],
    feeds: Mapping[str, tuple[Sequence[int], str]],
    fetches: Sequence[str],
) -> ModelFiles:
    """Write ``layer`` as an inference model with ``serving_server_conf.prototxt`` beside it.

    ``layer``: a ``paddle.nn.Layer``; it is saved in evaluation mode and left as it was.
    ``feeds``: for each argument of ``forward``, in order, its name, row shape (no batch dimension)
    and dtype, as in ``{"img": ((3, 224, 224), "float32")}``.
    ``fetches``: a name for each value that ``forward`` returns, in order.

    Raises ConfigError if the names do not fit the layer, ModelError if Paddle cannot export it.
    """
    paddle = import_paddle("exporting a model")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    spec = [
        paddle.static.InputSpec([None, *shape], dtype, name)
        for name, (shape, dtype) in feeds.items()
    ]
    was_training = layer.training
    layer.eval()
    try:
        paddle.jit.save(layer, str(directory / _PREFIX), input_spec=spec)
    except Exception as error:  # Paddle's own variety
        raise ModelError(f"Paddle cannot export {type(layer).__name__}: {error}") from error
    finally:
        if was_training:
            layer.train()
    (directory / SERVER_CONF).unlink(missing_ok=True)
    files = find_model(directory / _PREFIX)
    model = PaddlePredictor(files, PredictorOptions()).model
    if len(fetches) != len(model.fetches):
        raise ConfigError(
            f"{len(fetches)} fetches were named ({', '.join(fetches)}), but the layer returns "
            f"{len(model.fetches)} values"
        )
    named = tuple(
        Variable(variable.name, alias, variable.spec)
        for variable, alias in zip(model.fetches, fetches)
    )
    write_config(directory / SERVER_CONF, ModelConfig(model.feeds, named))
    return find_model(directory / _PREFIX)
