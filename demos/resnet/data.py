"""Images and labels: digits (no files needed), CIFAR archives, or folders as ImageNet has them.

Images are raw, uint8 (size, size, 3): a byte a pixel travels to teachers and to the student's
device. Both normalise them there (see ``normalisation``).
"""

import numpy as np
import paddle
from PIL import Image, ImageOps

from edl.serving import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalisation(name):
    """What makes of raw images of a data set what a network takes: float32 (3, size, size)."""
    return Preprocess(1 / 16, 0.5) if name == "digits" else Preprocess(1 / 255, MEAN, STD)


def load(name, path, size, seed):
    """(training set, test set, number of classes) of ``digits``, of ``cifar10`` or ``cifar100``
    (``path`` is the archive), or of ``folder`` (``path`` has ``train/CLASS/`` and ``val/CLASS/``).
    """
    if name == "digits":
        return *_digits(size), 10
    if name == "folder":
        parts = [
            paddle.vision.datasets.DatasetFolder(f"{path}/{part}") for part in ("train", "val")
        ]
        train, test = Images(parts[0], size, zoom, seed), Images(parts[1], size, center, seed)
        return train, test, len(parts[0].classes)
    archive = {
        "cifar10": paddle.vision.datasets.Cifar10,
        "cifar100": paddle.vision.datasets.Cifar100,
    }
    parts = [archive[name](path, part, download=False, backend="pil") for part in ("train", "test")]
    return Images(parts[0], size, shift, seed), Images(parts[1], size, whole, seed), int(name[5:])


class Images(paddle.io.Dataset):
    """(image uint8 (size, size, 3), label int64 (1,)) of a dataset of pictures.

    ``view(picture, random)`` is the part of a picture to be seen. It depends on the seed, the epoch
    and the sample's number alone, so that a run that is resumed sees what an undisturbed one sees:
    set ``epoch`` before each epoch.
    """

    def __init__(self, pictures, size, view, seed):
        super().__init__()
        self.pictures, self.size, self.view = pictures, size, view
        self.seed, self.epoch = seed, 0

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        picture, label = self.pictures[index]
        random = np.random.default_rng((self.seed, self.epoch, index))
        picture = self.view(picture, random).resize((self.size, self.size), Image.BILINEAR)
        return np.array(picture.convert("RGB")), np.array([label], "int64")


def zoom(picture, random):
    """ImageNet, training: 8 to 100 % of the area, at most 4:3 or 3:4; every other one mirrored.

    Source: Szegedy et al., "Going deeper with convolutions" (arXiv 1409.4842), section 6.
    """
    width, height = picture.size
    for _ in range(10):
        area, ratio = (
            random.uniform(0.08, 1) * width * height,
            random.uniform(*np.log([3 / 4, 4 / 3])),
        )
        w, h = round((area * np.exp(ratio)) ** 0.5), round((area / np.exp(ratio)) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(width - w + 1), random.integers(height - h + 1)
            return mirror(picture.crop((left, top, left + w, top + h)), random)
    return mirror(center(picture, random), random)


def center(picture, _):
    """ImageNet, testing: the square in the middle, 7/8 of the shorter side."""
    side = min(picture.size) * 7 // 8
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def shift(picture, random):
    """CIFAR, training: moved by up to 4 pixels each way; every other one mirrored."""
    left, top = random.integers(9, size=2)
    moved = ImageOps.expand(picture, 4).crop(
        (left, top, left + picture.width, top + picture.height)
    )
    return mirror(moved, random)


def whole(picture, _):
    """CIFAR, testing."""
    return picture


def mirror(picture, random):
    """Mirrored, or not."""
    return ImageOps.mirror(picture) if random.random() < 0.5 else picture


def _digits(size):
    """Scikit-learn's 1,797 handwritten digits, enlarged: 1,200 to train, the rest to test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8).astype("uint8")  # 0 to 16
    grown = np.kron(images, np.ones((size // 8, size // 8), "uint8"))
    grown = np.repeat(grown[..., None], 3, axis=3)
    order = np.random.RandomState(0).permutation(len(labels))
    samples = [(grown[index], np.array([labels[index]], "int64")) for index in order]
    return Samples(samples[:1200]), Samples(samples[1200:])


class Samples(paddle.io.Dataset):
    """A list of samples."""

    def __init__(self, samples):
        super().__init__()
        self.samples, self.epoch = samples, 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]
