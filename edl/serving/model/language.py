"""A causal language model as a teacher: one forward pass, and labels of every token.

Whole logits of a batch do not fit any memory where a vocabulary is large (8 rows of 2,048 tokens
with 150,000 classes: 9.8 GB). So the model is taken in two halves: its backbone computes the hidden
states of all tokens, and its head is applied to some of them at a time, from whose logits sparse
labels are made before the next ones are computed.

Each token's labels depend on the tokens before it only, so rows that are filled up at their end
have the labels that they would have alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import numpy as np

from edl._paddle import import_paddle
from edl.errors import BadRequest, ModelError
from edl.serving.model.layer import check_evaluating, place_of
from edl.serving.model.sparse import sparse_labels, token_seeds
from edl.serving.wire import selftest
from edl.serving.wire.description import Description, TensorSpec
from edl.serving.wire.labels import INDICES, LOGSUMEXP, VALUES, LabelForm

INPUT_IDS, ATTENTION_MASK, POSITION_IDS = "input_ids", "attention_mask", "position_ids"
LOGITS, HIDDEN_STATES = "logits", "hidden_states"

_FEEDS = {INPUT_IDS, ATTENTION_MASK, POSITION_IDS}
_FETCHES = {LOGITS, HIDDEN_STATES}

#: Bytes of the logits that are computed at a time, as float32: on a CPU, and on what is better kept
#: busy with more.
CHUNK, CHUNK_ON_DEVICE = 64 << 20, 256 << 20

#: Bytes that whole logits of a batch may have.
MOST_WHOLE = 256 << 20

#: Largest ``top_k``, and number of samples, that may be asked for unless it is said otherwise.
TOP_K = 256

_SIZES = ("vocab_size", "hidden_size")

#: By which part of the largest logit the two ways to compute it may differ.
_ROUNDING = 0.05


@dataclass(frozen=True)
class CausalLM:
    """The two halves of a model, on tensors.

    ``backbone(input_ids, attention_mask, position_ids)``, the latter two may be None: the hidden
    states (rows, tokens, ``width``). ``head``: logits (..., ``classes``) of hidden states.
    ``place``: where tensors have to be. ``longest``: tokens that a row may have; None: any number.
    """

    backbone: Callable[..., Any]
    head: Callable[[Any], Any]
    classes: int
    width: int
    place: Any
    longest: Optional[int] = None


def has_head(layer: Any) -> bool:
    """Whether a layer is a causal language model whose halves can be told apart, as those of
    PaddleFormers and PaddleNLP are: ``lm_head`` is one, the other is called as
    ``base_model_prefix`` says, and ``config`` has their sizes.
    """
    prefix = getattr(layer, "base_model_prefix", "")
    config = getattr(layer, "config", None)
    sized = all(isinstance(getattr(config, size, None), int) for size in _SIZES)
    return bool(prefix) and hasattr(layer, "lm_head") and hasattr(layer, prefix) and sized


def halves(layer: Any) -> CausalLM:
    """The halves of a layer that ``has_head``."""
    config = layer.config
    longest = getattr(config, "max_position_embeddings", None)
    base = getattr(layer, layer.base_model_prefix)
    softcap = getattr(config, "final_logit_softcapping", None)

    def backbone(input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
        check_evaluating(layer)
        given = {ATTENTION_MASK: attention_mask, POSITION_IDS: position_ids}
        more = {name: tensor for name, tensor in given.items() if tensor is not None}
        outputs = base(input_ids=input_ids, use_cache=False, **more)
        if isinstance(outputs, (tuple, list)):
            return outputs[0]
        return getattr(outputs, "last_hidden_state", outputs)

    def head(hidden: Any) -> Any:
        logits = layer.lm_head(hidden)
        if softcap is None:
            return logits
        return import_paddle("a language model").tanh(logits / softcap) * softcap

    return CausalLM(
        backbone,
        head,
        classes=int(config.vocab_size),
        width=int(config.hidden_size),
        place=place_of(layer),
        longest=longest if isinstance(longest, int) and longest > 0 else None,
    )


def is_language_model(layer: Any, feeds: Collection[str], fetches: Collection[str]) -> bool:
    """Whether these feeds and fetches of a layer are those of a causal language model."""
    return has_head(layer) and set(feeds) <= _FEEDS and set(fetches) <= _FETCHES


def _describe(model: CausalLM) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Feeds and fetches of a model."""
    feeds = {
        INPUT_IDS: TensorSpec((-1,), "int64", pad=0),
        ATTENTION_MASK: TensorSpec((-1,), "int64", pad=0, optional=True),
        POSITION_IDS: TensorSpec((-1,), "int64", pad=0, optional=True),
    }
    fetches = {
        LOGITS: TensorSpec((-1, model.classes), "float32", pad=0.0),
        HIDDEN_STATES: TensorSpec((-1, model.width), "float32", pad=0.0),
    }
    return feeds, fetches


class Logits:
    """The logits of some rows, (rows, tokens, classes), that are computed when they are wanted, and
    a few tokens at a time.

    ``hidden``: (rows, tokens, width). ``chunk``: bytes that are computed at a time; 0: as is best.
    ``top_k``: the largest that may be asked for, and as many samples.
    """

    def __init__(self, model: CausalLM, hidden: Any, chunk: int = 0, top_k: int = TOP_K) -> None:
        self._model = model
        self._hidden = hidden
        self._chunk = chunk
        self._top_k = top_k

    @property
    def shape(self) -> tuple[int, int, int]:
        """As an array's."""
        rows, tokens, _ = self._hidden.shape
        return rows, tokens, self._model.classes

    def __getitem__(self, place: Any) -> Logits:
        """Some of the rows, or of the rows and tokens."""
        return Logits(self._model, self._hidden[place], self._chunk, self._top_k)

    def numpy(self) -> np.ndarray:
        """All of them, as float32. Raises BadRequest if these are too many."""
        rows, tokens, classes = self.shape
        if 4 * rows * tokens * classes > MOST_WHOLE:
            raise BadRequest(
                f"whole logits of {rows * tokens} tokens and {classes} classes are "
                f"{4 * rows * tokens * classes / 1e9:.2g} GB; ask for sparse labels instead "
                "(top_k=64, or the fetch 'logits?top_k=64')"
            )
        pieces = [to_array(piece) for piece in self._pieces()]
        return np.concatenate(pieces).reshape(self.shape)

    def labels(
        self, form: LabelForm, seeds: Optional[np.ndarray], targets: Optional[np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Sparse labels: see ``sparse_labels``. Raises BadRequest if more is asked for than is
        given.
        """
        if max(form.top_k, form.samples) > self._top_k:
            raise BadRequest(
                f"'{form}': this teacher gives at most {self._top_k} classes and samples of a "
                "token (edl teacher --top-k)"
            )
        rows, tokens, _ = self.shape
        each = None if seeds is None else token_seeds(seeds, tokens).reshape(-1)
        targets = None if targets is None else targets.reshape(-1)
        pieces: list[dict[str, Any]] = []
        start = 0
        for logits in self._pieces():
            some = slice(start, start + logits.shape[0])
            start = some.stop
            pieces.append(_labels(logits, form, _part(each, some), _part(targets, some)))
        joined = {part: _joined([piece[part] for piece in pieces]) for part in form.parts}
        lead = (rows, tokens)
        return {part: array.reshape(*lead, *array.shape[1:]) for part, array in joined.items()}

    def _pieces(self) -> Iterator[Any]:
        """Logits of all tokens, row by row, some at a time: (some, classes)."""
        paddle = import_paddle("a language model")
        flat = self._hidden.reshape([-1, self._hidden.shape[-1]])
        chunk = self._chunk or (CHUNK if _is_on_cpu(flat) else CHUNK_ON_DEVICE)
        step = max(1, chunk // (4 * self._model.classes))
        for start in range(0, flat.shape[0], step):
            with paddle.no_grad():
                logits = self._model.head(flat[start : start + step])
            yield logits


def _labels(
    logits: Any, form: LabelForm, seeds: Optional[np.ndarray], targets: Optional[np.ndarray]
) -> dict[str, Any]:
    """As arrays, or as tensors where the logits are."""
    if _is_on_cpu(logits):  # numpy is faster there, and takes them without a copy
        return sparse_labels(np.from_dlpack(logits.astype("float32")), form, seeds, targets)
    paddle = import_paddle("a language model")
    given = [
        None if array is None else paddle.to_tensor(array, place=logits.place)
        for array in (seeds, targets)
    ]
    with paddle.no_grad():
        return sparse_labels(logits, form, *given)


def _joined(pieces: list[Any]) -> np.ndarray:
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces)
    return import_paddle("a language model").concat(pieces).numpy()


def _is_on_cpu(tensor: Any) -> bool:
    return tensor.place.is_cpu_place()


class LanguagePredictor:
    """A causal language model behind the Predictor interface (see ``predictor``). For ``top_k`` and
    ``chunk`` see Logits.
    """

    #: Outputs of ``run_on_device`` are to be taken as they are: they know how to become arrays.
    lazy = True

    def __init__(
        self,
        model: CausalLM,
        *,
        fingerprint: str = "",
        extra: Optional[Mapping[str, Any]] = None,
        top_k: int = TOP_K,
        chunk: int = 0,
    ) -> None:
        self._paddle = import_paddle("hosting a language model")
        self._model = model
        self._top_k = top_k
        self._chunk = chunk
        feeds, fetches = _describe(model)
        said = {"classes": model.classes, "max_top_k": top_k, **(extra or {})}
        if model.longest is not None:
            said["max_tokens"] = model.longest
        self.description = Description(feeds, fetches, extra=said, fingerprint=fingerprint)

    def run(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> dict[str, np.ndarray]:
        """See Predictor."""
        outputs = self.run_on_device(feeds, fetches)
        return {name: to_array(output) for name, output in outputs.items()}

    def run_on_device(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> dict[str, Any]:
        """The same, of which nothing is copied yet, and logits are not computed yet (see Logits).
        Raises BadRequest.
        """
        self._check(feeds)
        hidden = self._hidden(feeds)
        outputs: dict[str, Any] = {}
        for name in fetches:
            if name == LOGITS:
                outputs[name] = Logits(self._model, hidden, self._chunk, self._top_k)
            else:
                outputs[name] = hidden.astype("float32")
        return outputs

    def test(self, forward: Optional[Callable[[Any], Any]] = None) -> None:
        """Compute fixed tokens, and say their labels in the description (see ``wire.selftest``).

        ``forward``: whole logits of ids, computed as the layer itself does. Raises ModelError if
        the halves do not give the same, or labels that are no numbers.
        """
        form = LabelForm(min(selftest.CLASSES, self._model.classes, self._top_k))
        ids = selftest.fixed_tokens(self._model.classes)[:, : self._model.longest]
        hidden = self._hidden({INPUT_IDS: ids})
        parts = Logits(self._model, hidden, self._chunk).labels(form, None, None)
        logs = parts[VALUES].astype(np.float32) - parts[LOGSUMEXP][..., None]
        if not np.isfinite(logs).all():
            raise ModelError(
                "its labels of the fixed tokens are no finite numbers: the weights are broken, or "
                "overflow in this dtype (bfloat16 and float32 reach further than float16)"
            )
        if forward is not None:
            with self._paddle.no_grad():
                whole = to_array(forward(self._tensor(ids)))
            _check_halves(whole, parts[VALUES], parts[INDICES])
        last = slice(-selftest.POSITIONS, None)
        test = selftest.SelfTest(
            tuple(map(tuple, parts[INDICES][0, last].tolist())),
            tuple(map(tuple, logs[0, last].tolist())),
        )
        extra = {**self.description.extra, selftest.DESCRIBED: test.to_json()}
        self.description = replace(self.description, extra=extra)

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Raises BadRequest for what the model cannot compute."""
        ids, longest = feeds[INPUT_IDS], self._model.longest
        tokens = ids.shape[1]
        if not tokens:
            raise BadRequest(f"{INPUT_IDS!r} has rows of no tokens")
        if longest is not None and tokens > longest:
            raise BadRequest(
                f"{INPUT_IDS!r} has rows of {tokens} tokens; this model takes at most {longest}"
            )
        _check_range(INPUT_IDS, ids, self._model.classes, "ids of the model's vocabulary")
        if POSITION_IDS in feeds and longest is not None:
            _check_range(POSITION_IDS, feeds[POSITION_IDS], longest, "the model's positions")
        if ATTENTION_MASK in feeds:
            _check_range(ATTENTION_MASK, feeds[ATTENTION_MASK], 2, "values of a mask")

    def _hidden(self, feeds: Mapping[str, np.ndarray]) -> Any:
        mask = feeds.get(ATTENTION_MASK)
        if mask is not None and _masks_ends_only(mask):
            mask = None
        given = (feeds[INPUT_IDS], mask, feeds.get(POSITION_IDS))
        tensors = [None if array is None else self._tensor(array) for array in given]
        with self._paddle.no_grad():
            return self._model.backbone(*tensors)

    def _tensor(self, array: np.ndarray) -> Any:
        return self._paddle.to_tensor(np.ascontiguousarray(array), place=self._model.place)


def to_array(output: Any) -> np.ndarray:
    """A tensor's values as float32, or logits."""
    return output.numpy() if isinstance(output, Logits) else output.astype("float32").numpy()


def _check_halves(whole: np.ndarray, values: np.ndarray, indices: np.ndarray) -> None:
    """Raises ModelError if the largest logits are not those of the layer itself."""
    its = np.take_along_axis(whole, indices, -1)
    scale = max(1.0, float(np.abs(its).max()))
    if not np.abs(its - values).max() <= _ROUNDING * scale:  # NaN is not
        raise ModelError(
            "the model's logits are not what its lm_head makes of its hidden states; host it with "
            "--python, as a predictor of your own"
        )


def _part(array: Optional[np.ndarray], some: slice) -> Optional[np.ndarray]:
    return None if array is None else array[some]


def _check_range(name: str, array: np.ndarray, limit: int, what: str) -> None:
    least, most = int(array.min()), int(array.max())
    if least < 0 or most >= limit:
        wrong = least if least < 0 else most
        raise BadRequest(f"{name!r} holds {wrong}; {what} are from 0 to {limit - 1}")


def _masks_ends_only(mask: np.ndarray) -> bool:
    """Whether all that is left out is behind the last token: a causal model need not be told."""
    return bool(mask[:, 0].all() and (mask[:, 1:] <= mask[:, :-1]).all())
