"""Writing models that teachers host, in Paddle Serving's two directories.

``serving_server`` holds the model and its description, which ``edl teacher`` and Paddle Serving's
servers load; ``serving_client`` holds the description for clients of Paddle Serving. Students of
``edl teacher`` need neither: they ask the teacher.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

from edl._paddle import import_paddle
from edl.errors import ConfigError, EdlError, ModelError
from edl.serving.model.files import SERVER_DIRECTORY, ModelFiles, find_model
from edl.serving.model.labelled import (
    asked_of,
    column_specs,
    columns_of,
    label_feeds,
    with_labels,
)
from edl.serving.model.layer import evaluating, in_order
from edl.serving.model.predictor import PaddlePredictor, PredictorOptions
from edl.serving.model.preprocess import Preprocess, preprocessing, raw_feeds
from edl.serving.model.prototxt import (
    CLIENT_CONF,
    SERVER_CONF,
    ModelConfig,
    Variable,
    write_config,
)
from edl.serving.model.replace import replacing
from edl.serving.wire.description import Fetches, Specs, fetch_names, parse_specs
from edl.serving.wire.labels import TARGET_FEED, LabelForm

CLIENT_DIRECTORY = "serving_client"
_PREFIX = "model"

#: Names of a model that is replaced, as this module, Paddle Serving and Paddle 1 write it.
_MODEL_FILES = (f"{_PREFIX}.*", "params.pdiparams", "__model__", "__params__")

#: Names that Paddle gives to variables of a program on its own.
_PADDLE_NAMES = re.compile(r"feed|fetch|fetch_name_\d+|generated_tensor_\d+|(.*\.)?tmp_\d+")


def export_model(
    layer: Any,
    directory: Union[str, Path],
    feeds: Specs,
    fetches: Fetches,
    *,
    pdmodel: bool = False,
    top_k: Optional[int] = None,
    temperature: float = 1.0,
    samples: int = 0,
    preprocess: Optional[Mapping[str, Preprocess]] = None,
) -> ModelFiles:
    """Write ``layer`` as ``directory/serving_server`` and ``directory/serving_client``.

    ``layer``: a ``paddle.nn.Layer``; it is saved in evaluation mode and left as it was.
    ``feeds``: for each argument of ``forward``, in order, its name, row shape (no batch dimension)
    and dtype, as in ``{"img": ((3, 224, 224), "float32")}``.
    ``fetches``: a name for each value that ``forward`` returns, in order; if it returns a dict with
    these names, they go by name. A mapping like ``feeds`` says which shapes and dtypes they must
    have, too.
    ``pdmodel``: write a program of Paddle 2, as Paddle Serving 0.9 needs it, instead of a ``.json``
    one of Paddle 3.
    ``top_k``, ``temperature``, ``samples``: the program returns sparse labels in place of its
    fetches, which are logits (rows, ..., classes), so that these never leave the device, whatever
    server hosts it; readers with the same ``temperature`` and at most this ``top_k`` (exactly this
    one, if they want samples) get theirs from it. A fetch may say its own form instead, as in
    ``"logits?top_k=64&temperature=2"`` beside one that is whole. For a form with ``&target``,
    ``feeds`` says the shape of the ids: ``{"labels.target": ((-1,), "int64")}``.
    ``preprocess``: for some of the ``feeds``, how raw images become what the layer takes, as in
    ``{"img": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))}``. The program does
    it, so on the teacher's device, and its feed is uint8, in the layout of the raw images.

    A model that is there already stays until the new one is complete, and whole if this fails.
    Returns the paths of what was written. Raises MissingDependencyError without Paddle, ConfigError
    if names or shapes do not fit the layer, ModelError if Paddle cannot export it.
    """
    paddle, name = import_paddle("exporting a model"), type(layer).__name__
    form = _label_form(top_k, temperature, samples, TARGET_FEED in feeds)
    asked = asked_of(fetch_names(fetches), form)
    if preprocess:
        raw = raw_feeds(feeds, preprocess)
        layer, feeds = preprocessing(layer, feeds, preprocess), raw
    added, columns = label_feeds(asked, feeds), columns_of(asked)
    feeds = {**{name: kind for name, kind in feeds.items() if name not in added}, **added}
    spec: list[Any] = [
        paddle.static.InputSpec([None, *shape], dtype, feed)
        for feed, (shape, dtype) in zip(_program_names(layer, feeds), feeds.values())
    ]
    makes_labels = any(form is not None for _, form in asked)
    if makes_labels or preprocess:
        if makes_labels and pdmodel:
            raise ConfigError(
                "programs of Paddle 2 make no sparse labels: leave pdmodel, or the labels, out; of "
                "whole logits they are made by edl teacher, or by the student"
            )
        layer, spec = with_labels(layer, asked, list(added)), [spec]
    with _replacing_model(Path(directory)) as (server, client):
        with evaluating(layer), _program_format(paddle, pdmodel), _forgetting_failures():
            hook = layer.register_forward_post_hook(_distinct_outputs(paddle, columns))
            try:
                paddle.jit.save(layer, str(server / _PREFIX), input_spec=spec, with_hook=True)
            except Exception as error:  # Paddle's own variety
                said = ModelError(f"Paddle cannot export {name}: {error}")
                raise _ours(error) or said from error
            finally:
                hook.remove()
        model = _describe(server, client, list(feeds), columns)
        if isinstance(fetches, Mapping):
            _check_specs(model.fetches, column_specs(asked, fetches))
    return find_model(Path(directory) / SERVER_DIRECTORY)


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
    suffix = files.program.suffix or ".pdmodel"  # __model__ is one
    with _replacing_model(Path(directory)) as (fresh, client):
        program = files.program.name if files.is_directory else f"{_PREFIX}{suffix}"
        shutil.copyfile(files.program, fresh / program)
        for path in files.separate:
            copy = fresh / path.relative_to(files.program.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        if files.params is not None:
            shutil.copyfile(files.params, fresh / f"{_PREFIX}.pdiparams")
        _describe(fresh, client, feeds, fetches)
    return find_model(server)


def _label_form(
    top_k: Optional[int], temperature: float, samples: int, target: bool
) -> Optional[LabelForm]:
    if top_k is not None:
        return LabelForm(top_k, temperature, samples, target)
    if temperature != 1.0 or samples:
        raise ConfigError("temperature and samples say how sparse labels are made; set top_k, too")
    return None


def _program_names(layer: Any, feeds: Iterable[str]) -> list[str]:
    """What the program calls the feeds: as users do, for Paddle Serving's pipelines do not know the
    one from the other, unless a variable of the program is, or may be, called that.
    """
    variables = {each.name for each in (*layer.parameters(), *layer.buffers())}
    return [
        f"edl_feed_{index}" if name in variables or _PADDLE_NAMES.fullmatch(name) else name
        for index, name in enumerate(feeds)
    ]


@contextlib.contextmanager
def _replacing_model(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Two directories to write, which become serving_server and serving_client."""
    stale = (*_MODEL_FILES, f"{SERVER_CONF.partition('.')[0]}.*")
    client, server = directory / CLIENT_DIRECTORY, directory / SERVER_DIRECTORY
    with replacing(client) as new_client, replacing(server, *stale) as new_server:
        yield new_server, new_client


def _distinct_outputs(paddle: Any, fetches: Sequence[str]) -> Callable[..., Any]:
    """A hook on ``forward`` that gives each output a value of its own.

    A program cannot be loaded if an output is also a feed, and one that is returned twice is one
    output for Paddle. Of a dict Paddle takes the values in the order of the sorted keys.
    """

    def hook(_: Any, feeds: Any, outputs: Any) -> Any:
        outputs = in_order(outputs, fetches)
        latest = {id(feed): feed for feed in paddle.utils.flatten(feeds)}

        def distinct(value: Any) -> Any:
            if not hasattr(value, "shape"):  # None, or a number
                return value
            known = latest.get(id(value))
            # A copy of the latest copy: Paddle makes one of two copies of the same.
            latest[id(value)] = value if known is None else paddle.assign(known)
            return latest[id(value)]

        return paddle.utils.map_structure(distinct, outputs)

    return paddle.jit.not_to_static(hook)


def _program_format(paddle: Any, pdmodel: bool) -> contextlib.AbstractContextManager:
    if pdmodel and hasattr(paddle, "pir_utils"):
        return paddle.pir_utils.OldIrGuard()
    return contextlib.nullcontext()


def _ours(error: BaseException) -> Optional[EdlError]:
    """What this package has raised while a program was made, which Paddle raises again at the end
    of an account of the code; None if it was something else.
    """
    found, cause = None, error.__context__
    while cause is not None:
        if isinstance(cause, EdlError) and str(error).rstrip().endswith(str(cause)):
            found = cause
        cause = cause.__context__
    return found


@contextlib.contextmanager
def _forgetting_failures() -> Iterator[None]:
    """Let nothing be left of a program that cannot be made.

    Paddle 3 notes a program's parameters, and what replaces its variables, under ``id(program)``,
    and takes these notes away only when the program is complete. The next program at the same
    address, whoever makes it, would have the layer's parameters that could not be exported.
    """
    try:
        from paddle.jit.dy2static import parameter_recorder as recorder

        recorders = recorder._global_parameter_recorder, recorder._global_inplace_map
        notes = [recorders[0].params_dict, recorders[0].tensor2value, recorders[1].params_dict]
    except (ImportError, AttributeError):  # another Paddle
        notes = []
    before = [set(each) for each in notes]
    try:
        yield
    except BaseException:
        for each, known in zip(notes, before):
            for program in each.keys() - known:
                del each[program]
        raise


def _describe(
    server: Path, client: Path, feeds: Optional[Sequence[str]], fetches: Optional[Sequence[str]]
) -> ModelConfig:
    """Write the prototxt files of the model that is in ``server``; see that it can be loaded."""
    own = PaddlePredictor(find_model(server), PredictorOptions()).model
    model = ModelConfig(_named(own.feeds, feeds, "feed"), _named(own.fetches, fetches, "fetch"))
    write_config(server / SERVER_CONF, model)
    write_config(client / CLIENT_CONF, model)
    return model


def _check_specs(variables: Sequence[Variable], specs: Specs) -> None:
    """Raises ConfigError if a variable is not what ``specs`` says."""
    said = parse_specs(specs)
    for variable in variables:
        own, wanted = variable.spec, said[variable.alias]
        fits = len(own.shape) == len(wanted.shape) and all(
            -1 in pair or pair[0] == pair[1] for pair in zip(own.shape, wanted.shape)
        )
        if not fits or own.dtype != wanted.dtype:
            raise ConfigError(
                f"fetch {variable.alias!r} is said to be {wanted.dtype} {wanted.shape}, but the "
                f"layer returns {own.dtype} {own.shape}"
            )


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
