"""A causal language model in two halves: its head is applied to a few tokens at a time."""

import concurrent.futures
import types

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import BadRequest, ModelError, RequestRefused
from edl.serving import ServerOptions, TeacherClient, serve
from edl.serving.model import language
from edl.serving.model.sparse import sparse_labels
from edl.serving.server.hosting import ServedTeacher
from edl.serving.wire import selftest
from edl.serving.wire.labels import LabelForm
from edl.serving.worker.handles import WorkerThread

paddle = pytest.importorskip("paddle")

CLASSES, WIDTH, LONGEST = 50, 8, 16


class Backbone(paddle.nn.Layer):
    """Each token's state is the mean of those up to it that are not masked, and of its position."""

    def __init__(self):
        super().__init__()
        self.tokens = paddle.nn.Embedding(CLASSES, WIDTH)
        self.positions = paddle.nn.Embedding(LONGEST, WIDTH)

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=True):
        assert not use_cache
        shape = input_ids.shape
        mask = paddle.ones(shape) if attention_mask is None else attention_mask.astype("float32")
        if position_ids is None:
            position_ids = paddle.arange(shape[1]).expand(shape)
        states = self.tokens(input_ids) + self.positions(position_ids)
        count = paddle.clip(mask.cumsum(1), min=1).unsqueeze(-1)
        return (states * mask.unsqueeze(-1)).cumsum(1) / count, None


class Net(paddle.nn.Layer):
    base_model_prefix = "body"

    def __init__(self, softcap=None, scale=1.0):
        super().__init__()
        self.config = types.SimpleNamespace(
            vocab_size=CLASSES,
            hidden_size=WIDTH,
            max_position_embeddings=LONGEST,
            final_logit_softcapping=softcap,
        )
        self.body = Backbone()
        self.lm_head = paddle.nn.Linear(WIDTH, CLASSES)
        self.lm_head.weight.set_value(20 * self.lm_head.weight)  # it is sure of what it says
        self.scale = scale

    def forward(self, input_ids):
        logits = self.lm_head(self.body(input_ids, use_cache=False)[0])
        softcap = self.config.final_logit_softcapping
        if softcap is not None:
            logits = paddle.tanh(logits / softcap) * softcap
        return self.scale * logits


def net(**options):
    paddle.seed(3)
    layer = Net(**options)
    layer.eval()
    return layer


def predictor(**options):
    return language.LanguagePredictor(language.halves(net()), **options)


def ids(rows, tokens, seed=0):
    return np.random.default_rng(seed).integers(0, CLASSES, (rows, tokens))


FORM = LabelForm(4, 2.0, samples=3, target=True)


@pytest.mark.parametrize("chunk", [1, 4 * CLASSES * 7, 1 << 20])
def test_labels_that_are_made_piece_by_piece_are_those_of_the_whole_logits(chunk):
    tokens, seeds = ids(3, 10), np.array([5, -(2**63), 2**63 - 1])
    targets = np.roll(tokens, -1, axis=1)
    teacher = predictor(chunk=chunk)
    logits = teacher.run_on_device({"input_ids": tokens}, ["logits"])["logits"]
    for rows, length in ((slice(0, 3), 10), (slice(1, 3), 7)):
        found = logits[rows, :length].labels(FORM, seeds[rows], targets[rows, :length])
        whole = predictor().run({"input_ids": tokens}, ["logits"])["logits"][rows, :length]
        assert whole.shape == logits[rows, :length].shape
        expected = sparse_labels(whole, FORM, seeds[rows], targets[rows, :length])
        assert found.keys() == expected.keys()
        for part, array in expected.items():
            assert found[part].shape == array.shape
            if array.dtype.kind == "f":
                np.testing.assert_allclose(found[part], array, rtol=1e-3, atol=1e-3)
            else:
                assert (found[part] == array).all()


def test_labels_that_are_made_on_a_device_are_those_that_are_made_of_arrays(monkeypatch):
    feeds, seeds = {"input_ids": ids(3, 10)}, np.arange(3)
    logits = predictor(chunk=4 * CLASSES * 7).run_on_device(feeds, ["logits"])["logits"]
    arrays = logits.labels(FORM, seeds, feeds["input_ids"])
    monkeypatch.setattr(language, "_is_on_cpu", lambda tensor: False)
    tensors = logits.labels(FORM, seeds, feeds["input_ids"])
    for part, array in arrays.items():
        assert tensors[part].shape == array.shape
        assert tensors[part].dtype == array.dtype
        np.testing.assert_allclose(tensors[part], array, rtol=1e-3, atol=1e-5)


def test_logits_and_hidden_states_are_the_layers_own():
    layer, tokens = net(), ids(2, 6)
    outputs = predictor(chunk=4 * CLASSES * 5).run(
        {"input_ids": tokens}, ["logits", "hidden_states"]
    )
    whole = layer(paddle.to_tensor(tokens)).numpy()
    np.testing.assert_allclose(outputs["logits"], whole, rtol=1e-5, atol=1e-6)
    assert outputs["hidden_states"].shape == (2, 6, WIDTH)


def test_a_mask_that_leaves_out_ends_changes_nothing_and_one_of_beginnings_does():
    tokens, teacher = ids(2, 6), predictor()
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    plain = teacher.run({"input_ids": tokens}, ["logits"])["logits"]
    masked = teacher.run({"input_ids": tokens, "attention_mask": mask}, ["logits"])["logits"]
    assert (plain[0, :4] == masked[0, :4]).all()
    assert (plain[1] == masked[1]).all()
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    places = np.array([[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
    feeds = {"input_ids": tokens, "attention_mask": mask, "position_ids": places}
    left = teacher.run(feeds, ["logits"])["logits"]
    alone = teacher.run({"input_ids": tokens[:1, 2:]}, ["logits"])["logits"]
    np.testing.assert_allclose(left[0, 2:], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"input_ids": [[3, CLASSES]]}, "'input_ids' holds 50; .* from 0 to 49"),
        ({"input_ids": [[-1, 3]]}, "'input_ids' holds -1; .* from 0 to 49"),
        ({"input_ids": [[0] * 17]}, "17 tokens; this model takes at most 16"),
        ({"input_ids": [[]]}, "rows of no tokens"),
        ({"input_ids": [[1]], "attention_mask": [[2]]}, "'attention_mask' holds 2"),
        ({"input_ids": [[1]], "position_ids": [[16]]}, "'position_ids' holds 16"),
    ],
)
def test_what_the_model_cannot_compute_is_refused_by_name(feeds, words):
    feeds = {name: np.array(value, np.int64).reshape(1, -1) for name, value in feeds.items()}
    with pytest.raises(BadRequest, match=words):
        predictor().run(feeds, ["hidden_states"])


@pytest.mark.parametrize("form", [LabelForm(9), LabelForm(2, samples=9)])
def test_more_classes_and_samples_than_are_given_are_refused(form):
    teacher = predictor(top_k=8)
    logits = teacher.run_on_device({"input_ids": ids(1, 3)}, ["logits"])["logits"]
    with pytest.raises(BadRequest, match=f"'{form}': this teacher gives at most 8 classes"):
        logits.labels(form, np.zeros(1, int), None)


def test_whole_logits_of_many_tokens_are_refused_and_what_to_ask_for_is_said(monkeypatch):
    monkeypatch.setattr(language, "MOST_WHOLE", 4 * CLASSES * 10)
    teacher = predictor()
    assert teacher.run({"input_ids": ids(1, 10)}, ["logits"])["logits"].shape[1] == 10
    with pytest.raises(BadRequest, match="ask for sparse labels instead"):
        teacher.run({"input_ids": ids(1, 11)}, ["logits"])
    outputs = teacher.run_on_device({"input_ids": ids(1, 11)}, ["hidden_states", "logits"])
    assert outputs["logits"].labels(LabelForm(2), None, None)["values"].shape == (1, 11, 2)


class Counted(language.LanguagePredictor):
    """It notes the shapes of its batches."""

    def __init__(self, **options):
        super().__init__(language.halves(net()), **options)
        self.batches = []

    def run_on_device(self, feeds, fetches):
        self.batches.append(feeds["input_ids"].shape)
        return super().run_on_device(feeds, fetches)


def ask_at_once(teacher, requests):
    """Answers to requests (feeds and fetches) that are computed in one batch."""
    rows = sum(len(feeds["input_ids"]) for feeds, _ in requests)
    options = ServerOptions(max_wait=3, max_batch_rows=rows)
    with ServedTeacher(lambda inputs: [WorkerThread(teacher, inputs)], options) as served:
        futures = [concurrent.futures.Future() for _ in requests]
        with TeacherClient(served.endpoint) as client:
            for (feeds, fetches), future in zip(requests, futures):
                client.submit(feeds, fetches, future.set_result)
            return [future.result(60) for future in futures]


@pytest.mark.parametrize("masked", [True, False])
def test_requests_of_different_length_are_computed_together_and_answered_as_if_alone(masked):
    tokens = [ids(1, 9, seed=1), ids(2, 12, seed=2), ids(1, 12, seed=3), ids(1, 10, seed=4)]
    requests = []
    for number, each in enumerate(tokens):
        feeds = {
            "input_ids": each,
            "labels.seed": np.arange(len(each)) + number,
            "labels.target": np.roll(each, -1, axis=1),
        }
        if masked:
            feeds["attention_mask"] = np.ones_like(each)
        requests.append((feeds, [f"logits?{FORM}", "hidden_states"]))
    teacher = Counted(chunk=4 * CLASSES * 5)
    together = ask_at_once(teacher, requests)
    assert teacher.batches == [(5, 12)]
    for request, answer in zip(requests, together):
        (alone,) = ask_at_once(Counted(), [request])
        assert answer.keys() == alone.keys()
        for name, array in alone.items():
            assert answer[name].shape == array.shape
            if array.dtype.kind == "f":
                np.testing.assert_allclose(answer[name], array, rtol=1e-3, atol=1e-3)
            else:
                assert (answer[name] == array).all()


def test_one_request_of_a_batch_that_asks_too_much_is_refused_alone():
    few, many = (({"input_ids": ids(1, 5)}, [f"logits?top_k={k}"]) for k in (2, 9))
    answers = ask_at_once(Counted(top_k=8), [few, many])
    assert answers[0]["logits.values"].shape == (1, 5, 2)
    assert isinstance(answers[1], RequestRefused)


def test_a_reader_gets_sparse_labels_of_each_token():
    layer = net()
    batches = [(ids(2, 6, seed), np.roll(ids(2, 6, seed), -1, 1)) for seed in range(5)]
    with serve(layer, {"input_ids": ((-1,), "int64")}, ["logits"]) as teacher:
        reader = DistillReader(
            ["input_ids", "labels"],
            ["logits"],
            source=batches,
            teachers=[teacher.endpoint],
            top_k=4,
            samples=2,
            targets="labels",
        )
        for tokens, labels, values, indices, logsumexp, samples, target in reader:
            whole = layer(paddle.to_tensor(tokens)).numpy()
            order = np.argsort(-whole, axis=-1)[..., :4]
            assert (indices == order).mean() > 0.99
            np.testing.assert_allclose(
                values, np.take_along_axis(whole, indices, -1), rtol=1e-3, atol=1e-3
            )
            np.testing.assert_allclose(logsumexp, np.log(np.exp(whole).sum(-1)), rtol=1e-4)
            np.testing.assert_allclose(
                target, np.take_along_axis(whole, labels[..., None], -1)[..., 0], rtol=1e-4
            )
            assert samples.shape == (2, 6, 2)
        reader.close()


# --- the self-test ------------------------------------------------------------------------------


def test_what_it_computes_of_fixed_tokens_is_in_its_description():
    one, two = predictor(), predictor(chunk=1)
    for teacher in (one, two):
        teacher.test(net())
    test = selftest.said(one.description)
    assert len(test.ids) == selftest.POSITIONS
    assert not selftest.difference(test, selftest.said(two.description))
    paddle.seed(4)
    other = Net()
    other.eval()
    third = language.LanguagePredictor(language.halves(other))
    third.test(other)
    assert selftest.difference(test, selftest.said(third.description))


def test_labels_that_are_no_numbers_are_found_at_the_start():
    layer = net()
    layer.lm_head.bias.set_value(paddle.full([CLASSES], float("nan")))
    with pytest.raises(ModelError, match="no finite numbers"):
        language.LanguagePredictor(language.halves(layer)).test()


def test_a_softcap_of_the_logits_is_kept_and_what_is_not_known_is_found_at_the_start():
    layer = net(softcap=0.1)
    teacher = language.LanguagePredictor(language.halves(layer))
    teacher.test(layer)
    assert abs(teacher.run({"input_ids": ids(1, 4)}, ["logits"])["logits"]).max() < 0.1001
    layer = net(scale=2.0)
    with pytest.raises(ModelError, match="not what its lm_head makes of its hidden states"):
        language.LanguagePredictor(language.halves(layer)).test(layer)


# --- served from a program ----------------------------------------------------------------------


def test_a_layer_with_a_head_is_served_as_a_language_model():
    layer = net()
    layer.train()
    with serve(layer, {"input_ids": ((-1,), "int64")}, ["logits"]) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            said = client.describe()
            tokens = ids(2, 5)
            answer = client.infer({"input_ids": tokens}, ["hidden_states"])
            assert answer["hidden_states"].shape == (2, 5, WIDTH)
            with pytest.raises(RequestRefused, match="'input_ids' holds 50"):
                client.infer({"input_ids": np.full((1, 2), CLASSES)}, ["logits"])
    assert selftest.said(said) is not None
    assert said.fetches["logits"].shape == (-1, CLASSES)
    assert layer.training


def test_a_layer_with_other_feeds_is_served_as_any_layer_is():
    with serve(net(), {"ids": ((5,), "int64")}, ["scores"]) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            assert client.infer({"ids": ids(1, 5)})["scores"].shape == (1, 5, CLASSES)
