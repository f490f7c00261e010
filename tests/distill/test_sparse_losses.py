"""The loss of sparse labels against numpy, numerical gradients and the whole distribution."""

import numpy as np
import pytest

from edl.distill import losses, sparse_losses
from edl.distill.losses import (
    distillation,
    jensen_shannon_distillation,
    reverse_distillation,
    sparse_distillation,
)
from edl.errors import ConfigError
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire.labels import LabelForm

paddle = pytest.importorskip("paddle")

ROWS, CLASSES, TOP = 4, 9, 3
GENERATOR = np.random.default_rng(0)
STUDENT = GENERATOR.normal(0, 2, (ROWS, CLASSES))
TEACHER = GENERATOR.normal(0, 2, (ROWS, CLASSES))
DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]
#: What may be chosen together: divergence, tail, number of samples.
FORMS = [
    *[(name, True, 0) for name in DIVERGENCES],
    *[(name, False, 0) for name in ("forward_kl", "jsd")],
    ("forward_kl", True, 5),
]


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p, q):
    """Of distributions in which p may have nothing."""
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum(axis=-1)


def diverge(name, p, q, beta):
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def labels_of(logits, top, temperature=1.0, samples=0, seed=0, dtype="float64"):
    """values, indices, logsumexp and samples as tensors, of logits (..., classes)."""
    scaled = np.asarray(logits, "float64") / temperature
    indices = np.argsort(-scaled, axis=-1, kind="stable")[..., :top]
    values = np.take_along_axis(scaled, indices, -1)
    logsumexp = np.log(np.exp(scaled - scaled.max(-1, keepdims=True)).sum(-1)) + scaled.max(-1)
    made = [
        paddle.to_tensor(values.astype(dtype)),
        paddle.to_tensor(indices.astype("int32")),
        paddle.to_tensor(logsumexp),
    ]
    if samples:
        tail = softmax(scaled)
        np.put_along_axis(tail, indices, 0, -1)
        tail = (tail / tail.sum(-1, keepdims=True)).reshape(-1, scaled.shape[-1])
        generator = np.random.default_rng(seed)
        drawn = [generator.choice(len(row), samples, p=row) for row in tail]
        drawn = np.reshape(drawn, (*scaled.shape[:-1], samples))
        made.append(paddle.to_tensor(drawn.astype("int32")))
    return made


def leaf(array, dtype="float64"):
    tensor = paddle.to_tensor(np.asarray(array)).astype(dtype)
    tensor.stop_gradient = False
    return tensor


def value_and_gradient(loss, logits, *args, **options):
    tensor = logits if isinstance(logits, paddle.Tensor) else leaf(logits)
    value = loss(tensor, *args, **options)
    value.backward()
    return float(value), tensor.grad.astype("float64").numpy()


def coarse(logits, indices):
    """Probabilities of the given classes and of all the others together."""
    chosen = np.take_along_axis(softmax(logits), indices, -1)
    return np.concatenate([chosen, 1 - chosen.sum(-1, keepdims=True)], axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_tail_is_one_class(divergence, temperature):
    values, indices, logsumexp = labels_of(TEACHER, TOP, temperature)
    loss = sparse_distillation(
        leaf(STUDENT), values, indices, logsumexp,
        temperature=temperature, divergence=divergence, beta=0.3,
    )  # fmt: skip
    p = coarse(TEACHER / temperature, indices.numpy())
    q = coarse(STUDENT / temperature, indices.numpy())
    expected = diverge(divergence, p, q, 0.3).mean() * temperature**2
    assert float(loss) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_without_a_tail_the_teachers_top_sums_to_one(divergence):
    values, indices, logsumexp = labels_of(TEACHER, TOP)
    loss = sparse_distillation(
        leaf(STUDENT), values, indices, logsumexp, divergence=divergence, beta=0.3, tail=False
    )
    p = np.zeros_like(TEACHER)
    np.put_along_axis(p, indices.numpy(), softmax(values.numpy()), -1)
    assert float(loss) == pytest.approx(
        diverge(divergence, p, softmax(STUDENT), 0.3).mean(), rel=1e-9
    )


def test_each_sample_stands_for_its_part_of_the_tail():
    values, indices, logsumexp, samples = labels_of(TEACHER, TOP, samples=5)
    loss = sparse_distillation(leaf(STUDENT), values, indices, logsumexp, samples)
    p, q = softmax(TEACHER), softmax(STUDENT)
    expected = []
    for row in range(ROWS):
        top = indices.numpy()[row]
        rest = 1 - p[row, top].sum()
        exact = (p[row, top] * np.log(p[row, top] / q[row, top])).sum()
        drawn = np.log(rest) - np.log(q[row, samples.numpy()[row]]).mean()
        expected.append(exact + rest * drawn)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(
    ("divergence", "whole", "tail"),
    [
        ("forward_kl", distillation, True),
        ("forward_kl", distillation, False),
        ("reverse_kl", reverse_distillation, True),
        ("jsd", jensen_shannon_distillation, True),
        ("jsd", jensen_shannon_distillation, False),
    ],
)
def test_of_all_classes_it_is_the_full_divergence(divergence, whole, tail, temperature):
    student, teacher = STUDENT.astype("f4"), TEACHER.astype("f4")
    expected, gradient = value_and_gradient(
        whole, leaf(student, "float32"), paddle.to_tensor(teacher), temperature
    )
    found, sparse_gradient = value_and_gradient(
        sparse_distillation, leaf(student, "float32"),
        *labels_of(teacher, CLASSES, temperature, dtype="float32"),
        temperature=temperature, divergence=divergence, tail=tail,
    )  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(sparse_gradient, gradient, atol=1e-6)


def test_of_all_classes_samples_have_no_weight():
    labels = labels_of(TEACHER, CLASSES)
    samples = paddle.zeros([ROWS, 2], "int32")
    found, gradient = value_and_gradient(sparse_distillation, STUDENT, *labels, samples)
    expected, without = value_and_gradient(sparse_distillation, STUDENT, *labels)
    assert found == pytest.approx(expected)
    np.testing.assert_allclose(gradient, without, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_gradients_are_the_numerical_ones(divergence, tail, samples, temperature, masked):
    labels = labels_of(TEACHER, TOP, temperature, samples)
    options = {"temperature": temperature, "divergence": divergence, "tail": tail, "beta": 0.3}
    if masked:
        options["mask"] = paddle.to_tensor([1.0, 0.0, 0.5, 1.0])
    _, gradient = value_and_gradient(sparse_distillation, STUDENT, *labels, **options)
    numerical = np.zeros_like(STUDENT)
    for place in np.ndindex(*STUDENT.shape):
        step = np.zeros_like(STUDENT)
        step[place] = 1e-5
        above = sparse_distillation(paddle.to_tensor(STUDENT + step), *labels, **options)
        below = sparse_distillation(paddle.to_tensor(STUDENT - step), *labels, **options)
        numerical[place] = (float(above) - float(below)) / 2e-5
    np.testing.assert_allclose(gradient, numerical, atol=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_mean_gradient_over_many_draws_is_that_of_the_whole_distribution(temperature):
    draws = 20_000
    values, indices, logsumexp, samples = labels_of(
        np.broadcast_to(TEACHER[0], (draws, CLASSES)), TOP, temperature, samples=4
    )
    student = np.broadcast_to(STUDENT[0], (draws, CLASSES))
    _, gradient = value_and_gradient(
        sparse_distillation, student, values, indices, logsumexp, samples, temperature=temperature
    )
    p, q = softmax(TEACHER[0] / temperature), softmax(STUDENT[0] / temperature)
    each = gradient * draws
    error = each.std(axis=0) / np.sqrt(draws)
    assert (np.abs(each.mean(axis=0) - temperature * (q - p)) <= 4 * error + 1e-9).all()
    assert error.max() < 0.01


def test_so_it_is_of_labels_as_teachers_make_them():
    """float16 values and their own random numbers."""
    draws = 20_000
    form = LabelForm(TOP, temperature=2.0, samples=4)
    teacher = np.broadcast_to(TEACHER[0].astype("f4"), (draws, CLASSES))
    labels = sparse_labels(teacher, form, np.arange(draws, dtype=np.int64))
    student = np.broadcast_to(STUDENT[0], (draws, CLASSES))
    _, gradient = value_and_gradient(
        sparse_distillation, student, *(paddle.to_tensor(labels[part]) for part in form.parts),
        temperature=2.0,
    )  # fmt: skip
    p, q = softmax(TEACHER[0] / 2), softmax(STUDENT[0] / 2)
    np.testing.assert_allclose((gradient * draws).mean(axis=0), 2 * (q - p), atol=5e-3)


@pytest.mark.parametrize("samples", [0, 2])
def test_a_teacher_that_knows_of_fewer_classes_than_its_top(samples):
    """Its others are minus infinity: they have nothing, whatever the student says of them."""
    teacher = np.full((ROWS, CLASSES), -np.inf, "f4")
    teacher[:, :2] = TEACHER[:, :2]
    form = LabelForm(TOP, samples=samples)
    seeds = np.arange(ROWS, dtype=np.int64) if samples else None
    labels = sparse_labels(teacher, form, seeds)
    found, gradient = value_and_gradient(
        sparse_distillation, STUDENT, *(paddle.to_tensor(labels[part]) for part in form.parts)
    )
    p, q = softmax(teacher), softmax(STUDENT)
    assert found == pytest.approx(kl(p, q).mean(), rel=1e-2)
    np.testing.assert_allclose(gradient * ROWS, q - p, atol=1e-2)


@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_long_sequences_are_worked_on_in_parts(monkeypatch, divergence, tail, samples):
    labels = labels_of(TEACHER, TOP, samples=samples)
    options = {"divergence": divergence, "tail": tail}
    at_once = value_and_gradient(sparse_distillation, STUDENT, *labels, **options)
    monkeypatch.setattr(sparse_losses, "_CHUNK_ON_CPU", 3 * CLASSES)  # 3 rows and then 1
    in_parts = value_and_gradient(sparse_distillation, STUDENT, *labels, **options)
    assert in_parts[0] == at_once[0]
    np.testing.assert_array_equal(in_parts[1], at_once[1])


def test_rows_may_be_sequences():
    student = STUDENT.reshape(2, 2, CLASSES)
    labels = labels_of(TEACHER.reshape(2, 2, CLASSES), TOP, samples=5)
    mask = paddle.to_tensor([[True, False], [True, True]])
    found, gradient = value_and_gradient(sparse_distillation, student, *labels, mask=mask)
    flat = labels_of(TEACHER, TOP, samples=5)
    expected, of_flat = value_and_gradient(
        sparse_distillation, STUDENT, *flat, mask=paddle.to_tensor([True, False, True, True])
    )
    assert found == expected
    np.testing.assert_array_equal(gradient.reshape(ROWS, CLASSES), of_flat)


@pytest.mark.parametrize("loss", [distillation, reverse_distillation, jensen_shannon_distillation])
def test_a_mask_leaves_rows_out_of_the_mean(loss):
    mask = paddle.to_tensor([1, 0, 0, 1])
    teacher = TEACHER.copy()
    teacher[1] = 1e30
    found, gradient = value_and_gradient(loss, STUDENT, paddle.to_tensor(teacher), mask=mask)
    kept = [0, 3]
    expected = loss(paddle.to_tensor(STUDENT[kept]), paddle.to_tensor(TEACHER[kept]))
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert (gradient[[1, 2]] == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_what_labels_say_of_masked_rows_does_not_matter(divergence, tail, samples, dtype):
    """Models may compute anything for padding, such as NaN."""
    options = {"divergence": divergence, "tail": tail, "mask": paddle.to_tensor([1, 0, 1, 1])}
    labels = labels_of(TEACHER, TOP, samples=samples, dtype=dtype)
    expected = value_and_gradient(sparse_distillation, STUDENT, *labels, **options)
    labels[0][1] = labels[2][1] = float("nan")
    found = value_and_gradient(sparse_distillation, STUDENT, *labels, **options)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])
    assert (found[1][1] == 0).all()


def test_labels_as_they_come_from_a_reader_can_be_masked():
    labels = labels_of(TEACHER, TOP, dtype="float16")
    mask = paddle.to_tensor([1, 0, 1, 1])
    found, _ = value_and_gradient(sparse_distillation, STUDENT, *labels, mask=mask)
    kept = [0, 2, 3]
    values, indices, logsumexp = (label[kept] for label in labels)
    values = values.astype("float32")
    expected = sparse_distillation(paddle.to_tensor(STUDENT[kept]), values, indices, logsumexp)
    assert found == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_with_everything_masked_there_is_nothing_to_learn(divergence, tail, samples):
    found, gradient = value_and_gradient(
        sparse_distillation, STUDENT, *labels_of(TEACHER, TOP, samples=samples),
        divergence=divergence, tail=tail, mask=paddle.zeros([ROWS]),
    )  # fmt: skip
    assert found == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(divergence):
    found, gradient = value_and_gradient(
        sparse_distillation, TEACHER, *labels_of(TEACHER, TOP), divergence=divergence
    )
    assert found == pytest.approx(0, abs=1e-12)
    assert np.abs(gradient).max() < 1e-9


def test_only_the_student_gets_a_gradient():
    values, indices, logsumexp, samples = labels_of(TEACHER, TOP, samples=5)
    values.stop_gradient = logsumexp.stop_gradient = False
    value_and_gradient(sparse_distillation, STUDENT, values, indices, logsumexp, samples)
    assert values.grad is None
    assert logsumexp.grad is None


def test_the_logits_are_as_they_were():
    student = leaf(STUDENT, "float32")
    before = student.numpy().copy()
    value_and_gradient(sparse_distillation, student, *labels_of(TEACHER, TOP, samples=5))
    np.testing.assert_array_equal(student.numpy(), before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_half_precision_logits_are_computed_in_float32(dtype, divergence, tail, samples):
    labels = labels_of(TEACHER, TOP, samples=samples, dtype="float16")
    student = leaf(STUDENT, dtype)
    value = sparse_distillation(student, *labels, divergence=divergence, tail=tail)
    value.backward()
    assert value.dtype == paddle.float32
    assert student.grad.dtype == student.dtype
    expected, gradient = value_and_gradient(
        sparse_distillation, student.astype("float64").numpy(), *labels,
        divergence=divergence, tail=tail,
    )  # fmt: skip
    assert float(value) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(student.grad.astype("float64").numpy(), gradient, atol=2e-3)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_indices_may_have_either_width(dtype):
    values, indices, logsumexp, samples = labels_of(TEACHER, TOP, samples=5)
    loss = sparse_distillation(
        leaf(STUDENT), values, indices.astype(dtype), logsumexp, samples.astype(dtype)
    )
    expected = sparse_distillation(leaf(STUDENT), values, indices, logsumexp, samples)
    assert float(loss) == float(expected)


@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_a_tail_that_rounds_below_nothing_is_nothing(divergence, tail, samples):
    """float16 has steps of 1/64 there: the three classes then sum to 1.007."""
    teacher = np.full((1, CLASSES), -5.0)
    teacher[0, :TOP] = [17.385, 17.384, 17.383]
    labels = labels_of(teacher, TOP, samples=samples, dtype="float16")
    mass = np.exp(labels[0].astype("float64").numpy() - labels[2].numpy()[:, None]).sum()
    assert mass > 1.005
    student = np.zeros((1, CLASSES))
    found, gradient = value_and_gradient(
        sparse_distillation, student, *labels, divergence=divergence, tail=tail
    )
    expected, exact = value_and_gradient(
        sparse_distillation, student, *labels_of(teacher, TOP, samples=samples),
        divergence=divergence, tail=tail,
    )  # fmt: skip
    # A reverse KL weighs how little the tail is, of which float16 tells nothing.
    assert found == pytest.approx(expected, rel=0.3 if divergence == "reverse_kl" else 2e-2)
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6)
    if divergence != "reverse_kl":
        np.testing.assert_allclose(gradient, exact, atol=1e-2)


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_extreme_logits_stay_finite(divergence, tail, samples, dtype, scale):
    student = leaf(STUDENT * scale, dtype)
    labels = labels_of(TEACHER * 100, TOP, samples=samples)
    found, gradient = value_and_gradient(
        sparse_distillation, student, *labels, divergence=divergence, tail=tail
    )
    assert np.isfinite(found)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-5)


@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_classes_that_neither_can_have_do_not_matter(divergence, tail, samples):
    """A vocabulary filled up with minus infinity."""
    filled = np.concatenate([STUDENT, np.full((ROWS, 2), -np.inf)], axis=-1)
    labels = labels_of(TEACHER, TOP, samples=samples)
    options = {"divergence": divergence, "tail": tail}
    found, gradient = value_and_gradient(sparse_distillation, filled, *labels, **options)
    expected, plain = value_and_gradient(sparse_distillation, STUDENT, *labels, **options)
    assert found == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(gradient[:, :CLASSES], plain, atol=1e-12)
    assert np.abs(gradient[:, CLASSES:]).max() < 1e-300  # not all kernels round exp(-inf) to 0


def allocated(function):
    """Bytes that it had allocated at most, beyond what there was before."""
    core = paddle.base.core
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    function()
    return core.host_memory_stat_peak_value("Allocated", 0) - before


@pytest.mark.parametrize(("divergence", "tail", "samples"), FORMS)
def test_it_holds_no_second_array_of_the_size_of_the_logits(monkeypatch, divergence, tail, samples):
    """Only their gradient, which whoever computes the logits needs."""
    rows, classes = 256, 20_000
    monkeypatch.setattr(sparse_losses, "_CHUNK_ON_CPU", 8 * classes)
    student = leaf(np.random.default_rng(0).normal(0, 2, (rows, classes)), "float32")
    values, indices, logsumexp = (
        paddle.to_tensor(array)
        for array in (
            np.full((rows, TOP), 1.0, "f2"), np.tile(np.arange(TOP), (rows, 1)),
            np.full(rows, 3.0, "f4"),
        )
    )  # fmt: skip
    drawn = paddle.full([rows, samples], TOP, "int32") if samples else None

    def step():
        loss = sparse_distillation(
            student, values, indices, logsumexp, drawn, divergence=divergence, tail=tail
        )
        loss.backward()

    size = rows * classes * 4
    assert size <= allocated(step) < 1.3 * size


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"logits": [CLASSES]}, r"logits must have shape \(rows, ..., classes\), not \[9\]"),
        ({"logits": [0, CLASSES]}, r"logits must have shape \(rows, ..., classes\), not \[0, 9\]"),
        ({"values": [ROWS + 1, TOP]}, r"values must have shape \[4, k\] .*, not \[5, 3\]"),
        ({"values": [ROWS]}, r"values must have shape \[4, k\] .*, not \[4\]"),
        ({"indices": [ROWS, TOP + 1]}, r"indices must have shape \[4, 3\] .*, not \[4, 4\]"),
        ({"logsumexp": [ROWS, 1]}, r"logsumexp must have shape \[4\] .*, not \[4, 1\]"),
        ({"samples": [ROWS + 1, 2]}, r"samples must have shape \[4, m\] .*, not \[5, 2\]"),
        ({"samples": [ROWS, 0]}, r"samples must have shape \[4, m\] .*, not \[4, 0\]"),
        ({"mask": [ROWS, 1]}, r"mask must have shape \[4\], not \[4, 1\]"),
        (
            {"values": [ROWS, 10], "indices": [ROWS, 10]},
            "values are of 10 classes, the student's logits of 9",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(changed, words):
    shapes = {
        "logits": [ROWS, CLASSES], "values": [ROWS, TOP], "indices": [ROWS, TOP],
        "logsumexp": [ROWS], **changed,
    }  # fmt: skip
    integers = ("indices", "samples")
    with pytest.raises(ConfigError, match=words):
        sparse_distillation(
            **{
                name: paddle.zeros(shape, "int32" if name in integers else "float32")
                for name, shape in shapes.items()
            }
        )


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("logits", "int64", "logits must be one of float16, bfloat16, float32, float64, not"),
        ("values", "int32", "values must be one of float16"),
        ("indices", "float32", "indices must be one of int32, int64, not paddle.float32"),
        ("indices", "int16", "indices must be one of int32"),
        ("logsumexp", "int32", "logsumexp must be one of float16"),
        ("samples", "float32", "samples must be one of int32"),
    ],
)
def test_dtypes_that_do_not_fit_are_refused_by_name(name, dtype, words):
    names = ["values", "indices", "logsumexp", "samples"]
    given = {"logits": leaf(STUDENT), **dict(zip(names, labels_of(TEACHER, TOP, samples=2)))}
    given[name] = given[name].astype(dtype)
    with pytest.raises(ConfigError, match=words):
        sparse_distillation(**given)


@pytest.mark.parametrize("name", ["values", "indices", "logsumexp", "samples", "mask"])
def test_arrays_are_refused_with_the_remedy(name):
    """What a reader gives where the source gives arrays."""
    names = ["values", "indices", "logsumexp", "samples"]
    given = {"logits": leaf(STUDENT), **dict(zip(names, labels_of(TEACHER, TOP, samples=2)))}
    given["mask"] = paddle.ones([ROWS])
    given[name] = given[name].numpy()
    words = f'{name} must be a Paddle tensor, not ndarray: .*return_tensors="pd"'
    with pytest.raises(ConfigError, match=words):
        sparse_distillation(**given)


@pytest.mark.parametrize(
    ("name", "class_", "words"),
    [
        ("indices", CLASSES, "indices hold class 9, but the student's logits have 9 classes"),
        ("samples", -1, "samples hold class -1"),
    ],
)
def test_a_class_that_the_student_does_not_have_is_refused(name, class_, words):
    names = ["values", "indices", "logsumexp", "samples"]
    given = dict(zip(names, labels_of(TEACHER, TOP, samples=2)))
    given[name][0, 0] = class_
    with pytest.raises(ConfigError, match=words):
        sparse_distillation(leaf(STUDENT), **given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"divergence": "kl"},
            'divergence must be "forward_kl", "reverse_kl" or "jsd", not \'kl\'',
        ),
        ({"divergence": "reverse_kl"}, 'samples cannot estimate "reverse_kl"'),
        ({"divergence": "jsd"}, 'samples cannot estimate "jsd"'),
        ({"tail": False}, "samples are the tail, which tail=False leaves out"),
        ({"samples": None, "divergence": "reverse_kl", "tail": False}, "is infinite"),
        ({"samples": None, "divergence": "jsd", "beta": 0.0}, "beta must be above 0 and below 1"),
        ({"samples": None, "divergence": "jsd", "beta": 1.0}, "beta must be above 0 and below 1"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number above 0"),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_reason(options, words):
    names = ["values", "indices", "logsumexp", "samples"]
    given = {**dict(zip(names, labels_of(TEACHER, TOP, samples=2))), **options}
    with pytest.raises(ConfigError, match=words):
        sparse_distillation(leaf(STUDENT), **given)


def test_it_is_offered_where_the_losses_are():
    assert losses.sparse_distillation is sparse_losses.sparse_distillation
