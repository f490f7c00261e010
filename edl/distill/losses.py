"""Losses that learn from a teacher. All take Paddle tensors, rows first, and return a scalar.

Logits and soft labels have the shape (rows, classes) and the student's dtype or float32; they are
computed in float32 whatever comes in, so that they are safe under AMP. Paddle is imported when one
of them is called.
"""

from __future__ import annotations

from typing import Any

from edl.errors import ConfigError


def soft_cross_entropy(logits: Any, soft_labels: Any) -> Any:
    """Cross entropy of the student's ``logits`` with a teacher's probabilities.

    What the original ``paddle_edl`` demos use, for teachers that serve softmax outputs.
    ``logits``, ``soft_labels``: tensors of floats, (rows, classes). Gradients go to ``logits``
    only. Returns a float32 scalar, the mean over rows. Raises ConfigError if the shapes differ.
    """
    functional = _functional()
    logits, soft_labels = _pair(logits, soft_labels)
    return -(soft_labels * functional.log_softmax(logits, axis=-1)).sum(axis=-1).mean()


def distillation(logits: Any, teacher_logits: Any, temperature: float = 4.0) -> Any:
    """KL divergence of the softened student from the softened teacher, times temperature squared.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531,
    section 2. The factor keeps gradients of one size whatever the temperature.
    ``logits``, ``teacher_logits``: tensors of floats, (rows, classes). Gradients go to ``logits``
    only. Returns a float32 scalar, the mean over rows. Raises ConfigError if the shapes differ.
    """
    functional = _functional()
    logits, teacher_logits = _pair(logits, teacher_logits)
    log_student = functional.log_softmax(logits / temperature, axis=-1)
    log_teacher = functional.log_softmax(teacher_logits / temperature, axis=-1)
    return _kl(log_teacher, log_student) * temperature**2


def decoupled_distillation(
    logits: Any,
    teacher_logits: Any,
    labels: Any,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Any:
    """Distillation in two parts of separate weight: ``alpha`` for how sure the teacher is of the
    label, ``beta`` for how it ranks the other classes.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, equations
    5 to 7 (TCKD and NCKD), with its defaults for CIFAR-100.
    ``logits``, ``teacher_logits``: tensors of floats, (rows, classes). ``labels``: integers,
    (rows,) or (rows, 1). Gradients go to ``logits`` only. Returns a float32 scalar, the mean over
    rows. Raises ConfigError if the shapes of the logits differ.
    """
    import paddle

    functional = _functional()
    logits, teacher_logits = _pair(logits, teacher_logits)
    classes = logits.shape[-1]
    target = functional.one_hot(labels.reshape([-1]).astype("int64"), classes)
    # As good as minus infinity for the label's own class, and finite: its probability becomes 0.
    others = -1e4 * target

    def parts(values: Any) -> tuple[Any, Any]:
        """Log (p of the label, p of all others), and log p among the others."""
        values = values / temperature
        log_all = functional.log_softmax(values, axis=-1)
        log_target = (log_all * target).sum(axis=-1, keepdim=True)
        log_rest = paddle.logsumexp(log_all + others, axis=-1, keepdim=True)
        two = paddle.concat([log_target, log_rest], axis=-1)
        return two, functional.log_softmax(values + others, axis=-1)

    student_two, student_others = parts(logits)
    teacher_two, teacher_others = parts(teacher_logits)
    on_target = _kl(teacher_two, student_two)
    among_others = _kl(teacher_others, student_others)
    return (alpha * on_target + beta * among_others) * temperature**2


def _kl(log_of: Any, log_from: Any) -> Any:
    """Mean over rows of KL(of || from)."""
    return (log_of.exp() * (log_of - log_from)).sum(axis=-1).mean()


def _pair(logits: Any, soft: Any) -> tuple[Any, Any]:
    """Both in float32; the teacher's side without a gradient."""
    if list(logits.shape) != list(soft.shape):
        raise ConfigError(
            f"the student's logits have shape {list(logits.shape)}, the teacher's outputs "
            f"{list(soft.shape)}"
        )
    return logits.astype("float32"), soft.astype("float32").detach()


def _functional() -> Any:
    from paddle.nn import functional

    return functional
