"""The original's kinds of example programs, with its own EDL lines, run to their end.

The programs are in ``programs/``. Each checks what it is given, and prints what the test wants.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edl.serving import export_model
from tests.support.processes import ROOT, Teacher

pytestmark = [pytest.mark.slow]
paddle = pytest.importorskip("paddle")

PROGRAMS = Path(__file__).parent / "programs"
FORMS = ["sample", "sample_list", "batch"]


def output_of(program, *arguments):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAMS / f"{program}.py"), *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def accuracy(output):
    return float(output.partition("accuracy:")[2].split()[0])


class Light(paddle.nn.Layer):
    """An image's sum, and twice that."""

    def forward(self, img):
        total = img.sum(axis=[1, 2, 3]).unsqueeze(1)
        return paddle.concat([total, 2 * total], axis=1)


class Ernie(paddle.nn.Layer):
    """ERNIE's feeds, and embeddings that make its answers easy to check: the sum of the ids and of
    the positions that are not masked.
    """

    def __init__(self):
        super().__init__()
        number = paddle.nn.initializer.Assign(np.arange(64, dtype="float32")[:, None])
        self.words, self.positions, self.sentences = (
            paddle.nn.Embedding(64, 1, weight_attr=paddle.ParamAttr(initializer=number))
            for _ in range(3)
        )

    def forward(self, src_ids, pos_ids, sent_ids, input_mask):
        mask = input_mask.squeeze(-1).unsqueeze(-1)
        words = (self.words(src_ids.squeeze(-1)) + self.sentences(sent_ids.squeeze(-1))) * mask
        positions = self.positions(pos_ids.squeeze(-1)) * mask
        return paddle.concat([words.sum(axis=1), positions.sum(axis=1)], axis=1)


def digits_network():
    """A teacher that knows the digits, after a second of training."""
    from tests.compat.programs.mnist import digits

    images, labels = (np.stack(column) for column in zip(*digits()))
    paddle.seed(1)
    network = paddle.nn.Sequential(paddle.nn.Linear(784, 32), paddle.nn.ReLU(),
                                   paddle.nn.Linear(32, 10))  # fmt: skip
    adam = paddle.optimizer.Adam(parameters=network.parameters(), learning_rate=0.01)
    for _ in range(60):
        logits = network(paddle.to_tensor(images))
        paddle.nn.functional.cross_entropy(logits, paddle.to_tensor(labels)).backward()
        adam.step()
        adam.clear_grad()
    return paddle.nn.Sequential(network, paddle.nn.Softmax())


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Starts a real teacher of a layer; ends it after the module's tests."""
    with ExitStack() as stack:

        def start(layer, feeds, fetch, *arguments):
            directory = tmp_path_factory.mktemp("model")
            export_model(layer, directory, feeds, [fetch])
            return stack.enter_context(Teacher("--model", directory, *arguments)).endpoint

        yield start


@pytest.fixture(scope="module")
def light(serve):
    return serve(Light(), {"img": ((1, 28, 28), "float32")}, "prediction")


@pytest.fixture(scope="module")
def ernie(serve):
    ids = dict.fromkeys(("src_ids", "pos_ids", "sent_ids"), ((-1, 1), "int64"))
    return serve(Ernie(), {**ids, "input_mask": ((-1, 1), "float32")}, "logits")


def test_the_reader_demo_in_its_three_formats(light):
    output = output_of("reader_demo", light)
    assert all(f"{form} rows: 96\n" in output for form in FORMS)


def test_the_nlp_example_with_ernies_feeds_and_a_mask_of_integers(ernie):
    output = output_of("nlp", ernie)
    assert all(f"{form} rows: 60\n" in output for form in FORMS)


def test_the_mnist_example_with_fixed_and_with_dynamic_teachers(serve, etcd_server, service):
    register = ("--etcd", etcd_server.endpoint, "--service", service)
    endpoint = serve(digits_network(), {"img": ((784,), "float32")}, "prob", *register)
    fixed = output_of("mnist", endpoint)
    dynamic = output_of("mnist", etcd_server.endpoint, service)
    for output in (fixed, dynamic):
        assert "steps: 64" in output
        assert accuracy(output) > 0.7
