"""What a program of Paddle 1 (``__model__``) says of its parameters, read without Paddle.

Source: ``framework.proto`` of Paddle: ProgramDesc {1 blocks*}, BlockDesc {3 vars*}, VarDesc
{1 name, 2 type, 3 persistable}, VarType {1 type}, where 7 is a dense tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edl.errors import ModelError, WireError
from edl.serving.wire.protobuf import as_bytes, as_int, as_text, fields

_DENSE_TENSOR = 7
_MANY = 1 << 30


def parameter_names(program: Path) -> list[str]:
    """The names of the parameters, sorted. Raises ModelError if the file is not a program."""
    try:
        message = memoryview(program.read_bytes())
        names = {
            name
            for block in _messages(message, 1)
            for variable in _messages(block, 3)
            for name in _parameter(variable)
        }
    except (OSError, WireError) as error:
        raise ModelError(f"{program} is not a Paddle program: {error}") from error
    if not all(map(_is_inside, names)):
        raise ModelError(f"{program} has parameters whose names are no names of files")
    return sorted(names)


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file in the directory."""
    return bool(name) and "\0" not in name and name[0] != "/" and ".." not in Path(name).parts


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The messages in one field."""
    for number, _, value in fields(message, _MANY):
        if number == wanted:
            yield as_bytes(number, value)


def _parameter(variable: memoryview) -> Iterator[str]:
    """The variable's name, if it is a parameter."""
    name, kind, persistable = "", 0, False
    for number, _, value in fields(variable, _MANY):
        if number == 1:
            name = as_text(number, value)
        elif number == 2:
            kind = next((as_int(1, v) for n, _, v in fields(as_bytes(2, value)) if n == 1), 0)
        elif number == 3:
            persistable = bool(as_int(number, value))
    if persistable and kind == _DENSE_TENSOR:
        yield name
