"""PaddleFormers' real Trainer, with a teacher that is somewhere else."""

import threading
from itertools import chain

import numpy as np
import pytest

from edl.errors import ConfigError, NoTeacherError
from edl.serving import serve

paddle = pytest.importorskip("paddle")
pytest.importorskip("paddleformers")
from paddleformers.trainer import TrainingArguments  # noqa: E402
from paddleformers.transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from edl.distill.losses import sparse_distillation  # noqa: E402
from edl.integrations.paddleformers import (  # noqa: E402
    Distillation,
    DistillTrainer,
)
from edl.serving.model.sparse import sparse_labels  # noqa: E402
from edl.serving.wire.labels import LabelForm  # noqa: E402

pytestmark = pytest.mark.timeout(300)

CLASSES, TOKENS, ROWS, SAMPLES = 50, 7, 2, 20  # ten batches an epoch


def language_model(seed, layers):
    paddle.seed(seed)
    config = Qwen3Config(
        vocab_size=CLASSES, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=32,
        tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return Qwen3ForCausalLM(config)


class Texts(paddle.io.Dataset):
    """Each sample's first token is its number, by which it is known again."""

    def __init__(self):
        random = np.random.RandomState(0)
        self.ids = random.randint(SAMPLES, CLASSES, (SAMPLES, TOKENS + 1))
        self.ids[:, 0] = np.arange(SAMPLES)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        ids = self.ids[index]
        labels = ids[1:].copy()
        labels[TOKENS - index % 3 :] = -100
        return {"input_ids": ids[:-1], "labels": labels}


class StreamedTexts(paddle.io.IterableDataset):
    def __iter__(self):
        texts = Texts()
        return (texts[index] for index in range(SAMPLES))


def collate(samples):
    return {
        name: paddle.to_tensor(np.stack([sample[name] for sample in samples]))
        for name in samples[0]
    }


class Teacher:
    """A language model that is served, and which samples it was asked for."""

    def __init__(self):
        self.model = language_model(seed=7, layers=2)
        self.model.eval()
        self.asked = []
        self._lock = threading.Lock()
        self.served = serve(
            self._compute,
            {"input_ids": ((TOKENS,), "int64")},
            {"logits": ((TOKENS, CLASSES), "float32")},
        )

    def _compute(self, input_ids):
        with self._lock:
            self.asked.extend(input_ids[:, 0].tolist())
        return self.logits(paddle.to_tensor(input_ids))

    def logits(self, input_ids):
        with paddle.no_grad():
            return self.model(input_ids)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.served.close()


@pytest.fixture(scope="module")
def teacher():
    with Teacher() as teacher:
        yield teacher


class Recording:
    """Keeps every loss, and the samples that it is of."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses, self.taken = [], []

    def compute_loss(self, model, inputs, return_outputs=False):
        if model.training:
            self.taken.append(inputs["input_ids"][:, 0].tolist())
        result = super().compute_loss(model, inputs, return_outputs)
        if model.training:
            self.losses.append(float(result))
        return result


class Distilled(Recording, DistillTrainer):
    pass


def arguments(folder, **changed):
    given = {
        **{"output_dir": str(folder), "per_device_train_batch_size": ROWS, "num_train_epochs": 2},
        **{"learning_rate": 0.01, "lr_scheduler_type": "constant", "logging_steps": 1, "seed": 3},
        **{"save_strategy": "no", "device": "cpu", "disable_tqdm": True, "report_to": []},
    }
    return TrainingArguments(**{**given, **changed})


def trainer(folder, teacher, data=None, distillation=None, kind=Distilled, **changed):
    endpoint = teacher.served.endpoint
    return kind(
        model=language_model(seed=1, layers=1),
        args=arguments(folder, **changed),
        train_dataset=Texts() if data is None else data,
        eval_dataset=Texts(),
        data_collator=collate,
        distillation=distillation or Distillation(endpoint, top_k=8, temperature=2.0, weight=0.3),
    )


def test_every_sample_is_asked_for_once_an_epoch_and_trained_on(tmp_path, teacher):
    teacher.asked.clear()
    distilled = trainer(tmp_path, teacher)
    distilled.train()
    samples = list(chain(*distilled.taken))
    assert sorted(samples[:SAMPLES]) == sorted(samples[SAMPLES:]) == list(range(SAMPLES))
    assert samples[:SAMPLES] != samples[SAMPLES:]  # they are shuffled
    assert sorted(teacher.asked) == sorted(samples)


def test_the_loss_is_that_with_the_teacher_in_the_same_process(tmp_path, teacher):
    distilled = trainer(tmp_path, teacher, num_train_epochs=1)
    distilled.train()
    student = language_model(seed=1, layers=1)
    texts = Texts()
    batch = collate([texts[number] for number in distilled.taken[0]])
    hard, logits = student(**batch)[:2]
    labels = sparse_labels(teacher.logits(batch["input_ids"]), LabelForm(8, 2.0))
    soft = sparse_distillation(logits, *labels.values(), temperature=2.0, mask=batch["labels"] >= 0)
    assert distilled.losses[0] == pytest.approx(0.7 * float(hard) + 0.3 * float(soft), rel=1e-3)
    assert float(hard) != pytest.approx(float(soft), rel=0.1)  # so that the weights are seen


def resume(folder, teacher, checkpoint, data=None, **options):
    """A whole training, and one that goes on from one of its checkpoints: its batches and losses
    beside the last of the whole one.
    """
    options = {**options, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 99}
    whole = trainer(folder / "whole", teacher, data, **options)
    whole.train()
    teacher.asked.clear()
    resumed = trainer(folder / "resumed", teacher, data, **options)
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{checkpoint}"))
    before = len(whole.taken) - len(resumed.taken)
    assert resumed.taken == whole.taken[before:]
    return before, resumed, whole.losses[before:]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("batches", [2, 8, 10, 14])
def test_a_resumed_training_goes_on_as_if_nothing_had_happened(
    tmp_path, teacher, accumulated, batches
):
    steps = batches // accumulated
    options = {"gradient_accumulation_steps": accumulated}
    before, resumed, losses = resume(tmp_path, teacher, steps, **options)
    assert before == batches
    np.testing.assert_allclose(resumed.losses, losses, rtol=1e-5)
    assert sorted(teacher.asked) == sorted(chain(*resumed.taken))  # nothing that was skipped


@pytest.mark.parametrize("batches", [3, 10])
def test_so_does_one_whose_dataloader_has_workers(tmp_path, teacher, batches):
    """For these Paddle draws a number when an epoch begins, from the generator that shuffles."""
    _, resumed, losses = resume(tmp_path, teacher, batches, dataloader_num_workers=2)
    np.testing.assert_allclose(resumed.losses, losses, rtol=1e-5)


@pytest.mark.parametrize(("steps", "batches"), [(2, 6), (3, 10), (4, 13)])
def test_batches_that_fill_no_step_are_dropped_as_the_trainer_does(
    tmp_path, teacher, steps, batches
):
    """Of ten batches three by three make a step; the tenth is in none."""
    assert resume(tmp_path, teacher, steps, gradient_accumulation_steps=3)[0] == batches


def test_data_without_a_length_is_resumed_too(tmp_path, teacher):
    before, resumed, losses = resume(tmp_path, teacher, 12, StreamedTexts(), max_steps=14)
    assert before == 12
    np.testing.assert_allclose(resumed.losses, losses, rtol=1e-5)


def test_told_not_to_skip_data_it_reads_the_epoch_from_its_start(tmp_path, teacher):
    options = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 7}
    trainer(tmp_path, teacher, **options).train()
    anew = trainer(tmp_path, teacher, ignore_data_skip=True, **options)
    teacher.asked.clear()
    anew.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert len(anew.taken) == 3  # there are ten steps, and three of them are left
    assert len(set(teacher.asked)) > 3 * ROWS  # it read on


def test_evaluation_needs_no_teacher(tmp_path):
    with Teacher() as teacher:
        distilled = trainer(
            tmp_path, teacher, num_train_epochs=1, evaluation_strategy="steps", eval_steps=5
        )
        distilled.train()
        assert len(teacher.asked) == SAMPLES
    assert distilled.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"feeds": "input_ids"}, "feeds must be a list of names, not 'input_ids'"),
        ({"top_k": None}, "top_k must be"),
        ({"temperature": 0}, "temperature must be from"),
        ({"divergence": "kl"}, 'divergence must be "forward_kl"'),
        ({"divergence": "jsd", "beta": 1}, "beta must be above 0 and below 1"),
        ({"divergence": "reverse_kl", "samples": 2}, 'samples cannot estimate "reverse_kl"'),
        ({"weight": 2}, "weight, the share of the divergence, is at most 1"),
        ({"options": {"top_k": 3}}, "options must not hold 'top_k'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(said, words):
    with pytest.raises(ConfigError, match=words):
        Distillation("10.0.0.1:9292", **said)


class Criterion(paddle.nn.Layer):
    """The loss of what a model returns, which is a dict here."""

    def forward(self, outputs, labels):
        return paddle.nn.functional.cross_entropy(outputs["logits"], labels, ignore_index=-100)


class Named(paddle.nn.Layer):
    """A model whose outputs have names, and to which labels mean nothing."""

    def __init__(self):
        super().__init__()
        self.model = language_model(seed=1, layers=1)

    def forward(self, input_ids):
        return {"logits": self.model(input_ids)[0]}


def test_a_criterion_and_further_columns_change_nothing(tmp_path, teacher):
    """Such as the logits of the labels, which a callback may want to see."""
    endpoint = teacher.served.endpoint
    common = {"train_dataset": Texts(), "data_collator": collate}
    plain = Distilled(
        model=language_model(seed=1, layers=1),
        args=arguments(tmp_path, max_steps=1),
        distillation=Distillation(endpoint, top_k=8, samples=4, weight=1),
        **common,
    )
    plain.train()
    feeds, options = ("input_ids", "labels"), {"targets": "labels"}
    other = Distilled(
        model=Named(),
        criterion=Criterion(),
        args=arguments(tmp_path, max_steps=1),
        distillation=Distillation(
            endpoint, top_k=8, samples=4, weight=1, feeds=feeds, options=options
        ),
        **common,
    )
    other.train()
    assert plain.losses[0] == pytest.approx(other.losses[0], rel=1e-5)


def test_its_errors_end_the_training(tmp_path):
    with Teacher() as teacher:
        endpoint = teacher.served.endpoint
    options = {"no_teacher_timeout": 0.5}
    gone = trainer(tmp_path, teacher, distillation=Distillation(endpoint, options=options))
    with pytest.raises(NoTeacherError):
        gone.train()
