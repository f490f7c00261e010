"""The pages that people read, and the code in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]+?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([^"]+)"')
_COMMENT = re.compile(r"(?:^|\s)#\s.*")
_ASSIGNMENT = re.compile(r"\w+=.*")


@dataclass(frozen=True)
class Block:
    """A fenced block. ``line``: of its first line of code. ``not_run``: the reason, if any."""

    language: str
    code: str
    title: str
    line: int
    not_run: str


def pages() -> list[str]:
    """All that people read, by path from the root."""
    top = ["README.md", "README.zh.md", "CONTRIBUTING.md"]
    below = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("demos/*/README.md")]
    return [*top, *sorted(str(path.relative_to(ROOT)) for path in below)]


def blocks(page: str, language: str = "") -> list[Block]:
    """The blocks of a page, or those of one language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        code = re.sub(f"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
        title = _TITLE.search(fence["options"])
        line = text.count("\n", 0, fence.start("code")) + 1
        name, reason = title[1] if title else "", fence["reason"] or ""
        found.append(Block(fence["language"], code, name, line, reason))
    return [block for block in found if language in ("", block.language)]


def commands(code: str) -> list[list[str]]:
    """A shell's simple commands, as words; no comments, assignments and redirections."""
    joined = code.replace("\\\n", " ")
    simple: list[list[str]] = []
    for line in _lines(joined):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("&|;"):
                simple.append(words)
                words = []
            else:
                words.append(word)
    return [cleaned for cleaned in map(_without_decoration, simple) if cleaned]


def _lines(code: str) -> list[str]:
    """Lines, but what is quoted over several stays together."""
    lines: list[str] = []
    for line in code.splitlines():
        if lines and lines[-1].count("'") % 2:
            lines[-1] += f"\n{line}"
        else:
            lines.append(_COMMENT.sub("", line))
    return lines


def _without_decoration(words: list[str]) -> list[str]:
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    for at, word in enumerate(words):
        if word and set(word) <= set("<>"):
            return words[:at]
    return words
