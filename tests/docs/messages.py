"""What the code says to users when something fails, as far as it can be read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edl import errors
from tests.docs.pages import ROOT

_SHORTEST = 6

#: Besides the classes in edl.errors: what a teacher answers, what is said of one that is lost, and
#: what the command line says.
_OTHERS = {
    *("Refusal", "_refusal", "UsageError", "ClickException", "BadParameter"),
    *("WorkerDied", "WorkerError", "_lost"),
}
_CLASSES = {name for name in vars(errors) if isinstance(getattr(errors, name), type)} | _OTHERS

#: Bytes that are not the protocol's: these reach a user only behind "malformed", as its reason.
_BYTES = {
    "edl/serving/wire/" + name
    for name in (
        *("array_text.py", "compression.py", "frame.py", "messages.py", "pipeline_messages.py"),
        *("protobuf.py", "tensor.py"),
    )
}


@dataclass(frozen=True)
class Message:
    """``words``: the longest part of it that is always the same."""

    path: str
    line: int
    words: str


def messages() -> list[Message]:
    """Those of edl/, each once."""
    found = {}
    for path in sorted(ROOT.glob("edl/**/*.py")):
        name = str(path.relative_to(ROOT))
        if name in _BYTES or name == "edl/errors.py":
            continue
        for line, words in _messages_in(path):
            found.setdefault(words, Message(name, line, words))
    return list(found.values())


def _messages_in(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and _name(node.func) in _CLASSES:
            for argument in node.args:
                words = max(_constant_parts(argument), key=len, default="")
                if len(words) >= _SHORTEST:
                    yield node.lineno, words


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _constant_parts(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [" ".join(node.value.split())]
    if isinstance(node, ast.JoinedStr):
        return [part for value in node.values for part in _constant_parts(value)]
    return []
