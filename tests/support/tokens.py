"""A teacher of tokens, in this process, and the sparse labels that it must give."""

import numpy as np

from edl.distill.labels import row_seeds
from edl.serving import Description, serve
from edl.serving.model.sparse import sparse_labels
from tests.support.predictors import Tokens

ROWS, TOKENS, BATCHES = 6, 5, 12
TABLE = Tokens()._table


def batches(count=BATCHES, first=0):
    """Batches of ids and of labels that follow them, always the same."""
    for number in range(first, first + count):
        generator = np.random.default_rng(number)
        ids = generator.integers(0, 100, (ROWS, TOKENS))
        yield ids, generator.integers(-1, Tokens.classes, (ROWS, TOKENS))


def expected(form, batch, epoch=0):
    ids, targets = batch
    return sparse_labels(TABLE[ids], form, row_seeds([ids], epoch), targets)


def serve_tokens(able=True):
    """A server in this process; one that is not ``able`` is as those of before are."""
    predictor = Tokens()
    specs = {name: (spec.shape, spec.dtype) for name, spec in Tokens.description.feeds.items()}
    logits = Tokens.description.fetches["logits"]
    teacher = serve(
        lambda ids: predictor.run({"ids": ids}, ["logits"])["logits"],
        specs,
        {"logits": (logits.shape, logits.dtype)},
        fingerprint="tokens",
    )
    if not able:
        engine = teacher._server.engine
        said = engine.description
        engine.description = Description(said.feeds, said.fetches, {}, said.fingerprint)
    return teacher


def assert_columns(columns, form, batch, epoch=0):
    """To a float16's rounding; one draw may lie on the edge between two classes."""
    wanted = expected(form, batch, epoch)
    assert [c.dtype.name for c in columns] == [array.dtype.name for array in wanted.values()]
    for column, (part, array) in zip(columns, wanted.items()):
        assert column.shape == array.shape
        if part == "samples":
            assert (column != array).sum() <= 1
        else:
            np.testing.assert_allclose(column, array, rtol=1e-3, atol=1e-5)
