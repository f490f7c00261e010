"""Images and labels: digits (no files needed), CIFAR archives, or folders as ImageNet has them."""

import numpy as np
import paddle
from paddle.vision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(name, path, size):
    """(training set, test set, number of classes) of ``digits``, of ``cifar10`` or ``cifar100``
    (``path`` is the archive), or of ``folder`` (``path`` has ``train/CLASS/`` and ``val/CLASS/``).
    """
    if name == "digits":
        return *_digits(size), 10
    if name in ("cifar10", "cifar100"):
        kind = (
            paddle.vision.datasets.Cifar10 if name == "cifar10" else paddle.vision.datasets.Cifar100
        )
        parts = [kind(path, mode=mode, download=False, backend="cv2") for mode in ("train", "test")]
        return Images(parts[0], size, True), Images(parts[1], size, False), int(name[5:])
    folders = [paddle.vision.datasets.DatasetFolder(f"{path}/{part}") for part in ("train", "val")]
    return Images(folders[0], size, True), Images(folders[1], size, False), len(folders[0].classes)


class Images(paddle.io.Dataset):
    """(image float32 (3, size, size), label int64 (1,)) of a dataset of pictures.

    ``augment``: random crop and flip, from the epoch and the sample's number alone, so that a run
    that is resumed sees what an undisturbed one sees. Set ``epoch`` before each epoch.
    """

    def __init__(self, pictures, size, augment):
        super().__init__()
        self.pictures, self.size, self.augment = pictures, size, augment
        self.seed, self.epoch = 0, 0

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        picture, label = self.pictures[index]
        image = np.asarray(picture)
        if self.augment:
            image = self._crop_and_flip(image, np.random.RandomState(self._number(index)))
        else:
            side = min(image.shape[:2])
            image = transforms.resize(transforms.center_crop(image, side), (self.size, self.size))
        image = transforms.normalize(image.astype("float32") / 255, MEAN, STD, data_format="HWC")
        return image.transpose(2, 0, 1).astype("float32"), np.array([label], "int64")

    def _number(self, index):
        return (self.seed * 1_000_003 + self.epoch * 100_003 + index) % (1 << 32)

    def _crop_and_flip(self, image, random):
        height, width = image.shape[:2]
        side = int(min(height, width) * random.uniform(0.75, 1.0))
        top, left = random.randint(height - side + 1), random.randint(width - side + 1)
        image = transforms.crop(image, top, left, side, side)
        image = transforms.resize(image, (self.size, self.size))
        return image[:, ::-1] if random.rand() < 0.5 else image


def _digits(size):
    """Scikit-learn's 1,797 handwritten digits, enlarged: 1,200 to train, the rest to test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8).astype("float32") / 16
    grown = np.kron(images, np.ones((size // 8, size // 8), "float32"))
    grown = np.repeat(grown[:, None], 3, axis=1) - 0.5
    order = np.random.RandomState(0).permutation(len(labels))
    pairs = [(grown[index], np.array([labels[index]], "int64")) for index in order]
    return Samples(pairs[:1200]), Samples(pairs[1200:])


class Samples(paddle.io.Dataset):
    """A list of samples."""

    def __init__(self, samples):
        super().__init__()
        self.samples, self.seed, self.epoch = samples, 0, 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]
