"""Raw images, normalised where they arrive: in numpy, in tensors, in exported and served models."""

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import ConfigError, TeacherFailed
from edl.serving import Preprocess, TeacherClient, TensorSpec, export_model, serve
from tests.support.processes import Teacher

paddle = pytest.importorskip("paddle")
from edl.serving.model.predictor import PredictorOptions, load_predictor  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Preprocess(mean=MEAN, std=STD)
EVERY = np.arange(2 * 16 * 24 * 3).reshape(2, 16, 24, 3).astype(np.uint8)  # all values, unevenly
FEEDS = {"img": ((3, 16, 24), "float32")}


def by_hand(images, scale=1 / 255, mean=MEAN, std=STD):
    """As PaddleClas' NormalizeImage does it, which has channels last."""
    values = images.astype(np.float32) * np.float32(scale)
    return ((values - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)


class Net(paddle.nn.Layer):
    """Returns what it was given, and its means."""

    def __init__(self):
        super().__init__()
        self.mean = self.create_parameter(
            [1], default_initializer=paddle.nn.initializer.Constant(1.0)
        )

    def forward(self, img):
        return img * self.mean, img.mean(axis=[1, 2, 3])


def run(directory, images, **options):
    predictor = load_predictor(PredictorOptions(model=str(directory), **options))
    return predictor.description, predictor.run({"img": images}, ["same", "mean"])


def test_arrays_are_normalised_as_by_hand():
    got = IMAGENET(EVERY)
    assert (got.dtype, got.shape, got.flags.c_contiguous) == (np.float32, (2, 3, 16, 24), True)
    np.testing.assert_array_equal(got, by_hand(EVERY))


def test_tensors_are_normalised_to_the_same_bits():
    np.testing.assert_array_equal(IMAGENET(paddle.to_tensor(EVERY)).numpy(), by_hand(EVERY))


@pytest.mark.parametrize("pdmodel", [False, True])
def test_an_exported_program_normalises_to_the_same_bits(pdmodel, tmp_path):
    net = Net()
    net.train()
    export_model(
        net, tmp_path, FEEDS, ["same", "mean"], pdmodel=pdmodel, preprocess={"img": IMAGENET}
    )
    assert net.training
    description, answer = run(tmp_path, EVERY)
    assert description.feeds == {"img": TensorSpec((16, 24, 3), "uint8")}
    np.testing.assert_array_equal(answer["same"], by_hand(EVERY))
    np.testing.assert_allclose(answer["mean"], by_hand(EVERY).mean((1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("preprocess", "raw"),
    [
        (Preprocess(1 / 16, 0.5, layout="CHW"), EVERY.transpose(0, 3, 1, 2)),
        (Preprocess(), EVERY),
        (Preprocess(1.0, (1, 2, 3), 2.0, "CHW"), EVERY.transpose(0, 3, 1, 2)),
    ],
)
def test_layouts_and_numbers_for_all_channels(preprocess, raw, tmp_path):
    export_model(Net(), tmp_path, FEEDS, ["same", "mean"], preprocess={"img": preprocess})
    description, answer = run(tmp_path, np.ascontiguousarray(raw))
    assert description.feeds["img"] == TensorSpec(raw.shape[1:], "uint8")
    expected = by_hand(EVERY, preprocess.scale, preprocess.mean, preprocess.std)
    np.testing.assert_array_equal(answer["same"], expected)
    np.testing.assert_array_equal(preprocess(raw), expected)


def test_rows_of_any_shape_and_other_feeds_beside_them(tmp_path):
    class Two(paddle.nn.Layer):
        def forward(self, ids, pixels):
            return ids, pixels

    feeds = {"ids": ((2,), "int64"), "pixels": ((-1,), "float32")}
    plain = Preprocess(1 / 128, 1.0, layout="CHW")
    export_model(Two(), tmp_path, feeds, ["ids", "same"], preprocess={"pixels": plain})
    predictor = load_predictor(PredictorOptions(model=str(tmp_path)))
    assert predictor.description.feeds["pixels"] == TensorSpec((-1,), "uint8")
    ids, pixels = np.array([[1, 2]]), np.arange(256, dtype=np.uint8)[np.newaxis]
    answer = predictor.run({"ids": ids, "pixels": pixels}, ["ids", "same"])
    np.testing.assert_array_equal(answer["ids"], ids)
    np.testing.assert_array_equal(answer["same"], pixels / np.float32(128) - 1)


def test_sparse_labels_of_raw_images(tmp_path):
    class Flat(paddle.nn.Layer):
        def forward(self, img):
            return img.flatten(1)[:, :50]

    export_model(Flat(), tmp_path, FEEDS, ["logits"], top_k=5, preprocess={"img": IMAGENET})
    predictor = load_predictor(PredictorOptions(model=str(tmp_path)))
    [values] = predictor.run({"img": EVERY}, ["logits.values?top_k=5"]).values()
    expected = -np.sort(-by_hand(EVERY).reshape(2, -1)[:, :50])[:, :5]
    np.testing.assert_allclose(values, expected, rtol=1e-3)


def test_a_served_layer_and_a_served_function_take_raw_images():
    for function in (Net(), lambda img: (img, img.mean((1, 2, 3)))):
        with serve(function, FEEDS, ["same", "mean"], preprocess={"img": IMAGENET}) as teacher:
            with TeacherClient(teacher.endpoint) as client:
                assert client.describe().feeds == {"img": TensorSpec((16, 24, 3), "uint8")}
                np.testing.assert_array_equal(client.infer({"img": EVERY})["same"], by_hand(EVERY))


def test_a_student_with_raw_images_gets_the_labels_of_one_that_normalises_itself(tmp_path):
    paddle.seed(3)
    net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.Flatten())
    net.eval()
    images = [np.roll(EVERY, number) for number in range(6)]
    export_model(net, tmp_path / "raw", FEEDS, ["y"], preprocess={"img": IMAGENET})
    export_model(net, tmp_path / "floats", FEEDS, ["y"])
    labels = {}
    for kind, source in (
        ("raw", [{"img": each} for each in images]),
        ("floats", [{"img": by_hand(each)} for each in images]),
    ):
        with Teacher("--model", tmp_path / kind, verbose=False) as teacher:
            with DistillReader(["img"], ["y"], source, [teacher.endpoint]) as reader:
                labels[kind] = [batch["y"] for batch in reader]
    np.testing.assert_array_equal(labels["raw"], labels["floats"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": "1/255"}, "scale must be a number, not '1/255'"),
        ({"scale": (1, 2, 3)}, "scale must be a number, not"),
        ({"mean": ()}, "mean must be a number, or one for each channel, not"),
        ({"mean": float("nan")}, "mean must be a number"),
        ({"std": None}, "std must be a number"),
        ({"std": (1, 0, 1)}, "std must not be 0"),
        ({"mean": MEAN, "std": (1, 2)}, "mean is of 3 channels, std of 2"),
        ({"layout": "NCHW"}, "layout must be HWC or CHW, not 'NCHW'"),
    ],
)
def test_what_is_no_normalisation_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Preprocess(**arguments)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"image": ((3, 16, 24), "float32")}, "preprocess names 'img', which is no feed"),
        ({"img": ((3, 16, 24), "int64")}, "preprocess of 'img': images become floats, not int64"),
        ({"img": ((384,), "float32")}, r"rows of shape \[384\] are not \(channels, height, width"),
        ({"img": ((4, 16, 24), "float32")}, "rows have 4 channels, mean or std 3"),
    ],
)
def test_feeds_that_images_cannot_become_are_refused(feeds, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        export_model(Net(), tmp_path, feeds, ["same", "mean"], preprocess={"img": IMAGENET})
    with pytest.raises(ConfigError, match=words):
        serve(Net(), feeds, ["same", "mean"], preprocess={"img": IMAGENET})


def test_a_part_in_training_mode_is_still_noticed():
    net = Net()
    with serve(net, FEEDS, ["same", "mean"], preprocess={"img": IMAGENET}) as teacher:
        net.train()
        with (
            TeacherClient(teacher.endpoint) as client,
            pytest.raises(TeacherFailed, match="training"),
        ):
            client.infer({"img": EVERY})
    assert net.training
