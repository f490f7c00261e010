"""The ResNet demo, at a small size: exact resume, and teachers that come and go."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from edl.store.maintenance import holdings
from tests.support.modules import modules_of
from tests.support.processes import eventually
from tests.support.resnet import DEMO, ENVIRONMENT, NETWORK, finish, losses, python, steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
pytest.importorskip("paddle")


@pytest.fixture(scope="module")
def train():
    """The demo's program, in this process."""
    return modules_of(DEMO, ("data", "models", "log", "train")).train


def test_a_killed_run_that_is_resumed_and_teachers_that_come_and_go_change_no_loss(
    small, cluster, tmp_path
):
    killed = cluster()
    service = (*small, "--mode", "service", "--teachers", cluster.address, "--log-every", 1)
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


def test_with_a_store_later_epochs_and_later_runs_need_no_teacher(small, cluster, tmp_path):
    teacher = cluster()
    # An epoch leaves out what does not fill a batch, other images each time: here, none.
    service = (*small, "--train-images", 160, "--views", 2, "--epochs", 5, "--mode", "service")
    service += ("--log-every", 1)
    finish(python("train.py", *service, "--teachers", cluster.address, "--output", tmp_path / "a"))
    store = ("--store", tmp_path / "labels")
    where = ("--teachers", cluster.address, "--output", tmp_path / "b")
    process = python("train.py", *service, *store, *where)
    eventually(lambda: any(epoch == 2 for epoch, _, _ in steps(tmp_path / "b")), 60)
    teacher.kill(signal.SIGKILL)
    finish(process)
    (labels,) = holdings(tmp_path / "labels")
    assert 160 < labels.rows <= 320, "of two views of each image, some of which may be alike"
    finish(python("train.py", *service, *store, "--output", tmp_path / "c"))
    asked, killed, none = (losses(tmp_path / name) for name in "abc")
    assert asked.keys() == killed.keys() == none.keys()
    assert killed == none
    np.testing.assert_allclose(list(killed.values()), list(asked.values()), rtol=1e-3, atol=1e-4)


def test_a_run_without_a_teacher_is_resumed_too_and_amp_and_the_other_loss_work(
    small, resnet_teacher, tmp_path
):
    arguments = (*small, "--train-images", 256, "--save-every", 3, "--log-every", 1)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode", "service"), "--mode service needs --teachers"),
        (("--data", "folder", "--data-path", ""), "--data folder needs --data-path"),
        (("--student", "resnet19"), "resnet19 is neither"),
    ],
)
def test_what_is_missing_is_said(train, small, arguments, message, tmp_path, monkeypatch, capsys):
    where = ("--output", tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, (*small, *where)), *arguments])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert message in f"{ended.value}{capsys.readouterr().err}"


def test_the_pair_of_the_originals_table_has_the_published_sizes():
    code = (
        "import models, paddle\n"
        "constant = paddle.nn.initializer.Constant()\n"  # drawing 200 million numbers takes long
        "paddle.nn.initializer.set_global_initializer(constant, constant)\n"
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
