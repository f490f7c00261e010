"""PaddleFormers' Trainer, with teachers that are a service.

:class:`DistillMixin` before any Trainer class makes its training data come through a DistillReader
and adds the divergence from the teacher's sparse labels to its loss; :class:`DistillTrainer` is
that of the plain ``Trainer``. Evaluation, prediction and checkpoints stay the Trainer's own, and
need no teacher.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import paddle
from paddleformers.trainer import Trainer, TrainerCallback
from paddleformers.trainer.trainer import TRAINER_STATE_NAME
from paddleformers.trainer.trainer_utils import PREFIX_CHECKPOINT_DIR

from edl._checks import check_count, check_positive
from edl.distill.losses import sparse_distillation
from edl.distill.reader import DistillReader
from edl.distill.settings import TeacherSpec, check_names, label_form
from edl.distill.sparse_losses import check_divergence
from edl.errors import ConfigError

_AnyTrainer: Any = Trainer if TYPE_CHECKING else object  # what the mixin is put before

logger = logging.getLogger(__name__)

#: Arguments of the DistillReader that are not among the options.
_OWN = ("ins", "predicts", "source", "teachers", "top_k", "samples", "temperature", "places")


@dataclass(frozen=True)
class Distillation:
    """How a Trainer distils.

    ``teachers``: see :class:`~edl.distill.DistillReader`. ``predict``: the teacher's output that
    is like the student's logits. ``top_k``, ``samples``: how many of its classes come as they are,
    and how many more are drawn from the rest. ``temperature`` divides both sides' logits.
    ``divergence``, ``beta``: see :func:`~edl.distill.losses.sparse_distillation`.
    ``weight``: the share of the divergence in the loss; the Trainer's own loss has the rest.
    ``feeds``: the columns of the Trainer's batches that go to the teacher, if it has them.
    ``ignore_index``: the label of tokens that are left out, of both.
    ``options``: further arguments of the DistillReader, such as ``token`` or ``limits``.
    Raises ConfigError for what cannot be.
    """

    teachers: TeacherSpec
    predict: str = "logits"
    top_k: int = 64
    samples: int = 0
    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    weight: float = 0.5
    feeds: tuple[str, ...] = ("input_ids",)
    ignore_index: int = -100
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)
        if self.weight > 1:
            raise ConfigError(f"weight, the share of the divergence, is at most 1: {self.weight!r}")
        check_names("feeds", self.feeds)
        check_count("top_k", self.top_k)
        label_form(self.top_k, self.temperature, self.samples, None)
        check_divergence(self.divergence, self.beta, samples=self.samples > 0)
        for name in self.options:
            if name in _OWN:
                raise ConfigError(f"options must not hold {name!r}: it is said by Distillation")


class DistillMixin(_AnyTrainer):
    """Put it before a Trainer class::

        class Distilled(DistillMixin, SFTTrainer): ...

        trainer = Distilled(model=student, args=args, train_dataset=data,
                            distillation=Distillation("etcd://10.0.0.1:2379/qwen3", top_k=64))
        trainer.train()

    Batches of the training DataLoader must be dicts. A checkpoint has the reader's place beside the
    Trainer's own files, by which training goes on with the very next batch; nothing that is skipped
    is sent to a teacher. Raises ConfigError for what cannot be distilled, and in ``train`` what a
    DistillReader raises.
    """

    def __init__(self, *args: Any, distillation: Distillation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.distillation = distillation
        self.reader: Optional[DistillReader] = None  #: the one of the training that runs, or ran
        self.checkpoint: Optional[Path] = None  #: the one from which training goes on
        self.resumes_between_epochs = False
        self.add_callback(_Checkpoints(self))

    def train(self, resume_from_checkpoint: Optional[str] = None, **kwargs: Any) -> Any:
        """As the Trainer's. Connections to teachers are closed at its end, however it ends."""
        self.checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        finally:
            if self.reader is not None:
                self.reader.close()

    def get_train_dataloader(self, *args: Any, **kwargs: Any) -> TrainingData:
        """The Trainer's own, with the teacher's labels in every batch."""
        wanted = self.distillation
        device = paddle.device.get_device()
        self.reader = DistillReader(
            list(wanted.feeds),
            [wanted.predict],
            super().get_train_dataloader(*args, **kwargs),
            wanted.teachers,
            top_k=wanted.top_k,
            samples=wanted.samples,
            temperature=wanted.temperature,
            places=None if device == "cpu" else device,
            **wanted.options,
        )
        skipped = self._seek(self.reader)
        return TrainingData(self.reader, skipped)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """The Trainer's loss where the batch has no soft labels (in evaluation), else the weighted
        mean of it and of the divergence over the tokens that have a label.
        """
        wanted = self.distillation
        prefix = f"{wanted.predict}."
        names = [name for name in inputs if name.startswith(prefix)]
        soft = {name[len(prefix) :]: inputs.pop(name) for name in names}
        soft.pop("target", None)  # which options may ask for, and the divergence does not take
        if not soft:
            return super().compute_loss(model, inputs, return_outputs)
        targets = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        divergence = sparse_distillation(
            _logits(outputs),
            **soft,
            temperature=wanted.temperature,
            divergence=wanted.divergence,
            beta=wanted.beta,
            mask=None if targets is None else targets != wanted.ignore_index,
        )
        loss = (1 - wanted.weight) * loss + wanted.weight * divergence
        return (loss, outputs) if return_outputs else loss

    def _seek(self, reader: DistillReader) -> int:
        """Let ``reader`` go on where the checkpoint was written. How many batches the Trainer will
        take and drop before it trains.
        """
        checkpoint = self.checkpoint
        steps = 0 if checkpoint is None else _steps_in(checkpoint)
        if checkpoint is None or not steps or self.args.ignore_data_skip:
            return 0
        accumulated = self.args.gradient_accumulation_steps
        batches = _length(reader)
        per_epoch = self.args.max_steps if batches is None else max(batches // accumulated, 1)
        epoch, step = divmod(steps, per_epoch)
        dropped = step * accumulated
        reader.load_state_dict(_place_in(checkpoint, epoch, dropped, batches))
        self.resumes_between_epochs = not dropped
        return dropped


class DistillTrainer(DistillMixin, Trainer):
    """PaddleFormers' plain ``Trainer``, distilling; see :class:`DistillMixin`."""


@dataclass
class TrainingData:
    """A reader as the Trainer iterates over it, epoch by epoch.

    A Trainer that goes on takes the batches it has trained on already and drops them, one by one.
    ``dropped`` empty batches are what it gets for these; the reader begins behind them.
    """

    reader: DistillReader
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        dropped, self.dropped = self.dropped, 0
        # Begun before the Trainer restores random numbers, which it does behind the last of those:
        # in the training that was left, what begins an epoch had been drawn before the checkpoint.
        batches = iter(self.reader)
        yield from itertools.repeat({}, dropped)
        yield from batches


class _Checkpoints(TrainerCallback):
    """Keeps the reader's place in every checkpoint, one file per rank."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The Trainer has written a checkpoint."""
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        file = _place_file(checkpoint)
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps(self._trainer.reader.state_dict()))
        os.replace(beside, file)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The Trainer restores random numbers where it drops batches, and only there."""
        if self._trainer.resumes_between_epochs:
            self._trainer.resumes_between_epochs = False
            self._trainer._load_rng_state(str(self._trainer.checkpoint))


def _logits(outputs: Any) -> Any:
    """The logits of what a Trainer's ``compute_loss`` returns beside the loss."""
    if isinstance(outputs, Mapping):
        return outputs["logits"]
    logits = outputs[1]  # or what the model has returned, where a criterion computes the loss
    if isinstance(logits, Mapping):
        return logits["logits"]
    return logits[0] if isinstance(logits, (tuple, list)) else logits


def _place_file(checkpoint: Path) -> Path:
    return checkpoint / f"distill_reader_{paddle.distributed.get_rank()}.json"


def _steps_in(checkpoint: Path) -> int:
    """The steps that were trained when ``checkpoint`` was written; 0 if it does not say."""
    file = checkpoint / TRAINER_STATE_NAME
    return int(json.loads(file.read_text())["global_step"]) if file.is_file() else 0


def _place_in(
    checkpoint: Path, epoch: int, delivered: int, batches: Optional[int]
) -> dict[str, Any]:
    """The reader's state in ``checkpoint``, by which the Trainer has trained on ``delivered``
    batches of ``epoch``. ``batches``: how many an epoch has, if that is known.
    """
    file = _place_file(checkpoint)
    if file.is_file():
        place = json.loads(file.read_text())
        if batches is None or (place["epoch"], place["delivered"]) == (epoch, delivered):
            return place
    elif delivered:
        logger.warning("there is no %s: a shuffled epoch goes on in another order", file)
    return {"version": 1, "epoch": epoch, "delivered": delivered}


def _length(reader: DistillReader) -> Optional[int]:
    try:
        return len(reader)
    except (TypeError, RuntimeError):  # the second is what Paddle's IterableDataset raises
        return None
