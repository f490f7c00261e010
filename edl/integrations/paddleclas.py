"""PaddleClas with a teacher that is somewhere else.

A distillation config says where its teachers are, and stays what it was otherwise::

    EDL:
      teachers: etcd://10.0.0.1:2379/resnet34

The model that the config freezes is not built then: its place in ``DistillationModel`` is taken by
the teachers' answers, and losses and metrics see what they would have seen. In ``tools/train.py``
the engine is this one::

    from edl.integrations.paddleclas import Engine

or, on one device, ``python -m edl.integrations.paddleclas train -c CONFIG``. ``export`` instead of
``train`` writes the config's teacher as a model for ``edl teacher``.

Besides ``teachers`` the section may hold ``model`` (the teacher's name under ``Arch.models``, if
not one model is frozen), ``feed`` and ``fetches`` (the names that the teachers serve; "x" and
["logits"]), and what else :class:`~edl.distill.DistillReader` takes by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import click
import ppcls.arch
import ppcls.engine.engine
from ppcls.utils.logger import init_logger

from edl._paddle import import_paddle
from edl.distill import DistillReader
from edl.errors import ConfigError
from edl.integrations.teacher import RemoteTeacher
from edl.serving import export_model

paddle = import_paddle("PaddleClas")

_SECTION = "EDL"
_LAYER = "RemoteTeacher"


class Teacher(RemoteTeacher):
    """A teacher as ``DistillationModel`` has it: a tensor, or a dict of them if there are several
    ``predicts``. None in evaluation, where only the student is looked at.
    """

    def forward(self, *inputs: Any, **more: Any) -> Any:
        """See RemoteTeacher."""
        if not self.training:
            return None
        outputs = super().forward(*inputs, **more)
        return outputs[0] if len(outputs) == 1 else dict(zip(self.names, outputs))


class TrainLoader:
    """What the engine trains on: the reader's batches in the form of the loader that it wraps. The
    ``teacher`` holds what is not in them. Whatever else the engine looks at is that loader's own.

    The engine takes any error as the end of the data and begins anew, so the next iteration raises
    it again.
    """

    def __init__(self, reader: DistillReader, teacher: RemoteTeacher) -> None:
        self._reader = reader
        self._teacher = teacher
        self._failure: Optional[Exception] = None

    def __iter__(self) -> Iterator[Any]:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return self._epoch()

    def _epoch(self) -> Iterator[Any]:
        try:
            yield from self._teacher.batches(self._reader)
        except Exception as error:
            self._failure = error
            raise

    def __len__(self) -> int:
        return len(self._reader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._reader, name)


class Engine(ppcls.engine.engine.Engine):
    """PaddleClas's engine. With a section "EDL" in the config, it has its teacher from there.

    Raises ConfigError if the config has no such teacher, or does with it what needs the teacher
    itself.
    """

    train_dataloader: Any

    def __init__(self, config: Any, mode: str = "train") -> None:
        section = config.get(_SECTION)
        if section is None:
            super().__init__(config, mode)
            return
        config = copy.deepcopy(config)
        options = {"feed": "x", "fetches": ["logits"], **section}
        name = _teacher_of(config, options.pop("model", None))
        feed, fetches = options.pop("feed"), options.pop("fetches")
        _refuse(config, name)
        setattr(ppcls.arch, _LAYER, Teacher)  # where a config's names are looked up
        _entry(config, name)[name] = {"name": _LAYER, "predicts": fetches}
        super().__init__(config, mode)
        if mode == "train":
            self._distill(options, feed, fetches)

    def _distill(self, options: Mapping[str, Any], feed: str, fetches: list[str]) -> None:
        layers = self.model.sublayers(include_self=True)
        (teacher,) = (layer for layer in layers if isinstance(layer, Teacher))
        loader = self.train_dataloader
        # Teachers read batches from the host's memory; the reader brings them to the device.
        loader.places = paddle.io.DataLoader(loader.dataset, places="cpu").places
        try:
            reader = DistillReader([feed], fetches, loader, places=self.device, **options)
        except TypeError as error:
            raise ConfigError(f"{_SECTION}: {error}") from error
        self.train_dataloader = TrainLoader(reader, teacher)

    def train(self) -> None:
        """Train; let go of the teachers afterwards."""
        try:
            super().train()
        finally:
            if isinstance(self.train_dataloader, TrainLoader):
                self.train_dataloader.close()


def export_teacher(config: Any, directory: Union[str, Path]) -> None:
    """Write the teacher of ``config`` as a model for ``edl teacher``, with the section's names. It
    answers with what the layer does, where PaddleClas's own export adds a softmax.

    Raises ConfigError if the config has no teacher, or no shape of its images.
    """
    options = {"feed": "x", "fetches": ["logits"], **(config.get(_SECTION) or {})}
    name = _teacher_of(config, options.get("model"))
    shape = config["Global"].get("image_shape")
    if not shape:
        raise ConfigError("the config has no Global.image_shape, which the teacher's model needs")
    init_logger()  # models log while they are made
    layer = ppcls.arch.build_model({**config, "Arch": _entry(config, name)[name]})
    feeds = {options["feed"]: (shape, "float32")}
    export_model(layer, directory, feeds, options["fetches"])


def _teacher_of(config: Any, said: Optional[str]) -> str:
    """The name of the model that is the teacher."""
    arch = config["Arch"]
    names = [next(iter(entry)) for entry in arch.get("models") or []]
    if arch["name"] != "DistillationModel" or not names:
        raise ConfigError(f"Arch is a {arch['name']}: only a DistillationModel has a teacher")
    frozen = [name for name, is_it in zip(names, arch.get("freeze_params_list") or []) if is_it]
    candidates = frozen if said is None else [name for name in names if name == said]
    if len(candidates) != 1:
        raise ConfigError(
            f"which model is the teacher? {_SECTION}.model must be one of {', '.join(names)}"
        )
    return candidates[0]


def _entry(config: Any, name: str) -> dict[str, Any]:
    """The model's entry in the list."""
    return next(entry for entry in config["Arch"]["models"] if name in entry)


def _refuse(config: Any, name: str) -> None:
    """What a teacher that is not there cannot do."""
    if config["Global"].get("use_dali"):
        raise ConfigError(f"{_SECTION} reads a paddle.io.DataLoader: set Global.use_dali: False")
    if config["Global"].get("to_static"):
        raise ConfigError(
            f"a static graph would hold one batch's answers for ever: set Global.to_static: False, "
            f"or leave out {_SECTION}"
        )
    if config["Arch"].get("pretrained_list"):
        raise ConfigError(f"{name} has its weights elsewhere: leave out Arch.pretrained_list")


@click.group()
def main() -> None:
    """Run this where PaddleClas is, such as in its repository."""


def _config(function: Any) -> Any:
    for option in (
        click.option("-o", "--override", multiple=True, help="As of tools/train.py: A.B=value."),
        click.option("-c", "--config", "path", required=True, help="The config's file."),
    ):
        function = option(function)
    return function


def _read(path: str, overrides: Iterable[str]) -> Any:
    from ppcls.utils import config

    return config.get_config(path, overrides=list(overrides), show=False)


@main.command()
@_config
def train(path: str, override: tuple[str, ...]) -> None:
    """Train, like PaddleClas's tools/train.py."""
    config = _read(path, override)
    config.profiler_options = None
    Engine(config, mode="train").train()


@main.command()
@_config
@click.argument("directory")
def export(path: str, override: tuple[str, ...], directory: str) -> None:
    """Write the config's teacher as a model for edl teacher, in DIRECTORY."""
    export_teacher(_read(path, override), directory)


if __name__ == "__main__":
    main()
