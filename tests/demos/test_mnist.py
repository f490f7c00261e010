"""The MNIST demo: a teacher is trained, hosted, and distilled from; MNIST's own files are read."""

import gzip
import re
import struct

import numpy as np
import pytest

from tests.support.modules import need
from tests.support.processes import ROOT, Teacher
from tests.support.resnet import finish, python

pytestmark = [pytest.mark.slow]
pytest.importorskip("paddle")
need("sklearn")
TRAIN = ROOT / "demos" / "mnist" / "train.py"


@pytest.fixture
def mnist_files(tmp_path):
    """MNIST's four files with pictures of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8), np.ones((3, 3))) * 15
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    for prefix, part in (("train", slice(0, 1000)), ("t10k", slice(1000, 1700))):
        count = len(labels[part])
        for name, header, values in (
            ("images-idx3", struct.pack(">IIII", 2051, count, 28, 28), images[part]),
            ("labels-idx1", struct.pack(">II", 2049, count), labels[part].astype(np.uint8)),
        ):
            with gzip.open(tmp_path / f"{prefix}-{name}-ubyte.gz", "wb") as file:
                file.write(header + values.tobytes())
    return tmp_path


def accuracy(output):
    return float(re.findall(r"accuracy ([\d.]+)", output)[-1])


def test_a_teacher_is_trained_hosted_and_distilled_from(mnist_files, tmp_path):
    data = ("--data", mnist_files)
    output = finish(
        python(TRAIN, "--network", "cnn", "--epochs", 2, "--save-model", tmp_path / "cnn", *data)
    )
    assert accuracy(output) > 0.85
    with Teacher("--model", tmp_path / "cnn", verbose=False) as teacher:
        output = finish(
            python(TRAIN, "--network", "mlp", "--epochs", 2, "--teachers", teacher.endpoint, *data)
        )
        assert accuracy(output) > 0.8


def test_without_files_it_reads_the_digits():
    assert accuracy(finish(python(TRAIN, "--network", "mlp", "--epochs", 2))) > 0.8
