"""What a reader is told: names, teachers, models; by its arguments and by the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

from edl.distill.link import Wants
from edl.distill.state import Limits
from edl.distill.teachers import FixedTeachers, Teachers, parse_teachers, service_teachers
from edl.errors import ConfigError
from edl.serving.wire import labels
from edl.serving.wire.description import Description
from edl.serving.wire.labels import LabelForm

logger = logging.getLogger(__name__)

#: Teachers of one model: endpoints (list or comma-separated) or ``etcd://host:port[,...]/service``.
TeacherSpec = Union[str, Sequence[str]]

#: Where the original looks for what teachers serve.
_DEFAULT_CONF = "serving_conf/serving_client_conf.prototxt"

#: Variables of the original that have no effect here, and what to do instead.
_WITHOUT_EFFECT = {
    "PADDLE_DISTILL_BALANCE_TYPE": "the registry is always etcd, and there is no balance server: "
    "PADDLE_DISTILL_BALANCE_SERVER, or set_dynamic_teacher, is to give etcd's own address",
    "DISTILL_READER_PROFILE": "for a timeline set EDL_DISTILL_TRACE to the name of a file, or make "
    "the reader with trace=; reader.stats() has the figures",
    "PADDLE_DISTILL_HDFS_NAME": "readers ask teachers what they serve; for a Paddle Serving give "
    "its conf file with set_serving_conf_file, or PADDLE_DISTILL_CONF_FILE",
}


@dataclass
class Model:
    """One teacher model: where its teachers are, what is asked of them (see ``plan.make_plan``),
    what it is called.
    """

    teachers: Optional[Teachers]
    predicts: list[str]
    name: str = ""

    def column(self, name: str) -> str:
        """What a column of its predictions is called in a batch."""
        return f"{self.name}.{name}" if self.name else name


@dataclass(frozen=True)
class RequestLimits:
    """``outstanding``: requests at a time. ``rest_after``: seconds without a request, after which
    a shared service's teachers are left to others.
    """

    outstanding: int
    rest_after: float = 60.0


@dataclass(frozen=True)
class Settings:
    """What a student is told that holds for all its models; see DistillReader for the meaning of
    each. ``slots``: their names; None if each request names its own. ``task_rows``: rows of a
    request to a teacher at most. ``stored``: labels may come from a store, and there need be no
    teachers.
    """

    slots: Optional[Sequence[Optional[str]]]
    task_rows: int
    limits: Limits
    no_teacher_timeout: float
    max_teachers: Optional[int] = None
    token: Optional[str] = None
    conf_file: Optional[str] = None
    targets: Optional[str] = None
    tokenizer: str = ""
    lengths: Optional[str] = None
    wire: Mapping[str, str] = field(default_factory=dict)
    requests: Optional[RequestLimits] = None
    stored: bool = False


@dataclass(frozen=True)
class PoolConfig:
    """What a pool of one model's teachers is told; see DistillReader for the meaning of each."""

    teachers: Teachers
    wants: Wants
    task_rows: int
    max_teachers: Optional[int] = None
    limits: Limits = field(default_factory=Limits)
    no_teacher_timeout: float = 600.0
    requests: Optional[RequestLimits] = None  # if it is asked by requests, in no order
    stored: bool = False  # labels may come from a store, so teachers may not be needed
    metrics: Optional[str] = None  # where the registry is told that the student's are


def pool_configs(
    models: Sequence[Model], settings: Settings, number: int = 0, among: int = 1
) -> list[PoolConfig]:
    """What each model's pool is told, in the process of this ``number`` of those ``among`` which
    teachers are divided. The environment wins over the program. Raises ConfigError, and ModelError
    for a conf file that is none.
    """
    token = os.environ.get("EDL_TOKEN", "") if settings.token is None else settings.token
    local = _switch("EDL_LOCAL")
    fallback = fallback_description(settings.conf_file)
    configs = []
    for model in models:
        teachers, most = model.teachers, settings.max_teachers
        patience = settings.no_teacher_timeout
        if teachers is None and settings.stored and not _environment_names_teachers():
            teachers, patience = FixedTeachers(()), 0.0
        if not model.name:
            teachers, most = teachers_from_environment(teachers, most)
        assert teachers is not None
        wants = Wants(
            settings.slots,
            model.predicts,
            fallback,
            token,
            settings.targets,
            settings.tokenizer,
            settings.lengths,
            settings.wire,
            local,
            rows=settings.task_rows,
        )
        configs.append(
            PoolConfig(
                teachers,
                wants,
                settings.task_rows,
                _share_of(most, number, among) if teachers.balanced else None,
                settings.limits,
                patience,
                settings.requests,
                settings.stored,
            )
        )
    return configs


def _switch(name: str) -> bool:
    """An environment variable that is 1 (also if it is not set) or 0. Raises ConfigError."""
    value = os.environ.get(name, "1")
    if value not in ("0", "1"):
        raise ConfigError(f"{name} is {value!r}; it must be 0 or 1")
    return value == "1"


def _share_of(limit: Optional[int], number: int, among: int) -> Optional[int]:
    """One process's share of a limit that holds for all together; at least one."""
    return None if limit is None else max(1, limit // among + (number < limit % among))


def parse_models(
    predicts: Union[Sequence[str], Mapping[str, Sequence[str]]],
    teachers: Union[TeacherSpec, Mapping[str, TeacherSpec], None],
    form: Optional[LabelForm] = None,
) -> list[Model]:
    """The teacher models of a reader's arguments. ``form``: the predictions are sparse labels.
    Raises ConfigError.
    """
    if not isinstance(teachers, Mapping):
        if isinstance(predicts, Mapping):
            raise ConfigError("predicts is a mapping, so teachers must be one with the same names")
        names = _asked("predicts", predicts, form)
        return [Model(None if teachers is None else parse_teachers(teachers), names)]
    by_model = predicts if isinstance(predicts, Mapping) else dict.fromkeys(teachers, predicts)
    if not teachers:
        raise ConfigError("teachers is a mapping that names none")
    if by_model.keys() != teachers.keys():
        said, asked = (", ".join(map(str, names)) for names in (teachers, by_model))
        raise ConfigError(f"teachers are named {said}, predicts {asked}")
    return [
        Model(parse_teachers(spec), _asked(f"predicts of {name}", by_model[name], form), str(name))
        for name, spec in teachers.items()
    ]


def predictions_of(models: Sequence[Model]) -> list[str]:
    """What is asked of the teachers of all of them."""
    return [name for model in models for name in model.predicts]


def _asked(what: str, predicts: Sequence[str], form: Optional[LabelForm]) -> list[str]:
    """What is asked of teachers for them. Raises ConfigError for one that is said twice."""
    names = [str(name) for name in check_names(what, predicts)]
    own = [labels.split(name) for name in names]
    check_names(what, [name for name, _ in own])
    if form is None:
        return names
    return [labels.ask(name, given or form) for name, given in own]


def label_form(
    top_k: Optional[int], temperature: float, samples: int, targets: Optional[str]
) -> Optional[LabelForm]:
    """What these arguments of a reader say. Raises ConfigError."""
    if top_k is not None:
        return LabelForm(top_k, temperature, samples, targets is not None)
    if temperature != 1.0 or samples:
        raise ConfigError("temperature and samples say how sparse labels are made; set top_k, too")
    return None


def check_targets(
    targets: Optional[str], ins: Optional[Sequence[Optional[str]]], models: Sequence[Model]
) -> Optional[str]:
    """The slot of target ids, if there is one, and there is if it is needed. ``ins`` is None where
    each request names what it has. Raises ConfigError.
    """
    known = isinstance(targets, str) and (ins is None or targets in ins)
    if targets is not None and not known:
        raise ConfigError(f"targets is {targets!r}, which is not one of ins: {list(ins or ())!r}")
    forms = [labels.split(name)[1] for model in models for name in model.predicts]
    needed = any(form is not None and form.target for form in forms)
    if needed and targets is None:
        raise ConfigError("labels with the logit of a target need targets=..., the slot of the ids")
    if targets is not None and not needed:
        raise ConfigError("targets are for sparse labels; set top_k, too")
    return targets


def check_lengths(lengths: Optional[str], ins: Optional[Sequence[Optional[str]]]) -> Optional[str]:
    """The slot of the rows' lengths, if there is one. ``ins`` is None where each request names what
    it has. Raises ConfigError.
    """
    known = isinstance(lengths, str) and (ins is None or lengths in ins)
    if lengths is not None and not known:
        raise ConfigError(f"lengths is {lengths!r}, which is not one of ins: {list(ins or ())!r}")
    return lengths


def check_names(what: str, names: Sequence[Optional[str]]) -> list[Optional[str]]:
    """``names``, if they are different names (or None), at least one. Raises ConfigError."""
    if isinstance(names, str) or not all(name is None or isinstance(name, str) for name in names):
        raise ConfigError(f"{what} must be a list of names, not {names!r}")
    given = [name for name in names if name is not None]
    if not given or len(set(given)) != len(given):
        raise ConfigError(f"{what} must hold different names, at least one: {list(names)!r}")
    return list(names)


def teachers_from_environment(
    teachers: Optional[Teachers], max_teachers: Optional[int]
) -> tuple[Teachers, Optional[int]]:
    """Teachers and their limit. The environment wins over what the program says, as in the
    original. Raises ConfigError.
    """
    servers = os.environ.get("PADDLE_DISTILL_BALANCE_SERVER")
    if servers:
        service = os.environ.get("PADDLE_DISTILL_SERVICE_NAME", "")
        if not service:
            raise ConfigError(
                "PADDLE_DISTILL_BALANCE_SERVER is set, but PADDLE_DISTILL_SERVICE_NAME is not"
            )
        most = os.environ.get("PADDLE_DISTILL_MAX_TEACHER")
        if most is not None and (not most.isdigit() or most == "0"):
            raise ConfigError(f"PADDLE_DISTILL_MAX_TEACHER is {most!r}, not a positive number")
        return service_teachers(servers, service), int(most) if most else max_teachers
    if teachers is None:
        raise ConfigError(
            "this reader has no teachers; call set_fixed_teacher or set_dynamic_teacher, or set "
            "PADDLE_DISTILL_BALANCE_SERVER and PADDLE_DISTILL_SERVICE_NAME"
        )
    return teachers, max_teachers


def _environment_names_teachers() -> bool:
    return bool(os.environ.get("PADDLE_DISTILL_BALANCE_SERVER"))


def answer_original_variables() -> None:
    """Log what to do instead of each variable of the original that is set and has no effect."""
    for name, instead in _WITHOUT_EFFECT.items():
        if os.environ.get(name, "0") != "0":
            logger.warning("%s has no effect: %s", name, instead)


def fallback_description(conf_file: Optional[str]) -> Optional[Description]:
    """What teachers serve that do not say it themselves: by ``conf_file``, by the environment, or
    by the file where the original looks. Raises ModelError for a file that is none.
    """
    path = conf_file or os.environ.get("PADDLE_DISTILL_CONF_FILE")
    if path is None and os.path.isfile(_DEFAULT_CONF):
        path = _DEFAULT_CONF
    if path is None:
        return None
    from edl.serving.model.prototxt import read_config

    return read_config(Path(path)).describe()
