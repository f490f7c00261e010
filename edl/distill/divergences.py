"""How far a student's distribution is from its teacher's: the formulas that the losses share.

Distributions are logarithms of probabilities, tensors (..., classes); the teacher's is ``log_p``,
the student's ``log_q``. A divergence is one number for each of them, (...).
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Optional

from edl.errors import ConfigError

#: The logarithm of no probability: times 0 it is 0, which minus infinity is not.
LOG_ZERO = -1e30


def outside_amp(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, computing in the dtypes that it chooses: AMP's level O2 would change float32 to
    half precision for most operations.
    """

    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        import paddle

        with paddle.amp.auto_cast(enable=False):
            return function(*args, **kwargs)

    return outside


def forward_kl(log_p: Any, log_q: Any) -> Any:
    """KL(teacher || student): the student must have something wherever the teacher has.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """
    return (log_p.exp() * (log_p - log_q)).sum(axis=-1)


def reverse_kl(log_p: Any, log_q: Any) -> Any:
    """KL(student || teacher): the student must have nothing where the teacher has nothing.

    Source: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024,
    arXiv 2306.08543.
    """
    return forward_kl(log_q, log_p)


def jensen_shannon(log_p: Any, log_q: Any, beta: float) -> Any:
    """How far both are from their mixture m, in which the teacher has the weight ``beta``:
    beta KL(teacher || m) + (1 - beta) KL(student || m).

    Source: Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024,
    arXiv 2306.13649.
    """
    import paddle

    log_m = paddle.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * forward_kl(log_p, log_m) + (1 - beta) * forward_kl(log_q, log_m)


def check_beta(beta: float) -> None:
    """Raises ConfigError unless there is such a Jensen-Shannon divergence."""
    if not 0 < beta < 1:
        raise ConfigError(
            f"beta must be above 0 and below 1, not {beta!r}: at 0 and at 1 the Jensen-Shannon "
            "divergence is 0 whatever the student says; its limits are the forward and the "
            "reverse KL"
        )


def log_softmax(logits: Any) -> Any:
    """Logarithms of the probabilities, (..., classes); LOG_ZERO of classes that cannot be."""
    import paddle
    from paddle.nn import functional

    # Paddle's kernel for CPUs takes seconds where this takes milliseconds (docs/measurements.md);
    # its kernel for GPUs makes one pass of it.
    if paddle.get_device() != "cpu":
        return functional.log_softmax(logits, axis=-1).clip(min=LOG_ZERO)
    largest = logits.max(axis=-1, keepdim=True)
    largest.stop_gradient = True
    shifted = logits - largest
    return (shifted - shifted.exp().sum(axis=-1, keepdim=True).log()).clip(min=LOG_ZERO)


def mean_over(each: Any, mask: Optional[Any]) -> Any:
    """The mean of ``each`` weighted by ``mask``, both (...); 0 where the mask has nothing."""
    import paddle

    if mask is None:
        return each.mean()
    check_mask(mask, each.shape)
    weights = mask.astype(each.dtype)
    total = weights.sum()
    return (each * weights).sum() / paddle.where(total == 0, paddle.ones_like(total), total)


def check_mask(mask: Any, rows: list[int]) -> None:
    """Raises ConfigError unless the mask has a number for each row."""
    check_tensor("mask", mask)
    if list(mask.shape) != list(rows):
        raise ConfigError(f"mask must have shape {list(rows)}, not {list(mask.shape)}")


def cleared(teachers: Any, mask: Any) -> Any:
    """What a teacher says, with 0 where the mask is: NaN, which models may say of padding, would
    remain in gradients.
    """
    import paddle

    return paddle.where(mask == 0, paddle.zeros_like(teachers), teachers)


def check_tensor(name: str, value: Any) -> None:
    """Raises ConfigError for anything else, such as arrays."""
    import paddle

    if not paddle.is_tensor(value):
        raise ConfigError(
            f"{name} must be a Paddle tensor, not {type(value).__name__}: readers and pools give "
            'tensors where the source does, and with return_tensors="pd"'
        )
