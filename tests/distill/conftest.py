"""Teachers that several modules ask for sparse labels."""

import pytest

from tests.support.tokens import serve_tokens


@pytest.fixture(scope="module")
def tokens_teacher():
    with serve_tokens() as teacher:
        yield teacher


@pytest.fixture(scope="module")
def old_tokens_teacher():
    """It makes no labels itself."""
    with serve_tokens(able=False) as teacher:
        yield teacher
