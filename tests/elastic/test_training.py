"""A training that goes on where it was, as if nothing had happened."""

import itertools
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from edl.errors import ConfigError
from tests.support.processes import ROOT

paddle = pytest.importorskip("paddle")
from edl.distill import DistillReader  # noqa: E402
from edl.elastic import Checkpoints, ElasticBatchSampler, ElasticTraining  # noqa: E402

SAMPLES, BATCH, EPOCHS = 48, 4, 2


class Numbers(paddle.io.Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return np.full(4, index, "float32"), np.int64(index)


class Run:
    """A training of one rank, made anew as a restarted process would make it."""

    def __init__(self, directory, teacher=None, ranks=1, rank=0):
        self.batches = ElasticBatchSampler(Numbers(), BATCH, ranks, rank, seed=3)
        self.source = paddle.io.DataLoader(Numbers(), batch_sampler=self.batches)
        reader = None
        if teacher is not None:
            reader = DistillReader(["img", "label"], ["prob"], self.source, teacher.endpoint)
            self.source = reader
        paddle.utils.unique_name.switch()  # parameters are named as in a new process
        paddle.seed(11)
        np.random.seed(11)
        random.seed(11)
        self.net = paddle.nn.Linear(4, 1)
        rate = paddle.optimizer.lr.StepDecay(0.01, 7)
        optimizer = paddle.optimizer.Adam(rate, parameters=self.net.parameters())
        scaler = paddle.amp.GradScaler(enable=False)
        parts = {"net": self.net, "optimizer": optimizer, "rate": rate, "scaler": scaler}
        self.rate, self.optimizer = rate, optimizer
        self.training = ElasticTraining(directory, self.batches, reader, **parts)
        self.resumed = self.training.resume()

    def steps(self, save_at=None, most=None):
        """(epoch, samples seen, labels, loss) of each step that is left, so many in each epoch."""
        for epoch in self.training.epochs(EPOCHS):
            for image, label, *_ in itertools.islice(self.source, most):
                noise = paddle.rand([1]) + np.random.rand() + random.random()
                pixels = paddle.to_tensor(image) / SAMPLES
                loss = (self.net(pixels) - noise).square().mean()
                loss.backward()
                self.optimizer.step()
                self.optimizer.clear_grad()
                self.rate.step()
                self.training.step()
                labels = tuple(np.asarray(label).reshape(-1).tolist())
                yield epoch, self.training.seen, labels, float(loss)
                if self.training.seen == save_at:
                    self.training.save()


@pytest.mark.parametrize("with_teacher", [False, True], ids=["alone", "distilled"])
@pytest.mark.parametrize("killed_after", [5, SAMPLES // BATCH, SAMPLES // BATCH + 3])
def test_a_resumed_training_does_what_an_undisturbed_one_does(
    sums_teacher, tmp_path, with_teacher, killed_after
):
    teacher = sums_teacher if with_teacher else None
    undisturbed = list(Run(tmp_path / "undisturbed", teacher).steps())
    assert len(undisturbed) == EPOCHS * SAMPLES // BATCH

    directory, saved = tmp_path / "disturbed", 4 * BATCH
    first = list(itertools.islice(Run(directory, teacher).steps(saved), killed_after))
    again = Run(directory, teacher)
    assert again.resumed
    resumed_after = again.training.epoch * SAMPLES // BATCH + again.training.seen // BATCH
    assert 0 < resumed_after <= killed_after
    assert first[:resumed_after] + list(again.steps()) == undisturbed


@pytest.mark.parametrize("with_teacher", [False, True], ids=["alone", "distilled"])
def test_epochs_that_are_left_early_are_over_for_who_resumes_too(
    sums_teacher, tmp_path, with_teacher
):
    teacher, most = sums_teacher if with_teacher else None, 3
    undisturbed = list(Run(tmp_path / "undisturbed", teacher).steps(most=most))
    first = list(itertools.islice(Run(tmp_path / "disturbed", teacher).steps(most=most), most + 1))
    again = Run(tmp_path / "disturbed", teacher)
    assert (again.training.epoch, again.training.seen) == (1, 0)
    assert first[:most] + list(again.steps(most=most)) == undisturbed


def test_another_number_of_ranks_shares_what_is_left_of_the_epoch(tmp_path):
    first = []
    for rank in range(2):
        run = Run(tmp_path, ranks=2, rank=rank)
        steps = run.steps(save_at=2 * 2 * BATCH)
        first += [label for *_, labels, _ in itertools.islice(steps, 3) for label in labels]
    seen = 2 * 2 * BATCH  # the third step of each came after the checkpoint
    before = [label for rank in (0, 1) for label in first[rank * 12 : rank * 12 + 8]]
    run = Run(tmp_path, ranks=1, rank=0)
    assert (run.resumed, run.training.resharded, run.training.seen) == (True, True, seen)
    assert run.training.steps_done == seen // BATCH
    rest = [label for epoch, _, labels, _ in run.steps() if epoch == 0 for label in labels]
    assert sorted(before + rest) == list(range(SAMPLES))


def test_after_another_number_of_ranks_the_same_number_goes_on_exactly(tmp_path):
    for rank in range(2):
        next(Run(tmp_path, ranks=2, rank=rank).steps(save_at=2 * BATCH))
    for rank in range(2):
        run = Run(tmp_path, ranks=2, rank=rank)
        run.training.step()
        run.training.save()
    one = Run(tmp_path)
    steps = one.steps(save_at=one.training.seen + 2 * BATCH)
    taken = list(itertools.islice(steps, 3))
    again = Run(tmp_path)
    assert not again.training.resharded
    assert list(itertools.islice(again.steps(), 1)) == taken[2:]


def test_there_may_be_nothing_to_go_on_from(tmp_path):
    assert not Run(tmp_path).resumed


def test_a_part_without_a_state_and_a_checkpoint_without_a_part_are_named(tmp_path):
    batches = ElasticBatchSampler(Numbers(), BATCH, 1, 0)
    with pytest.raises(ConfigError, match="ema has no state_dict"):
        ElasticTraining(tmp_path, batches, ema=3)
    Run(tmp_path).training.save()
    more = ElasticTraining(
        tmp_path, batches, net=paddle.nn.Linear(1, 1), ema=paddle.nn.Linear(1, 1)
    )
    with pytest.raises(ConfigError, match="has no state of ema"):
        more.resume()


@pytest.mark.parametrize("sizes", [(4, 7), (4, 1)])
def test_a_checkpoint_of_another_network_is_refused(tmp_path, sizes):
    Run(tmp_path).training.save()
    net = paddle.nn.Linear(*sizes)
    if sizes == (4, 1):
        net = paddle.nn.Sequential(net)
    batches = ElasticBatchSampler(Numbers(), BATCH, 1, 0)
    with pytest.raises(ConfigError, match=r"checkpoint's net is of another network: .*weight"):
        ElasticTraining(tmp_path, batches, net=net).resume()


RANK = """
    import sys
    import paddle
    from edl.elastic import ElasticBatchSampler, ElasticTraining
    paddle.distributed.init_parallel_env()
    directory = sys.argv[1 + paddle.distributed.get_rank()]
    training = ElasticTraining(directory, ElasticBatchSampler(range(8), 2))
    assert training.resume()
    print("GOES_ON after", training.seen)
"""


def two_ranks(tmp_path, *directories):
    """(exit status, output) of two ranks, each with its directory."""
    program, log = tmp_path / "rank.py", tmp_path / "log"
    program.write_text(textwrap.dedent(RANK))
    command = [*(sys.executable, "-m", "paddle.distributed.launch"), "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, "--log_dir", str(log), str(program), *map(str, directories)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2"},
        capture_output=True, timeout=100, check=False,
    )  # fmt: skip
    return result.returncode, "".join(path.read_text() for path in log.glob("workerlog.*"))


@pytest.mark.slow
def test_ranks_go_on_together_and_not_from_different_checkpoints(tmp_path):
    one, other = Checkpoints(tmp_path / "one"), Checkpoints(tmp_path / "other")
    for checkpoints, seen in ((one, 4), (other, 8)):
        for rank in range(2):
            written = ElasticTraining(
                checkpoints.directory, ElasticBatchSampler(range(8), 2, 2, rank)
            )
            written.seen = seen
            written.save()
    status, output = two_ranks(tmp_path, one.directory, one.directory)
    assert (status, output.count("GOES_ON after 4")) == (0, 2)
    status, output = two_ranks(tmp_path, one.directory, other.directory)
    assert status != 0
    assert "ranks see different checkpoints" in output
