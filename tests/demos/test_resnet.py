"""The ResNet demo, at a small size: its modes, exact resume, and teachers that come and go."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.support.processes import ROOT, Teacher, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
paddle = pytest.importorskip("paddle")

DEMO = ROOT / "demos" / "resnet"
NETWORK = "shufflenet_v2_x0_25"
SMALL = ("--student", NETWORK, "--epochs", 1, "--warmup-epochs", 0.2)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2"}


def python(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(DEMO / script), *map(str, arguments)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def finish(process, status=0):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == status, output
    return output


def losses(directory, rank=0):
    lines = (directory / f"losses-{rank}.jsonl").read_text().splitlines()
    return {(line["epoch"], line["step"]): line["loss"] for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported teacher, and its parameters; not trained, which is all the same here."""
    directory = tmp_path_factory.mktemp("teacher")
    paddle.seed(7)
    network = getattr(paddle.vision.models, NETWORK)(num_classes=10)
    paddle.save(network.state_dict(), str(directory / "w.pdparams"))
    arguments = ("--network", NETWORK, "--weights", directory / "w.pdparams", "--classes", 10)
    finish(python("export.py", *arguments, "--out", directory / "model"))
    return directory


@pytest.fixture
def cluster(model, etcd_server, service):
    """cluster(): one more teacher in the service."""
    teachers = []

    def start():
        where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 2)
        teachers.append(Teacher("--model", model / "model", *where, verbose=False))
        return teachers[-1]

    start.address = f"etcd://{etcd_server.endpoint}/{service}"
    yield start
    for teacher in teachers:
        teacher.close()


def test_pure_online_and_service_see_the_same_batches_and_learn_from_the_same_teacher(
    model, cluster, tmp_path
):
    cluster()
    online = ("--teacher", NETWORK, "--teacher-weights", model / "w.pdparams")
    runs = {
        "pure": (),
        "online": online,
        "service": ("--teachers", cluster.address),
    }
    outputs = {}
    for mode, extra in runs.items():
        output = finish(
            python("train.py", *SMALL, "--mode", mode, *extra, "--output", tmp_path / mode)
        )
        assert "top-1" in output
        outputs[mode] = losses(tmp_path / mode)
    assert outputs["pure"].keys() == outputs["online"].keys() == outputs["service"].keys()
    assert len(outputs["pure"]) == 1200 // 32
    # An exported model computes in another order than the layer it was; training lets the last
    # digit grow, so only the beginning can be compared.
    first = {mode: list(values.values())[:8] for mode, values in outputs.items()}
    np.testing.assert_allclose(first["service"], first["online"], rtol=1e-3)
    assert first["service"][0] != pytest.approx(first["pure"][0], rel=1e-2)


def test_a_killed_run_that_is_resumed_and_teachers_that_come_and_go_change_no_loss(
    cluster, tmp_path
):
    first = cluster()
    service = (*SMALL, "--mode", "service", "--teachers", cluster.address)
    finish(python("train.py", *service, "--output", tmp_path / "undisturbed"))
    undisturbed = losses(tmp_path / "undisturbed")

    disturbed = tmp_path / "disturbed"
    checkpoints = ("--save-every", 8, "--output", disturbed)
    finish(python("train.py", *service, *checkpoints, "--stop-after", 20), status=9)
    assert len(losses(disturbed)) == 20
    process = python("train.py", *service, *checkpoints, "--resume")
    eventually(lambda: len((disturbed / "losses-0.jsonl").read_text().splitlines()) > 24, 60)
    second = cluster()
    first.kill(signal.SIGKILL)
    output = finish(process)
    assert "resumed at epoch 0, step 16" in output
    assert second.process.poll() is None
    resumed = losses(disturbed)
    assert resumed.keys() == undisturbed.keys()
    np.testing.assert_allclose(
        list(resumed.values()), list(undisturbed.values()), rtol=1e-3, atol=1e-4
    )


def test_the_pair_of_the_originals_table_has_the_published_sizes():
    code = (
        "import models, paddle\n"
        "for name in ('ResNet50_vd', 'ResNeXt101_32x16d_wsl'):\n"
        "    net = models.build(name, 1000)\n"
        "    net.eval()\n"
        "    count = sum(int(p.numel()) for p in net.parameters() if not p.stop_gradient)\n"
        "    print(round(count / 1e6, 1), list(net(paddle.zeros([1, 3, 64, 64])).shape))\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=DEMO, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert result.stdout.splitlines()[-2:] == ["25.6 [1, 1000]", "194.0 [1, 1000]"]
