"""The ResNet demo, at a small size: its modes, exact resume, and teachers that come and go."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from edl.store.maintenance import holdings
from tests.support.pictures import cifar
from tests.support.processes import eventually
from tests.support.resnet import DEMO, ENVIRONMENT, NETWORK, SMALL, finish, losses, python, steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
pytest.importorskip("paddle")


def test_pure_online_and_service_see_the_same_batches_and_learn_from_the_same_teacher(
    resnet_teacher, cluster, tmp_path
):
    cluster()
    runs = {
        "pure": (),
        "online": ("--teacher", NETWORK, "--teacher-weights", resnet_teacher / "w.pdparams"),
        "service": ("--teachers", cluster.address),
    }
    outputs = {}
    for mode, extra in runs.items():
        # A network without batch normalisation: that magnifies the last digit, in which an exported
        # model differs from the layer it was, beyond all measure where a channel is constant.
        arguments = (*SMALL, "--student", "squeezenet1_1", "--lr", 0.01, "--mode", mode, *extra)
        assert "top-1" in finish(python("train.py", *arguments, "--output", tmp_path / mode))
        outputs[mode] = losses(tmp_path / mode)
    pure, online, service = (outputs[mode] for mode in runs)
    assert pure.keys() == online.keys() == service.keys()
    assert len(pure) == 1200 // 32
    np.testing.assert_allclose(list(service.values()), list(online.values()), rtol=1e-3)
    assert service[0, 32] != pytest.approx(pure[0, 32], rel=1e-2)


def test_a_killed_run_that_is_resumed_and_teachers_that_come_and_go_change_no_loss(
    cluster, tmp_path
):
    killed = cluster()
    service = (*SMALL, "--mode", "service", "--teachers", cluster.address, "--log-every", 1)
    finish(python("train.py", *service, "--output", tmp_path / "undisturbed"))
    undisturbed = losses(tmp_path / "undisturbed")

    disturbed = tmp_path / "disturbed"
    checkpoints = ("--save-every", 8, "--output", disturbed)
    process = python("train.py", *service, *checkpoints)
    eventually(lambda: len(steps(disturbed)) >= 12, 60)
    process.kill()
    process.communicate()
    written = len(steps(disturbed))
    stopped = cluster()
    process = python("train.py", *service, *checkpoints, "--resume")
    eventually(lambda: len(steps(disturbed)) > written, 60)
    killed.kill(signal.SIGKILL)
    eventually(lambda: len(steps(disturbed)) > written + 4, 60)
    stopped.kill(signal.SIGTERM)
    assert stopped.wait() == 0
    assert process.poll() is None
    added = cluster()
    output = finish(process)
    assert f"resumed in epoch 0 after {written // 8 * 8 * 32} samples" in output
    assert added.process.poll() is None
    resumed = losses(disturbed)
    assert resumed.keys() == undisturbed.keys()
    np.testing.assert_allclose(
        list(resumed.values()), list(undisturbed.values()), rtol=1e-3, atol=1e-4
    )


def test_with_a_store_later_epochs_and_later_runs_need_no_teacher(cluster, tmp_path):
    teacher = cluster()
    # An epoch leaves out what does not fill a batch, other images each time: here, none.
    service = (*SMALL, "--train-images", 640, "--epochs", 3, "--mode", "service", "--log-every", 1)
    finish(python("train.py", *service, "--teachers", cluster.address, "--output", tmp_path / "a"))
    store = ("--store", tmp_path / "labels")
    where = ("--teachers", cluster.address, "--output", tmp_path / "b")
    process = python("train.py", *service, *store, *where)
    eventually(lambda: any(epoch == 1 for epoch, _, _ in steps(tmp_path / "b")), 60)
    teacher.kill(signal.SIGKILL)
    finish(process)
    finish(python("train.py", *service, *store, "--output", tmp_path / "c"))
    asked, killed, none = (losses(tmp_path / name) for name in "abc")
    assert asked.keys() == killed.keys() == none.keys()
    assert killed == none
    np.testing.assert_allclose(list(killed.values()), list(asked.values()), rtol=1e-3, atol=1e-4)


def test_epochs_repeat_their_views_so_that_a_store_has_them(cluster, tmp_path):
    cluster()
    parts = [*(f"c/data_batch_{number}" for number in range(1, 6)), "c/test_batch"]
    archive, _ = cifar(tmp_path / "c.tar.gz", parts, b"labels")
    service = ("--mode", "service", "--teachers", cluster.address, "--store", tmp_path / "labels")
    data = ("--data", "cifar10", "--data-path", archive, "--views", 2)
    finish(python("train.py", *SMALL, "--epochs", 5, *service, *data, "--output", tmp_path / "out"))
    (labels,) = holdings(tmp_path / "labels")
    assert 50 < labels.rows <= 100, "of two views of fifty images, some of which may be alike"


def test_a_run_without_a_teacher_is_resumed_too_and_amp_and_the_other_loss_work(
    resnet_teacher, tmp_path
):
    arguments = (*SMALL, "--train-images", 256, "--save-every", 3, "--log-every", 1)
    arguments += ("--output", tmp_path)
    process = python("train.py", *arguments, "--batch-size", 8)
    eventually(lambda: len(steps(tmp_path)) >= 7, 60)
    process.kill()
    process.communicate()
    online = ("--mode", "online", "--teacher", NETWORK, "--loss", "dkd", "--amp")
    weights = ("--teacher-weights", resnet_teacher / "w.pdparams")
    finish(python("train.py", *arguments, "--batch-size", 8, *online, *weights, "--resume"))
    assert list(losses(tmp_path)) == [(0, 8 * step) for step in range(1, 33)]
    assert np.isfinite(list(losses(tmp_path).values())).all()


def test_what_is_missing_is_said():
    for arguments, message in (
        (("--mode", "service"), "--mode service needs --teachers"),
        (("--data", "folder"), "--data folder needs --data-path"),
        (("--student", "resnet19"), "resnet19 is neither"),
    ):
        process = python("train.py", *arguments)
        output, _ = process.communicate(timeout=60)
        assert process.returncode != 0
        assert message in output
        assert "Traceback" not in output


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
