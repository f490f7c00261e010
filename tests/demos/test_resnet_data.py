"""What the ResNet demo reads: CIFAR archives, folders of pictures."""

import numpy as np
import pytest

from tests.support.modules import modules_of
from tests.support.pictures import cifar
from tests.support.resnet import DEMO

paddle = pytest.importorskip("paddle")


@pytest.fixture(scope="module")
def data():
    return modules_of(DEMO, ["data"]).data


@pytest.fixture
def cifar10(tmp_path):
    train = [f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)]
    test = "cifar-10-batches-py/test_batch"
    return cifar(tmp_path / "cifar-10-python.tar.gz", [*train, test], b"labels")


@pytest.fixture
def cifar100(tmp_path):
    parts = ["cifar-100-python/train", "cifar-100-python/test"]
    return cifar(tmp_path / "cifar-100-python.tar.gz", parts, b"fine_labels")


@pytest.mark.parametrize(("name", "train_images"), [("cifar10", 50), ("cifar100", 10)])
def test_cifar_archives(data, request, name, train_images):
    path, pictures = request.getfixturevalue(name)
    train, test, classes = data.load(name, str(path), 32, seed=0)
    assert (len(train), len(test), classes) == (train_images, 10, int(name[5:]))
    image, label = test[7]
    assert label.tolist() == [7]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pictures[7].reshape(3, 32, 32).transpose(1, 2, 0))
    normal = data.normalisation(name)(image[np.newaxis])
    assert (normal.shape, normal.dtype) == ((1, 3, 32, 32), np.float32)
    expected = (pictures[7].reshape(3, 1024).T / 255 - data.MEAN) / data.STD
    np.testing.assert_allclose(normal.reshape(3, 1024).T, expected, atol=1e-5)


def test_digits_are_normalised_as_ever(data):
    pytest.importorskip("sklearn")
    train, test, classes = data.load("digits", None, 32, seed=0)
    assert (len(train), len(test), classes) == (1200, 597, 10)
    images = np.stack([image for image, _ in train.samples[:8]])
    normal = data.normalisation("digits")(images)
    assert (normal.shape, normal.dtype) == ((8, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(normal, images.transpose(0, 3, 1, 2) / 16 - 0.5)
    assert (normal.min(), normal.max()) == (-0.5, 0.5)


def test_augmentation_differs_by_epoch_and_is_the_same_again_in_the_same_epoch(data, cifar100):
    train, _, _ = data.load("cifar100", str(cifar100[0]), 32, seed=0)
    first = train[3][0]
    assert (train[3][0] == first).all()
    train.epoch = 1
    assert (train[3][0] != first).any()


@pytest.fixture
def folder(tmp_path):
    """ImageNet's layout: pictures of different sizes, one of them grey."""
    from PIL import Image

    for part, sizes in (("train", [(64, 48), (40, 90), (7, 300)]), ("val", [(70, 50), (33, 33)])):
        for name, colour in (("n01440764", (250, 10, 10)), ("n01443537", (10, 10, 250))):
            directory = tmp_path / part / name
            directory.mkdir(parents=True)
            for number, size in enumerate(sizes):
                picture = Image.new("RGB", size, colour)
                (picture.convert("L") if number == 1 else picture).save(
                    directory / f"{name}_{number}.JPEG"
                )
    return tmp_path


def test_folders_of_pictures_of_any_size(data, folder):
    train, test, classes = data.load("folder", str(folder), 24, seed=0)
    assert (len(train), len(test), classes) == (6, 4, 2)
    for epoch in range(20):
        train.epoch = epoch
        for index in range(6):
            image, label = train[index]
            assert (image.shape, image.dtype) == ((24, 24, 3), np.uint8)
            assert label.tolist() == [index // 3]
    np.testing.assert_allclose(test[0][0][12, 12], (250, 10, 10), atol=4)
