"""Programs that make sparse labels themselves."""

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.distill.labels import row_seeds
from edl.errors import ConfigError, ReaderError
from edl.serving import export_model
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire import labels
from edl.serving.wire.labels import LabelForm
from tests.support.processes import Teacher

paddle = pytest.importorskip("paddle")
from edl.serving.model.predictor import PredictorOptions, load_predictor  # noqa: E402

FEEDS = {"ids": ((-1,), "int64")}


class Tokens(paddle.nn.Layer):
    """Logits (rows, tokens, classes) of ids (rows, tokens), and what is below them."""

    def __init__(self, classes=3000):
        super().__init__()
        paddle.seed(0)
        self.embedding = paddle.nn.Embedding(100, 16)
        self.head = paddle.nn.Linear(16, classes)

    def forward(self, ids):
        hidden = self.embedding(ids)
        return self.head(hidden) * 3, hidden


class Logits(Tokens):
    def forward(self, ids):
        return super().forward(ids)[0]


def rows_of(form, rows=5, tokens=7, classes=3000):
    """Feeds, and what labels they give."""
    generator = np.random.default_rng(0)
    feeds = {"ids": generator.integers(0, 100, (rows, tokens))}
    if form.samples:
        feeds["labels.seed"] = generator.integers(-(2**63), 2**63 - 1, rows)
    if form.target:
        feeds["labels.target"] = generator.integers(-1, classes, (rows, tokens))
    return feeds


def assert_same(parts, expected):
    assert list(parts) == list(expected)
    for part, array in expected.items():
        assert (parts[part].shape, parts[part].dtype) == (array.shape, array.dtype)
        if part == "samples":
            assert (parts[part] != array).sum() <= 1
        else:
            np.testing.assert_allclose(parts[part], array, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "classes"),
    [
        (LabelForm(8), 3000),
        (LabelForm(8, 2.0, 5), 200),
        (LabelForm(8, 2.0, 5, True), 3001),
        (LabelForm(4, samples=3), 70_001),
    ],
)
def test_a_program_gives_what_numpy_gives(form, classes, tmp_path):
    net = Logits(classes)
    feeds = {**FEEDS, "labels.target": ((-1,), "int64")} if form.target else FEEDS
    options = {"top_k": form.top_k, "temperature": form.temperature, "samples": form.samples}
    export_model(net, tmp_path, feeds, ["logits"], **options)
    predictor = load_predictor(PredictorOptions(model=str(tmp_path)))
    names = {part: f"logits.{part}?{form}" for part in form.parts}
    assert list(predictor.description.fetches) == list(names.values())
    given = rows_of(form, classes=classes)
    outputs = predictor.run(given, list(names.values()))
    parts = labels.as_parts({part: outputs[name] for part, name in names.items()}, classes)
    whole = net(paddle.to_tensor(given["ids"])).numpy()
    expected = sparse_labels(whole, form, given.get("labels.seed"), given.get("labels.target"))
    assert_same(parts, expected)
    ids = outputs[names["indices"]]
    assert ids.itemsize * ids.size // parts["indices"].size == labels.id_bytes(classes)


def test_the_layer_is_left_as_it_was_and_others_are_whole(tmp_path):
    net = Tokens()
    net.train()
    fetches = {"logits?top_k=8": ((-1, 3000), "float32"), "hidden": ((-1, 16), "float32")}
    export_model(net, tmp_path, FEEDS, fetches)
    assert net.training
    predictor = load_predictor(PredictorOptions(model=str(tmp_path)))
    assert [name.partition("?")[0] for name in predictor.description.fetches] == [
        *(f"logits.{part}" for part in ("values", "indices", "logsumexp")),
        "hidden",
    ]


def test_readers_get_the_same_from_a_program_as_from_a_server(tmp_path):
    net, form = Logits(), LabelForm(8, 2.0, 5)
    export_model(net, tmp_path / "sparse", FEEDS, ["logits"], top_k=8, temperature=2, samples=5)
    export_model(net, tmp_path / "whole", FEEDS, ["logits"])
    source = [(rows_of(form)["ids"][:, : 3 + n],) for n in range(4)]
    labelled = []
    for model in ("sparse", "whole"):
        with Teacher("--model", tmp_path / model) as teacher:
            with reader_of(teacher, source, top_k=8, temperature=2, samples=5) as reader:
                labelled.append(list(reader))
    for batch, ours, theirs in zip(source, *labelled):
        whole = net(paddle.to_tensor(batch[0])).numpy()
        expected = sparse_labels(whole, form, row_seeds(list(batch), 0))
        for columns in (ours, theirs):
            assert_same(dict(zip(expected, columns[1:])), expected)


def reader_of(teacher, source, **options):
    return DistillReader(
        ["ids"], ["logits"], source, [teacher.endpoint], teacher_batch_size=2, **options
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A program with top-8 and 5 samples at temperature 2."""
    directory = tmp_path_factory.mktemp("sparse")
    export_model(Logits(), directory, FEEDS, ["logits"], top_k=8, temperature=2, samples=5)
    with Teacher("--model", directory) as teacher:
        yield teacher


def test_fewer_are_cut_from_what_a_program_makes(teacher):
    net, form = Logits(), LabelForm(3, 2.0)
    source = [(rows_of(form)["ids"],)]
    with reader_of(teacher, source, top_k=3, temperature=2) as reader:
        [(ids, *columns)] = reader
    expected = sparse_labels(net(paddle.to_tensor(ids)).numpy(), form)
    assert_same(dict(zip(expected, columns)), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 8},
        {"top_k": 9, "temperature": 2},
        {"top_k": 7, "temperature": 2, "samples": 5},
        {"top_k": 8, "temperature": 2, "samples": 6},
    ],
)
def test_what_a_program_does_not_make_is_said(teacher, options):
    words = r"exported with labels of 'logits' as top_k=8&temperature=2&samples=5, from which top_k"
    with reader_of(teacher, [(np.zeros((1, 1), np.int64),)], **options) as reader:
        with pytest.raises(ReaderError, match=words):
            next(iter(reader))


def test_the_whole_of_a_program_that_has_only_labels_is_not_to_be_had(teacher):
    with reader_of(teacher, [(np.zeros((1, 1), np.int64),)]) as reader:
        with pytest.raises(ReaderError, match=r"it serves 'logits.values\?top_k=8"):
            next(iter(reader))


@pytest.mark.parametrize(
    ("feeds", "fetches", "options", "words"),
    [
        (FEEDS, ["logits"], {"temperature": 2}, "set top_k, too"),
        (FEEDS, ["logits"], {"top_k": 0}, "top_k must be from"),
        (FEEDS, ["logits"], {"top_k": 8, "pdmodel": True}, "programs of Paddle 2 make no"),
        (FEEDS, ["score"], {"top_k": 4000}, "top_k=4000 is more than the 3000 classes of 'score'$"),
        (FEEDS, ["logits?top_k=8&target"], {}, "need a feed 'labels.target'"),
        (FEEDS, ["logits", "hidden"], {"top_k": 8}, "2 fetches were named, but the layer has 1$"),
        (FEEDS, {"logits": ((3000,), "float32")}, {"top_k": 8}, "is said to be"),
    ],
)
def test_what_cannot_be_exported_is_refused(feeds, fetches, options, words, tmp_path):
    with pytest.raises(ConfigError, match=words) as caught:
        export_model(Logits(), tmp_path, feeds, fetches, **options)
    assert "\n" not in str(caught.value)  # Paddle adds an account of the code
    assert not (tmp_path / "serving_server").exists()


def test_a_tensor_on_the_teachers_device_gives_the_same_labels(tmp_path):
    net, form = Logits(), LabelForm(8, 2.0, 5)
    export_model(net, tmp_path, FEEDS, ["logits"])
    predictor = load_predictor(PredictorOptions(model=str(tmp_path)))
    feeds = rows_of(form)
    seeds = feeds.pop("labels.seed")
    from edl.serving.model.answers import make_labels

    on_device = predictor.run_on_device(feeds, ["logits"])["logits"]
    expected = make_labels(predictor.run(feeds, ["logits"])["logits"], form, seeds, None)
    assert_same(make_labels(on_device, form, seeds, None), expected)
