"""Sparse labels from whole logits: the k largest, their logsumexp, ids drawn from the rest.

One function, in numpy for arrays and in Paddle's operators for tensors (eager ones, or those of a
program that is being exported). Both give the same: of equal logits the one with the smaller id
comes first, and ids are drawn from the same random numbers. On a CPU numpy is several times
faster; on a GPU only Paddle's way leaves the logits where they are.

The k largest. Classes j with the same j mod n form a block, for n blocks; the k-th largest of the
blocks' maxima is a lower bound of the k-th largest logit that few others reach, so one pass over
the logits and a small partition leave about k candidates of thousands.

The samples. Source: "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", Anshumann
et al., ACL 2025: ids of the classes outside the top k, drawn with replacement in proportion to the
teacher's probabilities, each standing for 1/m of what those hold together, give the forward
KL divergence's gradient without bias. Here the block is drawn by the sums of the blocks, and then
the class within it. The random numbers of a row come from splitmix64 (Steele, Lea, Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014), begun at the row's seed and read at
``position * 2**16 + draw``, so that they depend on nothing else.
"""

from __future__ import annotations

import math
from typing import Any, Optional

import numpy as np

from edl.errors import ConfigError
from edl.serving.wire.labels import (
    INDICES,
    LOGSUMEXP,
    MAX_SAMPLES,
    SAMPLES,
    TARGET,
    VALUES,
    LabelForm,
    check_classes,
)

#: Classes of a block.
_BLOCK = 32

#: Logits that are worked on at a time: they stay in a core's cache.
_CHUNK = 1 << 18

#: splitmix64's increment, and the multipliers and shifts of its output function.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31

#: Random numbers have so many bits: a float32 holds them exactly.
_BITS = 24
_UNIT = 2.0**-_BITS

#: A tail of less, beside the largest's weight of 1, is none: rounding makes more of nothing.
_NO_TAIL = 1e-25

#: What random numbers are multiplied by, so that no rounding makes one of them reach the whole sum.
_BELOW_ONE = 1.0 - 2.0**-20


def sparse_labels(
    logits: Any, form: LabelForm, seeds: Any = None, targets: Any = None
) -> dict[str, Any]:
    """The parts of ``form`` by name (see ``wire.labels``), ids as int32.

    ``logits``: (rows, ..., classes), float16, float32, float64, or bfloat16 (in numpy uint16, its
    bits); they are computed with in float32. ``seeds``: (rows,) int64, where ids are drawn.
    ``targets``: (rows, ...) whole numbers, where the form has a target. All are arrays, or all
    tensors, and so are the parts.

    Where the top k hold everything there is nothing to draw from: samples repeat the first index.
    NaN is the smallest of logits, and makes its ``logsumexp`` NaN.
    Raises ConfigError if there are fewer classes than ``top_k``, or seeds or targets are missing or
    do not fit.
    """
    shape = list(logits.shape)
    if len(shape) < 2:
        raise ConfigError(f"logits are (rows, ..., classes), not of shape {shape}")
    check_classes("logits", shape[-1], form)
    _check_given("seeds", seeds, shape[:1], form.samples > 0)
    _check_given("targets", targets, shape[:-1], form.target)
    compute = _in_numpy if isinstance(logits, np.ndarray) else _in_paddle
    return compute(logits, form, seeds, targets)


def token_seeds(seeds: np.ndarray, tokens: int) -> np.ndarray:
    """For each token of rows with ``seeds`` (rows,) int64, the seed by which it draws the same ids
    when it is a row of its own: (rows, tokens) int64.
    """
    steps = np.arange(tokens, dtype=np.uint64) * np.uint64(MAX_SAMPLES)
    seeds = np.asarray(seeds, np.int64).view(np.uint64)[:, None]
    return (seeds + steps * np.uint64(_GOLDEN)).view(np.int64)


def _check_given(what: str, value: Any, shape: list[int], needed: bool) -> None:
    if not needed:
        return
    if value is None:
        raise ConfigError(f"this form of labels needs {what}")
    if len(value.shape) != len(shape) or any(
        -1 not in pair and pair[0] != pair[1] for pair in zip(value.shape, shape)
    ):
        raise ConfigError(f"{what} must have shape {shape}, not {list(value.shape)}")


# --- numpy ----------------------------------------------------------------------------------


def _in_numpy(
    logits: np.ndarray,
    form: LabelForm,
    seeds: Optional[np.ndarray],
    targets: Optional[np.ndarray],
) -> dict[str, np.ndarray]:
    *lead, classes = logits.shape
    flat = logits.reshape(-1, classes)
    count, positions = len(flat), max(1, math.prod(lead[1:]))
    kinds = {
        VALUES: (form.top_k, np.float16),
        INDICES: (form.top_k, np.int32),
        LOGSUMEXP: (None, np.float32),
        SAMPLES: (form.samples, np.int32),
        TARGET: (None, np.float32),
    }
    parts = {}
    for part in form.parts:
        width, dtype = kinds[part]
        parts[part] = np.empty((count,) if width is None else (count, width), dtype)
    step = max(1, _CHUNK // classes)
    blocks = -(-classes // _BLOCK)
    scaled = np.full((min(step, count), blocks * _BLOCK), -np.inf, np.float32)
    weights = np.empty_like(scaled)
    wanted = None if targets is None else np.asarray(targets).reshape(-1)
    with np.errstate(all="ignore"):  # infinities and NaN are what they are
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            x, w = scaled[: rows.stop - start], weights[: rows.stop - start]
            _scale(flat[rows], form.temperature, x[:, :classes])
            values, ids = _largest(x, classes, form.top_k)
            parts[VALUES][rows], parts[INDICES][rows] = values, ids
            if form.target:
                assert wanted is not None
                parts[TARGET][rows] = _at(x, wanted[rows], classes)
            highest = values[:, :1]
            offset = np.where(np.isfinite(highest), highest, np.float32(0))
            np.exp(np.subtract(x, offset, out=w), out=w)
            total = w.sum(axis=1)
            if form.samples:
                assert seeds is not None
                number = np.arange(rows.start, rows.stop)
                bits = _random_bits(seeds[number // positions], number % positions, form.samples)
                parts[SAMPLES][rows] = _drawn(w, blocks, ids, bits)
            parts[LOGSUMEXP][rows] = np.log(total) + offset[:, 0]
    return {part: array.reshape(*lead, *array.shape[1:]) for part, array in parts.items()}


def _scale(logits: np.ndarray, temperature: float, out: np.ndarray) -> None:
    """Divide by the temperature, in float32."""
    if logits.dtype == np.uint16:  # bfloat16's bits
        logits = (logits.astype(np.uint32) << 16).view(np.float32)
    if temperature == 1.0:
        out[...] = logits
    else:
        single = np.float32  # said, since numpy 1 would divide float16 as such
        np.divide(logits, single(temperature), out=out, dtype=single, casting="same_kind")


def _largest(x: np.ndarray, classes: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of the first ``classes`` of each row, and their places."""
    blocks = x.shape[1] // _BLOCK
    few = x[:, :classes]
    if blocks >= 2 * k:
        few = x.reshape(len(x), _BLOCK, blocks).max(axis=1)
    few = np.fmax(few, np.float32(-np.inf))  # NaN counts as the smallest
    bound = np.partition(few, few.shape[1] - k, axis=1)[:, few.shape[1] - k]
    reached = ~(x[:, :classes] < bound[:, None])  # NaN is not below
    rows, places = np.divmod(np.flatnonzero(reached), classes)  # numpy's quick way, for one line
    candidates = x[rows, places]
    order = np.lexsort((-candidates, rows))  # stable: equal ones stay in the order of places
    starts = np.searchsorted(rows, np.arange(len(x)))
    chosen = order[starts[:, None] + np.arange(k)]
    return candidates[chosen], places[chosen]


def _at(x: np.ndarray, places: np.ndarray, classes: int) -> np.ndarray:
    """What each row has at its place; 0 where that is none."""
    known = (places >= 0) & (places < classes)
    return np.where(known, x[np.arange(len(x)), np.where(known, places, 0)], 0)


def _random_bits(seeds: np.ndarray, positions: np.ndarray, draws: int) -> np.ndarray:
    """64 random bits for each draw at a position of a row, as uint64."""
    first = positions.astype(np.uint64)[:, None] * np.uint64(MAX_SAMPLES)
    number = first + np.arange(1, draws + 1, dtype=np.uint64)
    state: np.ndarray = np.asarray(seeds, np.int64).view(np.uint64)[:, None] + number * np.uint64(
        _GOLDEN
    )
    for shift, multiplier in _MIX:
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(multiplier)
    return state ^ (state >> np.uint64(_LAST_SHIFT))


def _uniform(bits: np.ndarray, shift: int) -> np.ndarray:
    """Numbers between 0 and 1 from the bits above ``shift``."""
    number = (bits >> np.uint64(shift)) & np.uint64((1 << _BITS) - 1)
    return (number + 0.5) * (_UNIT * _BELOW_ONE)


def _drawn(w: np.ndarray, blocks: int, top: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Places drawn by their weight, those in ``top`` excepted, whose weights become 0."""
    row = np.arange(len(w))[:, None]
    w[row, top] = 0
    by_block = w.reshape(len(w), _BLOCK, blocks)
    sums = by_block.sum(axis=1).cumsum(axis=1, dtype=np.float64)
    tail = sums[:, -1:]
    some = (tail > _NO_TAIL) & np.isfinite(tail)
    # The rows' distributions one after the other, each of length 1: one sorted sequence.
    line = np.where(some, sums / np.where(some, tail, 1), 0) + row
    block = np.searchsorted(line.ravel(), (_uniform(bits, 40) + row).ravel(), side="right")
    block = np.minimum(block.reshape(bits.shape) - row * blocks, blocks - 1)
    within = by_block[row, :, block].cumsum(axis=2, dtype=np.float64)
    reached = within <= (_uniform(bits, 16)[:, :, None] * within[:, :, -1:])
    places = reached.sum(axis=2) * blocks + block
    return np.where(some, places, top[:, :1])


# --- Paddle ---------------------------------------------------------------------------------


def _in_paddle(logits: Any, form: LabelForm, seeds: Any, targets: Any) -> dict[str, Any]:
    import paddle

    classes = logits.shape[-1]
    if classes < 0:
        raise ConfigError("how many classes there are must be known when a program is made")
    lead = [
        paddle.shape(logits)[place] if size < 0 else size
        for place, size in enumerate(logits.shape[:-1])
    ]
    by_row = logits.astype("float32").reshape([0, -1, classes])
    x = by_row.reshape([-1, classes])
    if form.temperature != 1.0:
        x = x / form.temperature
    values, ids = _largest_in_paddle(paddle, x, form.top_k)
    parts = {VALUES: values.astype("float16"), INDICES: ids.astype("int32")}
    if form.target:
        where = targets.reshape([-1, 1]).astype("int64")
        parts[TARGET] = _at_in_paddle(paddle, x, where).reshape([-1])
    highest = values[:, :1]
    offset = paddle.where(paddle.isfinite(highest), highest, paddle.zeros_like(highest))
    w = paddle.exp(x - offset)
    # Paddle's exp for CPUs goes no lower than 1e-38, so rows of nothing are looked at themselves.
    nothing = highest[:, 0] == -math.inf
    parts[LOGSUMEXP] = paddle.where(nothing, highest[:, 0], paddle.log(w.sum(-1)) + offset[:, 0])
    if form.samples:
        bits = _random_bits_in_paddle(paddle, seeds, paddle.shape(by_row)[1], form.samples)
        w = paddle.put_along_axis(w, ids, 0.0, 1)
        parts[SAMPLES] = _drawn_in_paddle(paddle, w, ids, bits).astype("int32")
    widths = {VALUES: form.top_k, INDICES: form.top_k, SAMPLES: form.samples}
    shaped = {}
    for part in form.parts:
        wide = [widths[part]] if part in widths else []
        shaped[part] = parts[part].reshape([*lead, *wide])
    return shaped


def _largest_in_paddle(paddle: Any, x: Any, k: int) -> tuple[Any, Any]:
    """See ``_largest``. Blocks are of neighbours here, so that the order of the candidates is that
    of their places.
    """
    blocks = -(-x.shape[1] // _BLOCK)
    if blocks < 2 * k:
        _, ids = paddle.topk(_keys(paddle, x), k)
        return paddle.take_along_axis(x, ids, 1, broadcast=False), ids
    by_block = _padded(paddle, x, -math.inf).reshape([-1, blocks, _BLOCK])
    _, chosen = paddle.topk(_keys(paddle, by_block.max(-1)), k)
    chosen = chosen.sort(-1)
    row = paddle.arange(paddle.shape(x)[0], dtype="int64").unsqueeze(-1)
    few = paddle.gather(by_block.reshape([-1, _BLOCK]), (row * blocks + chosen).reshape([-1]))
    few = few.reshape([-1, k * _BLOCK])
    _, at = paddle.topk(_keys(paddle, few), k)
    ids = paddle.take_along_axis(chosen, at // _BLOCK, 1, broadcast=False) * _BLOCK + at % _BLOCK
    return paddle.take_along_axis(few, at, 1, broadcast=False), ids


def _keys(paddle: Any, x: Any) -> Any:
    """float64 numbers in the order of (float32's value, the smaller place first), all different:
    what is added is below the distance to the next float32.
    """
    value = paddle.clip(x.astype("float64"), -1e39, 1e39)
    value = paddle.where(paddle.isnan(value), paddle.full_like(value, -2e39), value)
    place = paddle.arange(x.shape[1], dtype="float64") * 2.0**-50
    return value - (paddle.abs(value) + 1e-45) * place


def _padded(paddle: Any, x: Any, value: float) -> Any:
    """Rows of whole blocks."""
    missing = -x.shape[1] % _BLOCK
    if not missing:
        return x
    # Not functional.pad: it writes beyond its memory in programs with any number of rows (3.3).
    return paddle.concat([x, paddle.full_like(x[:, :1], value).expand([-1, missing])], -1)


def _random_bits_in_paddle(paddle: Any, seeds: Any, positions: Any, draws: int) -> Any:
    """See ``_random_bits``; int64, whose products wrap around like a uint64's."""

    def constant(value: int) -> Any:  # as an attribute it would be rounded to a float
        high, low = (paddle.full([1], half, "int64") for half in (value >> 32, value & 0xFFFFFFFF))
        return high * paddle.full([1], 1 << 32, "int64") + low

    position = paddle.arange(positions, dtype="int64").unsqueeze(-1) * MAX_SAMPLES
    number = position + paddle.arange(1, draws + 1, dtype="int64")
    state = seeds.reshape([-1, 1, 1]) + (number * constant(_GOLDEN)).unsqueeze(0)
    for shift, multiplier in _MIX:
        state = (state ^ _shifted(paddle, state, shift)) * constant(multiplier)
    return (state ^ _shifted(paddle, state, _LAST_SHIFT)).reshape([-1, draws])


def _shifted(paddle: Any, bits: Any, shift: int) -> Any:
    """To the right, filled up with zeros."""
    by = paddle.full([1], shift, "int64")
    return paddle.bitwise_right_shift(bits, by, is_arithmetic=False)


def _uniform_in_paddle(paddle: Any, bits: Any, shift: int) -> Any:
    mask = paddle.full([1], (1 << _BITS) - 1, "int64")
    number = _shifted(paddle, bits, shift) & mask
    return (number.astype("float64") + 0.5) * (_UNIT * _BELOW_ONE)


def _drawn_in_paddle(paddle: Any, w: Any, top: Any, bits: Any) -> Any:
    """See ``_drawn``; the weights of ``top`` are 0 already."""
    blocks = -(-w.shape[1] // _BLOCK)
    by_block = _padded(paddle, w, 0.0).reshape([-1, _BLOCK, blocks])
    sums = by_block.sum(1).astype("float64").cumsum(-1)
    tail = sums[:, -1:]
    first = _uniform_in_paddle(paddle, bits, 40) * tail
    block = paddle.searchsorted(sums, first, right=True).clip(max=blocks - 1)
    lanes = block.unsqueeze(1).expand([-1, _BLOCK, -1])
    within = paddle.take_along_axis(by_block, lanes, 2, broadcast=False)
    within = within.astype("float64").cumsum(1)
    second = _uniform_in_paddle(paddle, bits, 16).unsqueeze(1) * within[:, -1:, :]
    places = (within <= second).astype("int64").sum(1) * blocks + block
    some = (tail > _NO_TAIL) & paddle.isfinite(tail)
    return paddle.where(some, places, top[:, :1])


def _at_in_paddle(paddle: Any, x: Any, places: Any) -> Any:
    known = (places >= 0) & (places < x.shape[1])
    places = paddle.where(known, places, paddle.zeros_like(places))
    found = paddle.take_along_axis(x, places, 1, broadcast=False)
    return paddle.where(known, found, paddle.zeros_like(found))
