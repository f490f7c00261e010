"""Paddle Serving's ``serving_server_conf.prototxt`` and ``serving_client_conf.prototxt``.

Source: ``general_model_config.proto`` of Paddle Serving 0.9: GeneralModelConfig {1 feed_var*,
2 fetch_var*}, both {1 name, 2 alias_name, 3 is_lod_tensor, 4 type, 5 shape*}, written in
protobuf's text format, which Google's runtime reads and writes here. Shapes there are without the
batch dimension, and so are ours.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from edl.errors import ConfigError, ModelError, WireError
from edl.serving.wire.description import Description, TensorSpec
from edl.serving.wire.tensor import STRING, elem_type_of, wire_dtype

logger = logging.getLogger(__name__)

SERVER_CONF = "serving_server_conf.prototxt"
CLIENT_CONF = "serving_client_conf.prototxt"

#: What to do about a variable whose rows differ in length.
WITHOUT_LOD = (
    "rows of different lengths are not carried: export the model with padded inputs, and a mask or "
    "lengths beside them as an input of their own"
)


@dataclass(frozen=True)
class Variable:
    """A feed or fetch: the model's own ``name``, the ``alias`` that users say, and its kind."""

    name: str
    alias: str
    spec: TensorSpec


@dataclass(frozen=True)
class ModelConfig:
    """What a model takes and gives, in the model's own order."""

    feeds: tuple[Variable, ...]
    fetches: tuple[Variable, ...]

    def describe(self, fingerprint: str = "", **extra: Any) -> Description:
        """The same by alias, as the registry and students see it."""
        return Description(
            {variable.alias: variable.spec for variable in self.feeds},
            {variable.alias: variable.spec for variable in self.fetches},
            extra,
            fingerprint,
        )


def read_config(path: Path) -> ModelConfig:
    """A prototxt file. Raises ModelError if it is not one, or describes what cannot travel."""
    message = _message_class()()
    try:
        text_format.Parse(path.read_text(), message)
        return ModelConfig(
            tuple(_variable(item, item.feed_type) for item in message.feed_var),
            tuple(_variable(item, item.fetch_type) for item in message.fetch_var),
        )
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except (text_format.ParseError, UnicodeDecodeError, WireError, ConfigError) as error:
        raise ModelError(f"{path} is not a Paddle Serving configuration: {error}") from error


def write_config(path: Path, config: ModelConfig) -> None:
    """Write ``config`` the way Paddle Serving's ``save_model`` does: as text, and as bytes
    beside it (``.stream.prototxt``).
    """
    message = _message_class()()
    for variable in config.feeds:
        _fill(message.feed_var.add(), variable, "feed_type")
    for variable in config.fetches:
        _fill(message.fetch_var.add(), variable, "fetch_type")
    path.write_text(text_format.MessageToString(message))
    path.with_suffix(".stream.prototxt").write_bytes(message.SerializeToString())


def in_order(
    variables: tuple[Variable, ...], named: tuple[Variable, ...]
) -> Optional[tuple[Variable, ...]]:
    """``named``, each with the name of the one in its place in ``variables``, if its own are of
    another program and the kinds agree; else None.

    The fetches of a model's conf are such where the model was saved by another Paddle than the one
    that wrote the conf: names of outputs are made up when a program is saved.
    """
    known = {variable.name for variable in variables}
    pairs = list(zip(variables, named))
    if len(variables) != len(named) or any(variable.name in known for variable in named):
        return None
    if not all(_same_kind(own.spec, said.spec) for own, said in pairs):
        return None
    for own, said in pairs:
        logger.warning("the conf's fetch %r is taken to be the model's %r", said.name, own.name)
    return tuple(Variable(own.name, said.alias, own.spec) for own, said in pairs)


def _same_kind(own: TensorSpec, said: TensorSpec) -> bool:
    """Whether two specs may be of one variable. Sizes that vary are left out of old confs."""
    fixed = ([size for size in spec.shape if size >= 0] for spec in (own, said))
    return own.dtype == said.dtype and next(fixed) == next(fixed)


def _variable(item: Any, elem_type: int) -> Variable:
    if item.is_lod_tensor:
        raise ModelError(f"{item.name!r} is a LoD tensor (is_lod_tensor: true); {WITHOUT_LOD}")
    spec = TensorSpec(tuple(item.shape), wire_dtype(elem_type).name)
    return Variable(item.name, item.alias_name or item.name, spec)


def _fill(item: Any, variable: Variable, type_field: str) -> None:
    item.name, item.alias_name, item.is_lod_tensor = variable.name, variable.alias, False
    dtype = variable.spec.dtype
    setattr(item, type_field, STRING if dtype == "str" else elem_type_of(np.dtype(dtype)))
    item.shape.extend(variable.spec.shape)


@functools.cache
def _message_class() -> Any:
    """GeneralModelConfig, from a descriptor built here (a pool of its own: nothing can clash)."""
    field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(
        name="edl/general_model_config.proto", package="baidu.paddle_serving.configure"
    )
    scalars = [
        ("name", 1, field.TYPE_STRING, field.LABEL_OPTIONAL),
        ("alias_name", 2, field.TYPE_STRING, field.LABEL_OPTIONAL),
        ("is_lod_tensor", 3, field.TYPE_BOOL, field.LABEL_OPTIONAL),
        ("{}_type", 4, field.TYPE_INT32, field.LABEL_OPTIONAL),
        ("shape", 5, field.TYPE_INT32, field.LABEL_REPEATED),
    ]
    config = proto.message_type.add(name="GeneralModelConfig")
    for number, (kind, type_name) in enumerate((("feed", "FeedVar"), ("fetch", "FetchVar")), 1):
        message = proto.message_type.add(name=type_name)
        for name, tag, scalar, label in scalars:
            message.field.add(name=name.format(kind), number=tag, type=scalar, label=label)
        config.field.add(
            name=f"{kind}_var",
            number=number,
            type=field.TYPE_MESSAGE,
            label=field.LABEL_REPEATED,
            type_name=f".{proto.package}.{type_name}",
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(proto.SerializeToString())
    descriptor = pool.FindMessageTypeByName(f"{proto.package}.GeneralModelConfig")
    factory: Any = message_factory
    make = getattr(factory, "GetMessageClass", None)  # protobuf 3 has none
    return (make or factory.MessageFactory(pool).GetPrototype)(descriptor)
