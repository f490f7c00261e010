"""The Chinese pages have the same code as the English ones: only comments are in Chinese."""

import io
import re
import tokenize

import pytest

from tests.docs.pages import ROOT, blocks

PAIRS = {
    "README.zh.md": "README.md",
    "docs/zh/index.md": "docs/index.md",
    "docs/zh/tutorial.md": "docs/tutorial.md",
}
CHINESE = re.compile("[\u4e00-\u9fff]")


def code(page):
    """Language, title and code of each block, without comments."""
    return [
        (block.language, block.title, without_comments(block.language, block.code))
        for block in blocks(page)
    ]


def without_comments(language, text):
    if language == "python":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT}
        return [token.string for token in tokens if token.type not in skipped]
    if language == "bash":
        return [re.sub(r"(^|\s+)# .*", "", line).rstrip() for line in text.splitlines()]
    return text.splitlines()


@pytest.mark.parametrize("page", PAIRS)
def test_the_code_is_that_of_the_english_page(page):
    assert code(page) == code(PAIRS[page])


@pytest.mark.parametrize("page", PAIRS)
def test_the_text_is_chinese(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for paragraph in re.sub(r"```.*?```", "", text, flags=re.DOTALL).split("\n\n"):
        words = re.findall(r"[A-Za-z]{2,}", re.sub(r"`[^`]*`|\([^)]*\)|<!--.*?-->", "", paragraph))
        assert len(words) < 12 or CHINESE.search(paragraph), paragraph


def test_comments_may_differ_and_code_may_not():
    assert without_comments("bash", "edl ls  # 看") == without_comments("bash", "edl ls # see")
    assert without_comments("python", "a = 1  # 一\n") == without_comments("python", "a = 1\n")
    assert without_comments("python", "a = 1\n") != without_comments("python", "a = 2\n")
