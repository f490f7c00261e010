"""The losses against numpy, and what the papers say of them."""

import numpy as np
import pytest

from edl.distill.losses import (
    decoupled_distillation,
    distillation,
    jensen_shannon_distillation,
    reverse_distillation,
    soft_cross_entropy,
)
from edl.errors import ConfigError

paddle = pytest.importorskip("paddle")

GENERATOR = np.random.default_rng(0)
STUDENT = GENERATOR.normal(0, 3, (6, 5)).astype("f4")
TEACHER = GENERATOR.normal(0, 3, (6, 5)).astype("f4")
LABELS = np.array([0, 4, 2, 2, 1, 3])


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(axis=-1)


def tensors(*arrays):
    return [paddle.to_tensor(array) for array in arrays]


def test_soft_cross_entropy():
    loss = soft_cross_entropy(*tensors(STUDENT, softmax(TEACHER)))
    expected = -(softmax(TEACHER) * np.log(softmax(STUDENT))).sum(axis=-1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_with_hard_labels_it_is_paddles_cross_entropy():
    one_hot = np.eye(5, dtype="f4")[LABELS]
    loss = soft_cross_entropy(*tensors(STUDENT, one_hot))
    assert float(loss) == pytest.approx(
        float(paddle.nn.functional.cross_entropy(*tensors(STUDENT, LABELS))), rel=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation(temperature):
    loss = distillation(*tensors(STUDENT, TEACHER), temperature)
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    assert float(loss) == pytest.approx(kl(p, q).mean() * temperature**2, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_reverse_distillation(temperature):
    loss = reverse_distillation(*tensors(STUDENT, TEACHER), temperature)
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    assert float(loss) == pytest.approx(kl(q, p).mean() * temperature**2, rel=1e-5)


@pytest.mark.parametrize("beta", [0.2, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_jensen_shannon_distillation(temperature, beta):
    loss = jensen_shannon_distillation(*tensors(STUDENT, TEACHER), temperature, beta)
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    mixture = beta * p + (1 - beta) * q
    expected = beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
    assert float(loss) == pytest.approx(expected.mean() * temperature**2, rel=1e-5)


@pytest.mark.parametrize(
    ("beta", "weight", "limit"),
    [(1e-4, 1e-4, distillation), (1 - 1e-4, 1e-4, reverse_distillation)],
)
def test_the_limits_of_jensen_shannon_are_the_two_kls(beta, weight, limit):
    student, teacher = tensors(STUDENT.astype("f8"), TEACHER.astype("f8"))
    found = float(jensen_shannon_distillation(student, teacher, 1.0, beta)) / weight
    assert found == pytest.approx(float(limit(student, teacher, 1.0)), rel=1e-2)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, float("nan")])
def test_a_jensen_shannon_divergence_that_is_none_is_refused(beta):
    with pytest.raises(ConfigError, match="beta must be above 0 and below 1"):
        jensen_shannon_distillation(*tensors(STUDENT, TEACHER), 1.0, beta)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_distillation(temperature):
    loss = decoupled_distillation(*tensors(STUDENT, TEACHER, LABELS), 2.0, 3.0, temperature)
    expected = []
    for s, t, label in zip(STUDENT / temperature, TEACHER / temperature, LABELS):
        p, q = softmax(t), softmax(s)
        two = [np.array([x[label], 1 - x[label]]) for x in (p, q)]
        rest = [np.delete(x, label) / (1 - x[label]) for x in (p, q)]
        expected.append(2 * kl(*two) + 3 * kl(*rest))
    assert float(loss) == pytest.approx(np.mean(expected) * temperature**2, rel=1e-4)


def test_the_parts_add_up_to_distillation_as_in_the_papers_equation_6():
    """KD = TCKD + (1 - p of the label) NCKD, for a single row."""
    for row in range(len(LABELS)):
        s, t, label = STUDENT[row : row + 1], TEACHER[row : row + 1], LABELS[row : row + 1]
        weight = float(1 - softmax(t)[0, label[0]])
        whole = float(distillation(*tensors(s, t), 1.0))
        parts = float(decoupled_distillation(*tensors(s, t, label), 1.0, weight, 1.0))
        assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        distillation,
        decoupled_distillation,
        reverse_distillation,
        jensen_shannon_distillation,
    ],
)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss):
    labels = [LABELS] if loss is decoupled_distillation else []
    student, teacher, *labels = tensors(TEACHER, TEACHER, *labels)
    student.stop_gradient = False
    value = loss(student, teacher, *labels)
    value.backward()
    assert float(value) == pytest.approx(0, abs=1e-5)
    assert float(student.grad.abs().max()) < 1e-5


def test_only_the_student_gets_a_gradient_and_it_points_to_the_teacher():
    student, teacher = tensors(STUDENT, TEACHER)
    student.stop_gradient = teacher.stop_gradient = False
    before = distillation(student, teacher)
    before.backward()
    assert teacher.grad is None
    after = distillation(student - 0.1 * student.grad, teacher)
    assert float(after) < float(before)


def test_labels_may_be_a_column_and_logits_half_precision():
    student, teacher = tensors(STUDENT.astype("f2"), TEACHER)
    loss = decoupled_distillation(student, teacher, paddle.to_tensor(LABELS[:, None]))
    assert loss.dtype == paddle.float32
    assert np.isfinite(float(loss))


def test_extreme_logits_stay_finite():
    student = paddle.to_tensor(np.array([[1000.0, -1000.0, 0.0]], "f4"))
    student.stop_gradient = False
    teacher = paddle.to_tensor(np.array([[-1000.0, 1000.0, 0.0]], "f4"))
    loss = decoupled_distillation(student, teacher, paddle.to_tensor([0]))
    loss.backward()
    assert np.isfinite(float(loss))
    assert np.isfinite(student.grad.numpy()).all()


WHOLE = [distillation, reverse_distillation, jensen_shannon_distillation]


@pytest.mark.parametrize("loss", [*WHOLE, decoupled_distillation])
def test_classes_that_neither_can_have_do_not_matter(loss):
    """A vocabulary filled up with minus infinity."""
    labels = tensors(LABELS) if loss is decoupled_distillation else []
    never = np.full((6, 2), -np.inf, "f4")
    student = paddle.to_tensor(np.concatenate([STUDENT, never], axis=1), stop_gradient=False)
    found = loss(student, paddle.to_tensor(np.concatenate([TEACHER, never], axis=1)), *labels)
    found.backward()
    plain = paddle.to_tensor(STUDENT, stop_gradient=False)
    expected = loss(plain, paddle.to_tensor(TEACHER), *labels)
    expected.backward()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(student.grad.numpy()[:, :5], plain.grad.numpy(), atol=1e-7)
    assert np.abs(student.grad.numpy()[:, 5:]).max() < 1e-30  # no kernel need round exp(-inf) to 0


def test_a_class_that_the_teacher_cannot_have_adds_nothing():
    teacher = TEACHER.copy()
    teacher[:, 2] = -np.inf
    p, q = softmax(teacher), softmax(STUDENT)
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-30)) - np.log(q)), 0)
    loss = distillation(*tensors(STUDENT, teacher), 1.0)
    assert float(loss) == pytest.approx(terms.sum(axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize("loss", WHOLE)
def test_what_the_teacher_says_of_masked_rows_does_not_matter(loss):
    """Models may compute anything for padding, such as NaN."""
    mask, teacher = paddle.to_tensor([1, 0, 1, 1, 0, 1]), TEACHER.copy()
    teacher[[1, 4]] = np.nan
    student = paddle.to_tensor(STUDENT, stop_gradient=False)
    found = loss(student, paddle.to_tensor(teacher), mask=mask)
    found.backward()
    kept = [0, 2, 3, 5]
    assert float(found) == pytest.approx(float(loss(*tensors(STUDENT[kept], TEACHER[kept]))))
    assert not student.grad.numpy()[[1, 4]].any()
    assert np.isfinite(student.grad.numpy()).all()


@pytest.mark.parametrize("loss", [soft_cross_entropy, *WHOLE])
def test_arrays_are_refused_with_the_remedy(loss):
    words = r'the teacher.s outputs must be a Paddle tensor, not ndarray: .*return_tensors="pd"'
    with pytest.raises(ConfigError, match=words):
        loss(paddle.to_tensor(STUDENT), TEACHER)


def test_shapes_that_differ_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"student's logits have shape \[6, 5\]"):
        distillation(*tensors(STUDENT, TEACHER[:, :4]))


@pytest.mark.parametrize(
    "loss",
    [
        soft_cross_entropy,
        distillation,
        reverse_distillation,
        jensen_shannon_distillation,
        decoupled_distillation,
    ],
)
def test_in_a_static_graph_it_is_the_same_and_leaves_its_arguments_alone(loss):
    """Paddle computes in place what a program detaches, in the caller's own memory."""
    labels = [LABELS] if loss is decoupled_distillation else []
    student, teacher, *labels = tensors(STUDENT, TEACHER, *labels)
    student.stop_gradient = False
    expected = float(loss(student, teacher, *labels))

    def step(student, teacher, labels=()):
        return loss(student, teacher, *labels)

    value = paddle.jit.to_static(step, full_graph=True)(student, teacher, labels)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert np.isfinite(student.grad.numpy()).all()
    np.testing.assert_array_equal(student.numpy(), STUDENT)
    np.testing.assert_array_equal(teacher.numpy(), TEACHER)


@pytest.mark.parametrize("loss", [soft_cross_entropy, distillation, decoupled_distillation])
def test_only_the_student_gets_a_gradient(loss):
    labels = [LABELS] if loss is decoupled_distillation else []
    student, teacher, *labels = tensors(STUDENT, TEACHER, *labels)
    student.stop_gradient = teacher.stop_gradient = False
    loss(student, teacher, *labels).backward()
    assert student.grad is not None
    assert teacher.grad is None
