"""A teacher for the ResNet demo, services of it, and pictures."""

import pytest

from tests.support.pictures import cifar
from tests.support.resnet import NETWORK, cluster_of, finish, python


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """What train.py is told in order to train a small network on 1,200 pictures for an epoch."""
    parts = [*(f"cifar/data_batch_{number}" for number in range(1, 6)), "cifar/test_batch"]
    archive, _ = cifar(tmp_path_factory.mktemp("data") / "c.tar.gz", parts, b"labels", 240)
    data = ("--data", "cifar10", "--data-path", archive)
    return ("--student", NETWORK, "--epochs", 1, "--warmup-epochs", 0.2, *data)


@pytest.fixture(scope="session")
def resnet_teacher(tmp_path_factory):
    """A directory with an exported teacher in model/, and its parameters in w.pdparams.

    It is not trained, which is all the same here; but its last layer is made to have opinions.
    """
    paddle = pytest.importorskip("paddle")
    directory = tmp_path_factory.mktemp("teacher")
    paddle.seed(7)
    network = getattr(paddle.vision.models, NETWORK)(num_classes=10)
    for parameter in network.parameters()[-2:]:
        parameter.set_value(parameter * 1000)
    paddle.save(network.state_dict(), str(directory / "w.pdparams"))
    arguments = ("--network", NETWORK, "--weights", directory / "w.pdparams", "--classes", 10)
    arguments += ("--data", "cifar10")
    finish(python("export.py", *arguments, "--out", directory / "model"))
    return directory


@pytest.fixture
def cluster(resnet_teacher, etcd_server, service):
    """cluster(): one more teacher in the service; cluster.address: where students find them."""
    with cluster_of(resnet_teacher / "model", etcd_server, service) as start:
        yield start
