"""A teacher for the ResNet demo, and services of it."""

import pytest

from tests.support.processes import Teacher
from tests.support.resnet import NETWORK, finish, python


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
    finish(python("export.py", *arguments, "--out", directory / "model"))
    return directory


@pytest.fixture
def cluster(resnet_teacher, etcd_server, service):
    """cluster(): one more teacher in the service; cluster.address: where students find them."""
    teachers = []

    def start():
        where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 2)
        teachers.append(Teacher("--model", resnet_teacher / "model", *where, verbose=False))
        return teachers[-1]

    start.address = f"etcd://{etcd_server.endpoint}/{service}"
    yield start
    for teacher in teachers:
        teacher.close()
