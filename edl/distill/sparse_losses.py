"""The loss of sparse labels: the classes that the teacher finds most probable, and a few others.

All that a divergence needs of the student are its logits of those classes and one number for all
the rest, so only this choice (:func:`_selection`) sees arrays of the size of the student's logits,
a few rows at a time, and what is computed with it is small.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Optional

from edl._checks import check_positive
from edl.distill import divergences
from edl.errors import ConfigError

#: Elements of the student's logits that are worked on at a time: what stays in a core's cache, and
#: what keeps a GPU busy with each operation (64 MiB of float32; about four such at once).
_CHUNK_ON_CPU, _CHUNK_ELSEWHERE = 1 << 18, 1 << 24
#: What a tail is taken to have at least where a logarithm of it is needed. Of a softmax it is never
#: nothing, but sums of float16 logits tell it no better than that.
_LEAST_TAIL = 2.0**-24


@divergences.outside_amp
def sparse_distillation(
    logits: Any,
    values: Any,
    indices: Any,
    logsumexp: Any,
    samples: Optional[Any] = None,
    *,
    temperature: float = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    tail: bool = True,
    mask: Optional[Any] = None,
) -> Any:
    """Divergence of the softened student from a softened teacher of whose distribution the top k
    classes are known, times temperature squared.

    ``logits``: the student's, floats (..., classes); they are divided by the temperature here, the
    teacher's numbers have been. ``values``: the teacher's k largest logits / temperature, floats
    (..., k). ``indices``: their classes, int32 or int64, (..., k), different ones in a row.
    ``logsumexp``: of all its logits / temperature, floats (...). ``samples``: int32 or int64,
    (..., m), classes outside the top k, drawn with replacement in proportion to the teacher's
    probabilities. ``temperature``: what the labels were made with. ``divergence``:
    ``"forward_kl"``, ``"reverse_kl"`` or ``"jsd"`` (generalised Jensen-Shannon of weight ``beta``,
    above 0 and below 1). ``mask``: numbers or bools (...), the weight of each row; where it is 0,
    the labels may say anything, as long as ids are classes.

    What the top k do not hold is the tail. It is

    - with ``samples``, in the forward KL: what they estimate. Each stands for 1/m of the tail's
      mass, and the mean of the gradient over many draws is that of the whole distribution. The
      value is larger, in the mean by the tail's mass times the entropy within it, which labels do
      not tell and no student changes; it is not 0 for a student that equals its teacher.
    - without them, ``tail=True``: one class more, with what the top k leave of the teacher's and of
      the student's probabilities.
    - ``tail=False``: nothing. The teacher's top k are made to sum to 1, beside the student's
      probabilities over all classes. Of this there is no reverse KL.

    Each is the full divergence if k is the number of classes. Gradients go to ``logits`` only.
    Returns a scalar, the mean over rows weighted by the mask, 0 if that has none. It is computed in
    float32 (float64, if the logits are that), a few rows at a time, in the dynamic graph: beside
    the logits and their gradient it holds nothing of their size.
    Raises ConfigError if shapes, dtypes or arguments do not fit, or an id is no class of the
    student.

    Sources: Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs",
    ACL 2025, arXiv 2503.16870 (samples, and the top k made to sum to 1); the divergences as in
    :func:`edl.distill.losses.distillation` and its neighbours.
    """
    import paddle

    check_positive("temperature", temperature)
    check_divergence(divergence, beta, tail, samples is not None)
    _check_labels(logits, values, indices, logsumexp, samples)
    classes, count = logits.shape[-1], values.shape[-1]
    dtype = "float64" if logits.dtype == paddle.float64 else "float32"
    values, logsumexp = values.detach().astype(dtype), logsumexp.detach().astype(dtype)
    if mask is not None:
        divergences.check_mask(mask, logits.shape[:-1])
        values = divergences.cleared(values, mask.unsqueeze(-1))
        logsumexp = divergences.cleared(logsumexp, mask)
    whole = not tail or count == classes
    log_p, tail_mass = _teacher(values, logsumexp, whole)
    log_tail = tail_mass.clip(min=_LEAST_TAIL).log()
    if whole:
        log_tail = paddle.full_like(log_tail, divergences.LOG_ZERO)

    chosen, rest = _student(logits, indices, samples, temperature)
    student = paddle.concat([chosen[..., :count], rest], axis=-1)
    log_total = paddle.logsumexp(student, axis=-1, keepdim=True)
    log_q = student - log_total
    if samples is None:
        log_p = paddle.concat([log_p, log_tail], axis=-1)
        each = _diverge(divergence, log_p, log_q, beta)
    else:
        log_q_drawn = (chosen[..., count:] - log_total).mean(axis=-1, keepdim=True)
        on_tail = tail_mass * (log_tail - log_q_drawn)
        each = divergences.forward_kl(log_p, log_q[..., :count]) + on_tail.squeeze(-1)
    return divergences.mean_over(each, mask) * temperature**2


def _diverge(divergence: str, log_p: Any, log_q: Any, beta: float) -> Any:
    if divergence == "forward_kl":
        return divergences.forward_kl(log_p, log_q)
    if divergence == "reverse_kl":
        return divergences.reverse_kl(log_p, log_q)
    return divergences.jensen_shannon(log_p, log_q, beta)


def _teacher(values: Any, logsumexp: Any, whole: bool) -> tuple[Any, Any]:
    """Log probabilities of the top k, (..., k), and the mass of the others, (..., 1).

    Values are float16, so that those of a sure teacher may sum to more than 1; they are then made
    to sum to 1, and the others have nothing. If they are the ``whole``, they are made to in any
    case.
    """
    log_p = values - logsumexp.unsqueeze(-1)
    log_p = log_p.clip(min=divergences.LOG_ZERO)
    mass = log_p.exp().sum(axis=-1, keepdim=True)
    total = mass if whole else mass.clip(min=1.0)
    return log_p - total.log(), 1 - mass / total


def _student(
    logits: Any, indices: Any, samples: Optional[Any], temperature: float
) -> tuple[Any, Any]:
    """Logits / temperature of the indices and samples, (..., k + m), and the logsumexp of all but
    the indices, (..., 1).
    """
    import paddle

    *rows, count = indices.shape
    ids = indices.astype("int64")
    if samples is not None:
        ids = paddle.concat([ids, samples.astype("int64")], axis=-1)
    chosen, rest = _selection().apply(
        logits.reshape([-1, logits.shape[-1]]),
        ids.reshape([-1, ids.shape[-1]]),
        count,
        float(temperature),
    )
    return chosen.reshape(ids.shape), rest.reshape([*rows, 1])


@functools.lru_cache(maxsize=1)
def _selection() -> Any:
    """The operation (a class, which needs Paddle to be made) that chooses from the student's
    logits / temperature (rows, classes) those of ``ids`` (rows, k + m), and the logsumexp of all
    but the first k of these, (rows, 1).

    Paddle's own operations would keep an array of the size of the logits for each step of this.
    """
    import paddle

    class Selection(paddle.autograd.PyLayer):
        """``apply(logits, ids, k, temperature)``."""

        @staticmethod
        def forward(ctx: Any, logits: Any, ids: Any, count: int, temperature: float) -> Any:
            dtype = "float64" if logits.dtype == paddle.float64 else "float32"
            parts = []
            for rows in _chunks(logits):
                scaled = logits[rows].astype(dtype) / temperature
                chosen = paddle.take_along_axis(scaled, ids[rows], axis=1, broadcast=False)
                rest = _logsumexp(_without(scaled, ids[rows, :count]))
                parts.append((_bounded(chosen), rest))
            chosen, rest = (paddle.concat(list(column)) for column in zip(*parts))
            ctx.save_for_backward(logits, ids, rest)
            ctx.count, ctx.temperature = count, temperature
            return chosen, rest

        @staticmethod
        @divergences.outside_amp
        def backward(ctx: Any, on_chosen: Any, on_rest: Any) -> Any:
            logits, ids, rest = ctx.saved_tensor()
            top, drawn = slice(None, ctx.count), slice(ctx.count, None)
            gradient = paddle.empty_like(logits)
            for rows in _chunks(logits):
                scaled = logits[rows].astype(rest.dtype) / ctx.temperature
                share = _without(scaled, ids[rows, top]).subtract_(rest[rows]).exp_()
                part = share.multiply_(on_rest[rows])
                part.put_along_axis_(ids[rows, top], on_chosen[rows, top], 1)
                if ids.shape[1] > ctx.count:
                    part.put_along_axis_(ids[rows, drawn], on_chosen[rows, drawn], 1, reduce="add")
                gradient[rows] = part.scale_(1 / ctx.temperature).astype(logits.dtype)
            return gradient, None

    return Selection


def _chunks(logits: Any) -> Iterator[slice]:
    rows, classes = logits.shape
    chunk = _CHUNK_ON_CPU if logits.place.is_cpu_place() else _CHUNK_ELSEWHERE
    step = max(1, chunk // classes)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _without(scaled: Any, indices: Any) -> Any:
    """A copy with minus infinity in place of these."""
    import paddle

    nothing = paddle.full(indices.shape, float("-inf"), scaled.dtype)
    return paddle.put_along_axis(scaled, indices, nothing, axis=1)


def _logsumexp(scaled: Any) -> Any:
    """(rows, 1); LOG_ZERO of nothing but minus infinity. Overwrites its argument."""
    largest = _bounded(scaled.max(axis=1, keepdim=True))
    return _bounded(scaled.subtract_(largest).exp_().sum(axis=1, keepdim=True).log() + largest)


def _bounded(logs: Any) -> Any:
    return logs.clip(min=divergences.LOG_ZERO)


def check_divergence(
    divergence: str, beta: float, tail: bool = True, samples: bool = False
) -> None:
    """Raises ConfigError for a divergence that is none; ``samples``: whether they are the tail."""
    if divergence not in ("forward_kl", "reverse_kl", "jsd"):
        raise ConfigError(
            f'divergence must be "forward_kl", "reverse_kl" or "jsd", not {divergence!r}'
        )
    if divergence == "jsd":
        divergences.check_beta(beta)
    if samples and divergence != "forward_kl":
        raise ConfigError(
            f'samples cannot estimate "{divergence}": in it a class counts by the student\'s '
            "probability and the teacher's, and these were drawn by the teacher's, which they do "
            'not tell; leave samples out, or use "forward_kl"'
        )
    if samples and not tail:
        raise ConfigError("samples are the tail, which tail=False leaves out: give one of them")
    if divergence == "reverse_kl" and not tail:
        raise ConfigError(
            "a reverse KL with tail=False is infinite: the student's probabilities outside the top "
            'k meet none of the teacher\'s; use tail=True, "forward_kl" or "jsd"'
        )


def _check_labels(
    logits: Any, values: Any, indices: Any, logsumexp: Any, samples: Optional[Any]
) -> None:
    import paddle

    floats = [paddle.float16, paddle.bfloat16, paddle.float32, paddle.float64]
    ids = [paddle.int32, paddle.int64]
    divergences.check_tensor("logits", logits)
    divergences.check_tensor("values", values)
    if len(logits.shape) < 2 or 0 in logits.shape:
        raise ConfigError(f"logits must have shape (rows, ..., classes), not {list(logits.shape)}")
    *rows, classes = logits.shape
    _check("logits", logits, [*rows, classes], floats)
    _check("values", values, [*rows, "k"], floats)
    _check("indices", indices, [*rows, values.shape[-1]], ids)
    _check("logsumexp", logsumexp, rows, floats)
    _check_classes("indices", indices, classes)
    if samples is not None:
        _check("samples", samples, [*rows, "m"], ids)
        _check_classes("samples", samples, classes)
    if values.shape[-1] > classes:
        raise ConfigError(
            f"values are of {values.shape[-1]} classes, the student's logits of {classes}"
        )


def _check(name: str, tensor: Any, shape: list[Any], dtypes: list[Any]) -> None:
    """A letter in ``shape`` is any size but 0."""
    divergences.check_tensor(name, tensor)
    found = list(tensor.shape)
    if len(found) != len(shape) or not all(
        size > 0 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(found, shape)
    ):
        wanted = f"[{', '.join(map(str, shape))}]"
        raise ConfigError(f"{name} must have shape {wanted} beside these logits, not {found}")
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).rpartition(".")[2] for dtype in dtypes)
        raise ConfigError(f"{name} must be one of {allowed}, not {tensor.dtype}")


def _check_classes(name: str, ids: Any, classes: int) -> None:
    # A kernel on a GPU would end the process without saying why.
    for id_ in (int(ids.min()), int(ids.max())):
        if not 0 <= id_ < classes:
            raise ConfigError(
                f"{name} hold class {id_}, but the student's logits have {classes} classes: are "
                "its vocabulary and the teacher's the same?"
            )
