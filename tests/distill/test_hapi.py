"""``paddle.Model`` is given a reader where it takes data."""

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import ConfigError

paddle = pytest.importorskip("paddle")

ROWS, WIDTH, BATCHES = 4, 5, 6


class Images(paddle.io.Dataset):
    def __len__(self):
        return ROWS * BATCHES

    def __getitem__(self, index):
        return np.full(WIDTH, index, "f4"), index


class Student(paddle.nn.Layer):
    """Its outputs are a guess, and the image as it came."""

    def __init__(self):
        super().__init__()
        self.guess = paddle.nn.Linear(WIDTH, 2)

    def forward(self, img):
        return self.guess(img), img


class Seen(paddle.nn.Layer):
    """A loss that checks that the labels belong to the image, and writes down which came."""

    def __init__(self):
        super().__init__()
        self.labels = []

    def forward(self, guess, img, label, prob):
        assert (img[:, 0].astype("int64") == label.flatten()).all()
        assert (prob[:, 0] == img.sum(axis=1)).all()
        self.labels += label.flatten().tolist()
        return paddle.nn.functional.mse_loss(guess, prob / 100)


class Steps(paddle.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.at_begin, self.batches = [], {"train": 0, "eval": 0}

    def on_train_begin(self, logs=None):
        self.at_begin.append(self.params["steps"])

    def on_eval_begin(self, logs=None):
        self.at_begin.append(logs["steps"])

    def on_train_batch_end(self, step, logs=None):
        self.batches["train"] += 1
        assert logs["batch_size"] == ROWS

    def on_eval_batch_end(self, step, logs=None):
        self.batches["eval"] += 1


def reader_of(teacher, source=None):
    loader = paddle.io.DataLoader(Images(), batch_size=ROWS) if source is None else source
    return DistillReader(["img", "label"], ["prob"], source=loader, teachers=teacher.endpoint)


@pytest.fixture
def student():
    model = paddle.Model(Student())
    seen = Seen()
    optimizer = paddle.optimizer.SGD(0.01, parameters=model.parameters())
    model.prepare(optimizer, seen)
    return model, seen


def test_a_model_fits_a_reader_and_predictions_are_labels(sums_teacher, student):
    model, seen = student
    before = model.network.guess.weight.numpy()
    with reader_of(sums_teacher) as reader:
        model.fit(reader, epochs=2, verbose=0)
        assert reader.epoch == 2
    assert seen.labels == 2 * list(range(ROWS * BATCHES))
    assert (model.network.guess.weight.numpy() != before).any()


def test_callbacks_learn_how_many_steps_there_are(sums_teacher, student, capsys):
    model, _ = student
    steps = Steps()
    with reader_of(sums_teacher) as reader, reader_of(sums_teacher) as held_out:
        model.fit(train_data=reader, eval_data=held_out, verbose=2, log_freq=3, callbacks=[steps])
    assert steps.at_begin == [BATCHES, BATCHES]
    assert steps.batches == {"train": BATCHES, "eval": BATCHES}
    assert f"step {BATCHES}/{BATCHES} - loss" in capsys.readouterr().out


def test_a_model_evaluates_and_predicts_with_a_reader(sums_teacher, student):
    model, seen = student
    with reader_of(sums_teacher) as reader:
        (loss,) = model.evaluate(reader, verbose=0)["loss"]
        outputs = model.predict(reader, verbose=0)
    assert np.isfinite(loss)
    assert seen.labels == list(range(ROWS * BATCHES))
    assert [img[0, 0] for img in outputs[1]] == list(range(0, ROWS * BATCHES, ROWS))


def test_a_fit_that_is_ended_early_leaves_the_reader_where_it_is(sums_teacher, student):
    model, seen = student
    with reader_of(sums_teacher) as reader:
        model.fit(reader, num_iters=2, verbose=0)
        assert reader.state_dict()["delivered"] == 2
        model.fit(reader, verbose=0)  # the next epoch
    assert seen.labels == [*range(2 * ROWS), *range(ROWS * BATCHES)]


def test_dicts_are_taken_in_their_own_order(sums_teacher, student):
    model, seen = student
    source = [{"img": np.full((2, WIDTH), 3, "f4"), "label": np.full(2, 3), "a": np.zeros(2)}]
    with reader_of(sums_teacher, source) as reader:
        model.prepare(loss=lambda guess, img, label, a, prob: seen(guess, img, label, prob))
        model.evaluate(reader, verbose=0)
    assert seen.labels == [3, 3]


def test_other_data_is_left_to_paddle(student):
    model, _ = student
    outputs = model.predict(Images(), batch_size=ROWS, verbose=0)
    assert len(outputs[1]) == BATCHES


def test_a_reader_of_samples_is_refused_with_the_remedy(student):
    reader = DistillReader(["img", "label"], ["prob"], teachers="127.0.0.1:1")
    reader.set_sample_generator(lambda: iter(()))
    with pytest.raises(ConfigError, match="one sample at a time: use set_batch_generator"):
        student[0].fit(reader)


def test_a_reader_without_a_source_says_so(student):
    reader = DistillReader(["img", "label"], ["prob"], teachers="127.0.0.1:1")
    with pytest.raises(ConfigError, match="no source"):
        student[0].fit(reader, verbose=0)
