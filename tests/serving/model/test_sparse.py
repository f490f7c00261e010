"""Sparse labels from whole logits, in numpy and in Paddle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edl.errors import ConfigError
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire.labels import LabelForm

INF, NAN = np.inf, np.nan


def in_paddle(logits, form, seeds=None, targets=None):
    import paddle

    given = [None if array is None else paddle.to_tensor(array) for array in (seeds, targets)]
    parts = sparse_labels(paddle.to_tensor(logits), form, *given)
    return {part: tensor.numpy() for part, tensor in parts.items()}


WAYS = [sparse_labels, in_paddle]


def random_logits(shape, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def random_seeds(rows, seed=0):
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, rows)


def reference(logits, form):
    """The same by sorting everything, in float64."""
    x = logits.astype(np.float32) / np.float32(form.temperature)
    order = np.argsort(-x, axis=-1, kind="stable")[..., : form.top_k]
    highest = x.max(-1, keepdims=True).astype(np.float64)
    logsumexp = np.log(np.exp(x - highest).sum(-1)) + highest[..., 0]
    return np.take_along_axis(x, order, -1), order, logsumexp


@st.composite
def cases(draw):
    """Logits with and without ties, and a form that fits them."""
    classes = draw(st.integers(1, 700))
    between = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    shape = (draw(st.integers(1, 4)), *between, classes)
    logits = random_logits(shape, draw(st.integers(0, 2**32 - 1)), draw(st.floats(0.01, 20)))
    if draw(st.booleans()):
        logits = np.round(logits)
    form = LabelForm(
        draw(st.integers(1, min(classes, 12)) | st.just(classes)),
        draw(st.sampled_from([1.0, 0.5, 2.0, 3.7])),
        draw(st.integers(0, 5)),
        draw(st.booleans()),
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    seeds = generator.integers(-(2**63), 2**63 - 1, shape[0])
    return logits, form, seeds, generator.integers(-1, classes + 1, shape[:-1])


@given(cases())
@settings(deadline=None)
def test_the_k_largest_and_the_logsumexp_are_those_of_sorting_everything(case):
    logits, form, seeds, targets = case
    values, indices, logsumexp = reference(logits, form)
    parts = sparse_labels(logits, form, seeds, targets)
    np.testing.assert_array_equal(parts["indices"], indices)
    np.testing.assert_array_equal(parts["values"], values.astype(np.float16))
    np.testing.assert_allclose(parts["logsumexp"], logsumexp, rtol=1e-5, atol=1e-5)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_paddle_gives_what_numpy_gives(case):
    ours, theirs = sparse_labels(*case), in_paddle(*case)
    assert list(ours) == list(theirs) == list(case[1].parts)
    for part, array in ours.items():
        assert (array.shape, array.dtype) == (theirs[part].shape, theirs[part].dtype)
        if part == "samples":  # a draw may lie on the edge between two classes
            assert (array != theirs[part]).sum() <= 1
        elif part in ("indices", "values"):
            np.testing.assert_array_equal(array, theirs[part])
        else:
            np.testing.assert_allclose(array, theirs[part], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("classes", [31, 5000])
def test_of_equal_logits_the_smaller_ids_come_first(compute, classes):
    parts = compute(np.zeros((2, classes), np.float32), LabelForm(20))
    np.testing.assert_array_equal(parts["indices"], [range(20)] * 2)


@pytest.mark.parametrize("compute", WAYS)
def test_infinities_are_what_they_are(compute):
    logits = np.array([[-INF, 1, -INF, 2], [-INF] * 4, [3, INF, 0, 0]], np.float32)
    parts = compute(logits, LabelForm(3))
    np.testing.assert_array_equal(parts["indices"], [[3, 1, 0], [0, 1, 2], [1, 0, 2]])
    np.testing.assert_array_equal(parts["values"], [[2, 1, -INF], [-INF] * 3, [INF, 3, 0]])
    np.testing.assert_allclose(parts["logsumexp"], [2.3132617, -INF, INF])


@pytest.mark.parametrize("compute", WAYS)
def test_a_row_with_nan_shows_it_and_harms_no_other(compute):
    logits = random_logits((3, 200))
    seeds = random_seeds(3)
    form = LabelForm(4, samples=3)
    unharmed = compute(logits, form, seeds)
    logits[1, 50] = NAN
    parts = compute(logits, form, seeds)
    assert np.isnan(parts["logsumexp"]).tolist() == [False, True, False]
    assert 50 not in parts["indices"][1]
    for part in parts:
        np.testing.assert_array_equal(parts[part][[0, 2]], unharmed[part][[0, 2]])
    assert ((parts["samples"] >= 0) & (parts["samples"] < 200)).all()


def test_other_floats_give_the_labels_of_their_values():
    exact = np.round(random_logits((4, 300)) * 4) / 4  # bfloat16 and float16 hold these
    form, seeds = LabelForm(8, 2.0, 4), random_seeds(4)
    bits = (exact.view(np.uint32) >> 16).astype(np.uint16)
    wanted = sparse_labels(exact, form, seeds)
    for logits in (exact.astype(np.float16), exact.astype(np.float64), bits):
        parts = sparse_labels(logits, form, seeds)
        for part, array in wanted.items():
            np.testing.assert_array_equal(parts[part], array)


@pytest.mark.parametrize("compute", WAYS)
def test_the_target_is_the_logit_of_the_id_that_is_given(compute):
    logits = random_logits((2, 3, 50))
    targets = np.array([[0, 49, 7], [-100, 50, 3]])
    parts = compute(logits, LabelForm(1, 2.0, target=True), None, targets)
    wanted = [logits[0, 0, 0], logits[0, 1, 49], logits[0, 2, 7], 0, 0, logits[1, 2, 3]]
    np.testing.assert_allclose(parts["target"].ravel(), np.array(wanted) / 2, rtol=1e-6)


# --- samples --------------------------------------------------------------------------------


def tail_of(logits, form):
    """The probabilities of the classes outside the top k, summing to 1."""
    x = logits.astype(np.float64) / form.temperature
    weights = np.exp(x - x.max(-1, keepdims=True))
    _, indices, _ = reference(logits, form)
    np.put_along_axis(weights, indices, 0.0, -1)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("classes", [12, 200, 3000])
def test_samples_follow_the_teachers_probabilities(compute, classes):
    """Pearson's chi-square over the classes that are to be drawn often, at fixed seeds."""
    logits = random_logits((1, classes), seed=classes, scale=1.5)
    form = LabelForm(4, 1.3, samples=64)
    probabilities = tail_of(logits, form)[0]
    rows = 3000
    parts = compute(np.repeat(logits, rows, axis=0), form, random_seeds(rows, 1))
    drawn = np.bincount(parts["samples"].ravel(), minlength=classes)
    expected = probabilities * drawn.sum()
    assert not drawn[parts["indices"][0]].any()
    often = expected >= 20
    chi_square = ((drawn - expected)[often] ** 2 / expected[often]).sum()
    degrees = often.sum()
    assert degrees > 5
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("compute", WAYS)
def test_draws_of_a_row_its_positions_and_its_neighbours_are_unlike(compute):
    logits = np.zeros((50, 20, 1000), np.float32)
    drawn = compute(logits, LabelForm(1, samples=8), random_seeds(50))["samples"]
    assert len(np.unique(drawn.reshape(-1, 8), axis=0)) == 1000
    together = np.corrcoef(drawn.reshape(-1, 8).T) - np.eye(8)
    assert np.abs(together).max() < 0.12  # 1,000 pairs: four standard deviations


@pytest.mark.parametrize("compute", WAYS)
def test_labels_of_a_row_depend_on_nothing_but_the_row_and_its_seed(compute):
    logits, seeds = random_logits((7, 3, 2500)), random_seeds(7)
    form = LabelForm(5, samples=6)
    whole = compute(logits, form, seeds)
    alone = compute(logits[4:5], form, seeds[4:5])
    for part, array in whole.items():
        np.testing.assert_array_equal(array[4:5], alone[part])


def test_many_rows_are_worked_on_in_pieces_that_do_not_show():
    logits, seeds = random_logits((300, 2500)), random_seeds(300)
    form = LabelForm(5, samples=6)
    whole = sparse_labels(logits, form, seeds)
    last = sparse_labels(logits[290:], form, seeds[290:])
    for part, array in whole.items():
        np.testing.assert_array_equal(array[290:], last[part])


@pytest.mark.parametrize("compute", WAYS)
def test_fewer_samples_are_the_first_of_many(compute):
    logits, seeds = random_logits((3, 2, 500)), random_seeds(3)
    many = compute(logits, LabelForm(5, samples=9), seeds)["samples"]
    few = compute(logits, LabelForm(5, samples=4), seeds)["samples"]
    np.testing.assert_array_equal(many[..., :4], few)


@pytest.mark.parametrize("compute", WAYS)
def test_samples_of_nothing_repeat_the_first_index(compute):
    everything = compute(random_logits((2, 5)), LabelForm(5, samples=3), random_seeds(2))
    np.testing.assert_array_equal(everything["samples"], everything["indices"][:, :1].repeat(3, 1))
    certain = np.full((2, 400), -2000, np.float32)
    certain[:, 7] = 0
    parts = compute(certain, LabelForm(1, samples=3), random_seeds(2))
    np.testing.assert_array_equal(parts["samples"], np.full((2, 3), 7))


@pytest.mark.parametrize("compute", WAYS)
def test_a_tail_that_is_tiny_beside_the_top_is_drawn_from_all_the_same(compute):
    logits = np.full((200, 640), -40.0, np.float32)
    logits[:, 3] = 0.0  # exp(-40) is lost in a float32 sum with exp(0)
    drawn = compute(logits, LabelForm(1, samples=8), random_seeds(200))["samples"]
    assert (drawn != 3).all()
    assert len(np.unique(drawn)) > 500


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "form", "seeds", "targets", "words"),
    [
        ((10,), LabelForm(1), None, None, r"not of shape \[10\]"),
        ((2, 10), LabelForm(11), None, None, "top_k=11 is more than the 10 classes"),
        ((2, 10), LabelForm(1, samples=1), None, None, "needs seeds"),
        ((2, 10), LabelForm(1, samples=1), (3,), None, r"seeds must have shape \[2\], not \[3\]"),
        ((2, 10), LabelForm(1, target=True), None, None, "needs targets"),
        ((2, 5, 9), LabelForm(1, target=True), None, (2,), r"targets must have shape \[2, 5\]"),
    ],
)
def test_what_does_not_fit_is_refused(logits, form, seeds, targets, words):
    given = [None if shape is None else np.zeros(shape, np.int64) for shape in (seeds, targets)]
    with pytest.raises(ConfigError, match=words):
        sparse_labels(np.zeros(logits, np.float32), form, *given)


@pytest.mark.parametrize("shape", [(0, 10), (0, 4, 10), (2, 0, 10)])
def test_no_rows_have_no_labels(shape):
    seeds, targets = np.zeros(shape[0], np.int64), np.zeros(shape[:-1], np.int64)
    parts = sparse_labels(np.zeros(shape, np.float32), LabelForm(3, 1.0, 2, True), seeds, targets)
    shapes = {part: array.shape[len(shape) - 1 :] for part, array in parts.items()}
    assert shapes == {
        "values": (3,), "indices": (3,), "logsumexp": (), "samples": (2,), "target": ()
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("temperature", [0.7, 3.0])
def test_logits_of_any_precision_are_divided_in_float32(dtype, temperature):
    """So their labels are those of the same numbers in float32, to the last digit."""
    logits = np.random.default_rng(0).normal(0, 5, (50, 300)).astype(dtype)
    form = LabelForm(300, temperature)
    found, expected = (sparse_labels(x, form) for x in (logits, logits.astype("float32")))
    for part, array in expected.items():
        np.testing.assert_array_equal(found[part], array)
