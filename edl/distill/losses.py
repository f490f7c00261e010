"""Losses that learn from a teacher. All take Paddle tensors, rows first, and return a scalar.

Logits and soft labels have the shape (..., classes) and the student's dtype or float32; they are
computed in float32 whatever comes in, so that they are safe under AMP. Paddle is imported when one
of them is called.
"""

from __future__ import annotations

from typing import Any, Optional

from edl._checks import check_positive
from edl.distill import divergences
from edl.distill.sparse_losses import sparse_distillation
from edl.errors import ConfigError

__all__ = [
    "decoupled_distillation",
    "distillation",
    "jensen_shannon_distillation",
    "reverse_distillation",
    "soft_cross_entropy",
    "sparse_distillation",
]


@divergences.outside_amp
def soft_cross_entropy(logits: Any, soft_labels: Any) -> Any:
    """Cross entropy of the student's ``logits`` with a teacher's probabilities.

    What the original ``paddle_edl`` demos use, for teachers that serve softmax outputs.
    ``logits``, ``soft_labels``: tensors of floats, (rows, classes). Gradients go to ``logits``
    only. Returns a float32 scalar, the mean over rows. Raises ConfigError if the shapes differ.
    """
    import paddle

    logits, soft_labels = _pair(logits, soft_labels)
    with paddle.no_grad():
        soft_labels = soft_labels.clone()
    return -(soft_labels * divergences.log_softmax(logits)).sum(axis=-1).mean()


@divergences.outside_amp
def distillation(
    logits: Any, teacher_logits: Any, temperature: float = 4.0, *, mask: Optional[Any] = None
) -> Any:
    """KL divergence of the softened student from the softened teacher, times temperature squared.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531,
    section 2. The factor keeps gradients of one size whatever the temperature.
    ``logits``, ``teacher_logits``: tensors of floats, (..., classes). ``mask``: numbers or bools
    (...), the weight of each row; where it is 0, the teacher's may be anything. Gradients go to
    ``logits`` only. Returns a float32 scalar, the mean over rows weighted by the mask, 0 if that
    has none. Logits may be minus infinity: classes that neither can have do not matter. Raises
    ConfigError if the shapes differ.
    """
    log_p, log_q = _softened(logits, teacher_logits, temperature, mask)
    return divergences.mean_over(divergences.forward_kl(log_p, log_q), mask) * temperature**2


@divergences.outside_amp
def reverse_distillation(
    logits: Any, teacher_logits: Any, temperature: float = 1.0, *, mask: Optional[Any] = None
) -> Any:
    """KL divergence of the softened teacher from the softened student, times temperature squared:
    the student gives up what the teacher finds improbable before it covers all that is probable.

    Source: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024,
    arXiv 2306.08543 (the divergence at a single token here, without its policy gradient).
    Arguments, result and errors as of :func:`distillation`.
    """
    log_p, log_q = _softened(logits, teacher_logits, temperature, mask)
    return divergences.mean_over(divergences.reverse_kl(log_p, log_q), mask) * temperature**2


@divergences.outside_amp
def jensen_shannon_distillation(
    logits: Any,
    teacher_logits: Any,
    temperature: float = 1.0,
    beta: float = 0.5,
    *,
    mask: Optional[Any] = None,
) -> Any:
    """Generalised Jensen-Shannon divergence of the softened student and the softened teacher, times
    temperature squared: ``beta`` KL(teacher || m) + (1 - ``beta``) KL(student || m), where m is the
    mixture of the two in which the teacher has the weight ``beta``.

    Source: Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
    Mistakes" (GKD), ICLR 2024, arXiv 2306.13649. ``beta``: above 0 and below 1; divided
    by it, the divergence goes to the forward KL as it goes to 0, and divided by 1 - ``beta`` to the
    reverse one as it goes to 1.

    Other arguments and the result as of :func:`distillation`. Raises ConfigError if the shapes
    differ or there is no such divergence.
    """
    divergences.check_beta(beta)
    log_p, log_q = _softened(logits, teacher_logits, temperature, mask)
    each = divergences.jensen_shannon(log_p, log_q, beta)
    return divergences.mean_over(each, mask) * temperature**2


@divergences.outside_amp
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
    from paddle.nn import functional

    logits, teacher_logits = _pair(logits, teacher_logits)
    classes = logits.shape[-1]
    target = functional.one_hot(labels.reshape([-1]).astype("int64"), classes)
    # As good as minus infinity for the label's own class, and finite: its probability becomes 0.
    others = -1e4 * target

    def parts(values: Any) -> tuple[Any, Any]:
        """Log (p of the label, p of all others), and log p among the others."""
        values = values / temperature
        log_all = divergences.log_softmax(values)
        log_target = (log_all * target).sum(axis=-1, keepdim=True)
        log_rest = paddle.logsumexp(log_all + others, axis=-1, keepdim=True)
        two = paddle.concat([log_target, log_rest], axis=-1)
        return two, divergences.log_softmax(values + others)

    student_two, student_others = parts(logits)
    with paddle.no_grad():
        teacher_two, teacher_others = parts(teacher_logits)
    on_target = divergences.forward_kl(teacher_two, student_two).mean()
    among_others = divergences.forward_kl(teacher_others, student_others).mean()
    return (alpha * on_target + beta * among_others) * temperature**2


def _softened(
    logits: Any, teacher_logits: Any, temperature: float, mask: Optional[Any]
) -> tuple[Any, Any]:
    """Logarithms of the teacher's probabilities, and of the student's."""
    import paddle

    check_positive("temperature", temperature)
    logits, teacher_logits = _pair(logits, teacher_logits)
    with paddle.no_grad():
        if mask is not None:
            divergences.check_mask(mask, logits.shape[:-1])
            teacher_logits = divergences.cleared(teacher_logits, mask.unsqueeze(-1))
        log_p = divergences.log_softmax(teacher_logits / temperature)
    return log_p, divergences.log_softmax(logits / temperature)


def _pair(logits: Any, soft: Any) -> tuple[Any, Any]:
    """Both in float32. The caller keeps the teacher's side without a gradient."""
    divergences.check_tensor("the student's logits", logits)
    divergences.check_tensor("the teacher's outputs", soft)
    if list(logits.shape) != list(soft.shape):
        raise ConfigError(
            f"the student's logits have shape {list(logits.shape)}, the teacher's outputs "
            f"{list(soft.shape)}"
        )
    return logits.astype("float32"), soft.astype("float32")
