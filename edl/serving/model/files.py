"""Finding the files of an inference model. No Paddle is imported here.

A model is ``NAME.json`` (or ``NAME.pdmodel``, or ``__model__``) with ``NAME.pdiparams`` (or
``__params__``; Paddle Serving's ``save_model`` writes ``model.pdmodel`` with ``params.pdiparams``).
A ``.json`` program without parameters has no second file. Models of Paddle 1 may be ``__model__``
with a file for each parameter, named as it is. With ``serving_server_conf.prototxt``
beside it, it is a model in Paddle Serving's format, and the names that users say (aliases) are
taken from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from edl.errors import ModelError
from edl.serving.model.program import parameter_names
from edl.serving.model.prototxt import SERVER_CONF

#: Where Paddle Serving's tools put the model, beside ``serving_client``.
SERVER_DIRECTORY = "serving_server"

_PROGRAM_SUFFIXES = (".json", ".pdmodel")
_PARAMS_SUFFIX = ".pdiparams"
_OFFICIAL_PARAMS = "params.pdiparams"
_OLD_PROGRAM, _OLD_PARAMS = "__model__", "__params__"


@dataclass(frozen=True)
class ModelFiles:
    """The files of one inference model; ``conf`` is Paddle Serving's prototxt, if there is one.
    ``separate``: the files of a model whose parameters have one each, instead of ``params``.
    """

    program: Path
    params: Optional[Path]
    conf: Optional[Path] = None
    separate: tuple[Path, ...] = ()

    @property
    def is_directory(self) -> bool:
        """Whether Paddle is to be given the directory instead of two files: ``__model__`` alone."""
        return self.params is None and self.program.name == _OLD_PROGRAM


def find_model(path: Path) -> ModelFiles:
    """The model in the directory ``path`` (or its ``serving_server``), or with the prefix ``path``
    (``dir/name``).

    Raises ModelError, with what was found instead, if there is none or more than one.
    """
    if path.is_dir():
        candidates = _models_in(path) or _models_in(path / SERVER_DIRECTORY)
    else:
        prefix = path.with_suffix("") if path.suffix in _PROGRAM_SUFFIXES else path
        candidates = [
            (program, params)
            for program, params in _models_in(prefix.parent)
            if program.name.rpartition(".")[0] == prefix.name
        ]
    if not candidates:
        raise ModelError(
            f"no inference model at {path}: expected {_OLD_PROGRAM}, or NAME.json or NAME.pdmodel "
            f"with NAME.pdiparams ({_contents(path)})"
        )
    if len(candidates) > 1:
        names = ", ".join(program.name for program, _ in candidates)
        raise ModelError(f"{path} holds several models ({names}); name one, as in {path}/NAME")
    program, params = candidates[0]
    conf = program.parent / SERVER_CONF
    files = ModelFiles(program, params, conf if conf.is_file() else None)
    return replace(files, separate=_separate_parameters(program)) if files.is_directory else files


def _separate_parameters(program: Path) -> tuple[Path, ...]:
    """The files of the parameters of a program of Paddle 1, beside it."""
    paths = [program.parent / name for name in parameter_names(program)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelError(
            f"{program} has no {_OLD_PARAMS} beside it, and of the files of its {len(paths)} "
            f"parameters {len(missing)} are missing: {', '.join(missing[:5])}"
        )
    return tuple(paths)


def _models_in(directory: Path) -> list[tuple[Path, Optional[Path]]]:
    if not directory.is_dir():
        return []
    models: list[tuple[Path, Optional[Path]]] = []
    for suffix in _PROGRAM_SUFFIXES:
        for program in sorted(directory.glob(f"*{suffix}")):
            params = program.with_suffix(_PARAMS_SUFFIX)
            if not params.is_file():
                params = directory / _OFFICIAL_PARAMS
            if params.is_file():
                models.append((program, params))
            elif suffix == ".json" and _is_program(program):
                models.append((program, None))
    if (directory / _OLD_PROGRAM).is_file():
        params = directory / _OLD_PARAMS
        models.append((directory / _OLD_PROGRAM, params if params.is_file() else None))
    return models


def _is_program(path: Path) -> bool:
    """Whether a ``.json`` file is a Paddle program (and not just any JSON)."""
    with path.open("rb") as file:
        return b'"magic":"pir"' in file.read(200).replace(b" ", b"")


def _contents(path: Path) -> str:
    directory = path if path.is_dir() else path.parent
    if not directory.is_dir():
        return f"{directory} does not exist"
    names = sorted(item.name for item in directory.iterdir())
    return f"{directory} holds {', '.join(names[:10]) or 'nothing'}"
