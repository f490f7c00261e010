"""The ResNet demo under paddle.distributed.launch: ranks share data and teachers, and may die."""

import os
import signal

import numpy as np
import pytest

from edl.discovery import Etcd
from edl.view.registry import read
from tests.support.processes import alive, children_of, eventually
from tests.support.resnet import DEMO, EDL, cluster_of, finish, losses, python, steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
pytest.importorskip("paddle")

BATCH, RANKS, EPOCHS = 32, 2, 2
SEEN = [step * BATCH * RANKS for step in range(1, 1200 // (BATCH * RANKS) + 1)]
ALL = [(epoch, seen) for epoch in range(EPOCHS) for seen in SEEN]


def launch(output, *options, elastic=""):
    """Two ranks of train.py; with ``elastic``, an etcd, by which they are started again."""
    program = ("-m", "paddle.distributed.launch")
    if elastic:
        program = (*EDL, "launch", "--master", f"etcd://{elastic}", "--elastic_level", 1)
        program += ("--job_id", output.name)
    where = ("--log_dir", output / "log", "--nproc_per_node", RANKS, DEMO / "train.py")
    training = ("--epochs", EPOCHS, "--output", output, "--log-every", 1, "--save-every", 4)
    return python(*program, *where, *options, *training, "--mode", "service")


def first_again(done):
    """The place of the first step after a restart, which goes back to a checkpoint."""
    return next(place for place in range(1, len(done)) if done[place] <= done[place - 1])


OTHER_STUDENT = """
import sys, time, numpy as np
from edl.distill import DistillReader
def source():
    while True:
        time.sleep(0.1)
        yield (np.zeros((1, 32, 32, 3), "u1"),)
with open(sys.argv[2], "wb", 0) as batches:
    for _ in DistillReader(["image"], ["logits"], source=source, teachers=sys.argv[1]):
        batches.write(b".")
"""


@pytest.fixture
def others(cluster, tmp_path):
    """others(): how many batches another student of the same teachers has had, from now on."""
    batches = tmp_path / "others"
    process = None

    def count():
        nonlocal process
        if process is None:
            process = python("-c", OTHER_STUDENT, cluster.address, batches)
        assert process.poll() is None
        return batches.stat().st_size if batches.exists() else 0

    yield count
    if process:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def undisturbed(small, resnet_teacher, etcd_server, tmp_path_factory):
    """A run of two ranks with two teachers: its directory, in which only the losses are looked at,
    and what it said, once each rank has had a teacher of its own.
    """
    output = tmp_path_factory.mktemp("undisturbed")
    with (
        cluster_of(resnet_teacher / "model", etcd_server, output.name) as cluster,
        Etcd(etcd_server.endpoint) as etcd,
    ):
        teachers = sorted(cluster().endpoint for _ in range(RANKS))

        def shared_out():
            students = read(etcd, output.name).get(output.name, {}).get("students", {})
            return sorted(student["teachers"] for student in students.values())

        launcher = launch(output, *small, "--teachers", cluster.address)
        eventually(lambda: shared_out() == [[teacher] for teacher in teachers], 120)
        return output, finish(launcher)


def test_ranks_read_disjoint_shares_and_the_teachers_are_balanced_between_them(undisturbed):
    output, said = undisturbed
    assert "top-1" in said
    first, second = losses(output, 0), losses(output, 1)
    assert list(first) == list(second) == ALL
    assert not set(first.values()) & set(second.values())


def test_a_killed_rank_is_started_again_and_the_epoch_is_completed_as_if_nothing_had_happened(
    undisturbed, small, cluster, etcd_server, others, tmp_path
):
    first = cluster()
    cluster()
    eventually(others, 30)
    service = ("--teachers", cluster.address, "--resume")
    launcher = launch(tmp_path, *small, *service, elastic=etcd_server.endpoint)
    eventually(lambda: len(steps(tmp_path, 1)) >= 6, 90)
    ranks = children_of(launcher.pid)
    assert len(ranks) == RANKS
    os.kill(ranks[1], signal.SIGKILL)
    eventually(lambda: not any(map(alive, ranks)), 30)
    before = others()
    eventually(lambda: others() > before + 10, 30)  # teachers are up, and serve others
    eventually(lambda: any(step[:2] <= ALL[5] for step in steps(tmp_path, 1)[6:]), 90)
    first.kill(signal.SIGKILL)
    cluster()
    finish(launcher)

    for rank in range(RANKS):
        written = [step[:2] for step in steps(tmp_path, rank)]
        again = first_again(written)
        assert written[:again] == ALL[:again]
        resumed_at = ALL.index(written[again])
        assert resumed_at % 4 == 0
        assert resumed_at > 0
        assert written[again:] == ALL[resumed_at:]
        expected, got = losses(undisturbed[0], rank), losses(tmp_path, rank)
        assert got.keys() == expected.keys()
        np.testing.assert_allclose(
            [got[key] for key in expected], list(expected.values()), rtol=1e-3, atol=1e-4
        )


def test_the_ranks_that_are_left_share_the_rest_of_the_epoch(small, cluster, etcd_server, tmp_path):
    """Two launchers, as on two machines; one is killed with its rank."""
    cluster()

    def node(number):
        program = (*EDL, "launch", "--master", f"etcd://{etcd_server.endpoint}", "--nnodes", "1:2")
        program += ("--elastic_level", 1, "--elastic_timeout", 8, "--job_id", tmp_path.name)
        program += ("--nproc_per_node", 1, "--log_dir", tmp_path / f"log{number}")
        training = (*small, "--output", tmp_path, "--log-every", 1, "--save-every", 2, "--resume")
        training += ("--mode", "service", "--teachers", cluster.address)
        return python(*program, DEMO / "train.py", *training)

    nodes = [node(number) for number in range(2)]
    eventually(lambda: len(steps(tmp_path)) >= 5, 90)
    for pid in (*children_of(nodes[1].pid), nodes[1].pid):
        os.kill(pid, signal.SIGKILL)
    finish(nodes[0])
    nodes[1].communicate()

    written = [seen for _, seen, _ in steps(tmp_path)]
    alone = first_again(written)
    assert written[:alone] == SEEN[:alone]
    resumed_after = written[alone] - BATCH
    assert resumed_after % (2 * BATCH * RANKS) == 0
    assert resumed_after > 0
    assert written[alone:] == list(range(resumed_after + BATCH, 1200 + 1, BATCH))
