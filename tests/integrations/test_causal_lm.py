"""Language models of PaddleFormers as teachers: real ones, though tiny."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

from edl.distill import DistillReader
from edl.errors import BadRequest, MissingDependencyError, ModelError, RequestRefused
from edl.serving import TeacherClient
from edl.serving.model.predictor import PredictorOptions, load_predictor
from edl.serving.wire import selftest
from tests.support.processes import Teacher, edl

paddle = pytest.importorskip("paddle")

CLASSES, LONGEST = 300, 64


def save(directory, kind="Qwen3", seed=1, **more):
    """A checkpoint of a model with random weights, and the model."""
    from paddleformers import transformers

    paddle.seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=CLASSES,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=LONGEST,
        **more,
    )
    names = {"Gemma3Text": "Gemma3ForCausalLM"}
    model = getattr(transformers, names.get(kind, f"{kind}ForCausalLM"))(config)
    for parameter in model.parameters():
        parameter.set_value(3 * parameter)  # it is sure of what it says
    model.eval()
    model.save_pretrained(str(directory))
    (directory / "vocab.txt").write_text("\n".join(map(str, range(CLASSES))))
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("paddleformers")
    directory = tmp_path_factory.mktemp("checkpoint")
    return directory, save(directory)


def load(directory, **options):
    return load_predictor(PredictorOptions(causal_lm=str(directory), **options))


def ids(rows, tokens, seed=0):
    return np.random.default_rng(seed).integers(0, CLASSES, (rows, tokens))


def whole(model, tokens):
    with paddle.no_grad():
        return model(paddle.to_tensor(tokens), use_cache=False)[0].numpy()


def test_a_checkpoint_computes_what_its_model_does(checkpoint):
    directory, model = checkpoint
    teacher, tokens = load(directory), ids(3, 20)
    outputs = teacher.run({"input_ids": tokens}, ["logits", "hidden_states"])
    np.testing.assert_allclose(outputs["logits"], whole(model, tokens), rtol=1e-4, atol=1e-4)
    assert outputs["hidden_states"].shape == (3, 20, 16)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Gemma3Text"])
def test_models_of_other_kinds_do_too(kind, tmp_path):
    pytest.importorskip("paddleformers")
    more = {"final_logit_softcapping": 0.5} if kind == "Gemma3Text" else {}
    model = save(tmp_path, kind, **more)
    tokens = ids(2, 20)
    found = load(tmp_path).run({"input_ids": tokens}, ["logits"])["logits"]
    np.testing.assert_allclose(found, whole(model, tokens), rtol=1e-3, atol=1e-3)


def test_rows_that_are_filled_up_have_the_logits_that_they_have_alone(checkpoint):
    teacher, tokens = load(checkpoint[0]), ids(3, 20)
    lengths = [20, 7, 13]
    mask = (np.arange(20) < np.array(lengths)[:, None]).astype(int)
    for feeds in ({}, {"attention_mask": mask}):
        together = teacher.run({"input_ids": tokens * mask, **feeds}, ["logits"])["logits"]
        for row, length in enumerate(lengths):
            alone = teacher.run({"input_ids": tokens[row : row + 1, :length]}, ["logits"])
            np.testing.assert_allclose(
                together[row, :length], alone["logits"][0], rtol=1e-4, atol=1e-4
            )


def test_rows_that_are_filled_up_in_front_do_with_a_mask_and_positions(checkpoint):
    teacher, tokens = load(checkpoint[0]), ids(1, 12)
    alone = teacher.run({"input_ids": tokens}, ["logits"])["logits"][0]
    feeds = {
        "input_ids": np.pad(tokens, ((0, 0), (5, 0))),
        "attention_mask": np.pad(np.ones_like(tokens), ((0, 0), (5, 0))),
        "position_ids": np.pad(np.arange(12)[None], ((0, 0), (5, 0))),
    }
    found = teacher.run(feeds, ["logits"])["logits"][0, 5:]
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)


def test_what_it_says_of_itself(checkpoint):
    directory, _ = checkpoint
    said = load(directory).description
    assert said.feeds["input_ids"].pad == 0
    assert list(said.needed) == ["input_ids"]
    assert said.fetches["logits"].shape == (-1, CLASSES)
    assert said.extra["max_tokens"] == LONGEST
    assert said.extra["precision"] == "float32"
    assert said.extra["tokenizer"].startswith("tokenizer:")
    assert selftest.said(said) is not None


def test_the_fingerprint_is_of_the_weights_and_what_they_mean_and_of_nothing_else(
    checkpoint, tmp_path
):
    directory, _ = checkpoint
    before = load(directory).description
    assert before.fingerprint.startswith("model:")
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text())
    config.update(torch_dtype="bfloat16", use_cache=False, transformers_version="9")
    (copy / "config.json").write_text(json.dumps(config))
    assert load(copy).description.fingerprint == before.fingerprint
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 500.0
    (copy / "config.json").write_text(json.dumps(config))
    assert load(copy).description.fingerprint != before.fingerprint
    save(tmp_path / "other", seed=2)
    other = load(tmp_path / "other").description
    assert other.fingerprint != before.fingerprint
    assert selftest.difference(selftest.said(before), selftest.said(other))


def test_the_directory_is_left_as_it_was(checkpoint):
    directory, _ = checkpoint
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    load(directory)
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_what_it_cannot_compute_is_refused_by_name(checkpoint):
    teacher = load(checkpoint[0])
    for tokens in (np.array([[CLASSES]]), np.array([[-1]]), ids(1, LONGEST + 1)):
        with pytest.raises(BadRequest, match="'input_ids'"):
            teacher.run({"input_ids": tokens}, ["hidden_states"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_dtype_that_the_device_does_not_have_is_refused_and_another_named(checkpoint, dtype):
    try:
        one = paddle.ones([2, 2], dtype=dtype)
        paddle.matmul(one, one)
    except RuntimeError:
        with pytest.raises(ModelError, match=rf"cannot compute in {dtype} .* --dtype float32"):
            load(checkpoint[0], dtype=dtype)
    else:
        assert load(checkpoint[0], dtype=dtype).description.extra["precision"] == dtype


def test_what_is_no_checkpoint_is_said(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="no checkpoint directory at"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"expected config.json and weights .* there is nothing"):
        load(tmp_path)
    directory = tmp_path / "broken"
    shutil.copytree(checkpoint[0], directory)
    for path in directory.glob("*.safetensors"):
        os.truncate(path, 100)
    with pytest.raises(ModelError, match=f"PaddleFormers cannot load {directory}"):
        load(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*config.json"):
        load(directory)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"vocab_size": CLASSES + 4}, r"embed_tokens.weight has shape \[304, 16\]: .* \[300, 16\]"),
        ({"vocab_size": CLASSES - 4}, r"embed_tokens.weight has shape \[296, 16\]"),
        (
            {"intermediate_size": 40},
            r"mlp.\w+.weight has shape \[\d+, \d+\]: in the weights it has",
        ),
    ],
)
def test_weights_of_other_shapes_than_the_config_says_are_refused(
    checkpoint, tmp_path, said, words
):
    """What PaddleFormers does not find in them it leaves as it was drawn, in each teacher anew."""
    directory = tmp_path / "other"
    shutil.copytree(checkpoint[0], directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **said}))
    with pytest.raises(
        ModelError, match=rf"{directory} does not fit its config.json, by .*{words}"
    ):
        load(directory)


def test_a_link_that_leads_nowhere_is_named(checkpoint, tmp_path):
    directory = tmp_path / "cache"
    shutil.copytree(checkpoint[0], directory)
    path = next(directory.glob("*.safetensors"))
    path.unlink()
    path.symlink_to("../blobs/gone")
    with pytest.raises(ModelError, match=f"{path} is no file of weights, but a link to .*gone"):
        load(directory)


def test_a_longest_row_that_is_none_is_no_limit(checkpoint, tmp_path):
    directory = tmp_path / "endless"
    shutil.copytree(checkpoint[0], directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 0}))
    teacher = load(directory)
    assert "max_tokens" not in teacher.description.extra
    tokens = ids(1, LONGEST + 1)
    assert teacher.run({"input_ids": tokens}, ["hidden_states"])["hidden_states"].shape[1] == 65


def test_without_paddleformers_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    for module in ("paddleformers", "paddleformers.transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"paddle-edl\[llm\]"):
        load(tmp_path)


def test_the_command_takes_one_kind_of_model_and_some_options_for_this_one_only(tmp_path):
    said = edl("teacher", "--model", tmp_path, "--causal-lm", tmp_path).stderr
    assert "or a language model with --causal-lm DIR" in said
    assert (
        "--dtype is for --causal-lm" in edl("teacher", "--model", "x", "--dtype", "float32").stderr
    )
    assert "--top-k is for --causal-lm" in edl("teacher", "--model", "x", "--top-k", "48").stderr


def test_the_command_hosts_it_and_a_reader_gets_its_labels(checkpoint):
    directory, model = checkpoint
    batches = [(ids(4, 12, seed),) for seed in range(6)]
    with Teacher("--causal-lm", directory, "--workers", 2, "--top-k", 8) as teacher:
        reader = DistillReader(
            ["input_ids"],
            ["logits"],
            source=batches,
            teachers=[teacher.endpoint],
            top_k=8,
            samples=4,
            teacher_batch_size=2,
            tokenizer=directory,
        )
        for tokens, values, indices, logsumexp, samples in reader:
            logits = whole(model, tokens)
            expected = np.take_along_axis(logits, indices, -1)
            np.testing.assert_allclose(values, expected, rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(values[..., 0], logits.max(-1), rtol=2e-3, atol=2e-3)
            total = np.log(np.exp(logits).sum(-1))
            np.testing.assert_allclose(logsumexp, total, rtol=1e-3, atol=1e-3)
            drawn = np.take_along_axis(logits, samples, -1)
            assert (drawn <= values[..., -1:] + 1e-2).all(), "of the tail"
        reader.close()
        with TeacherClient(teacher.endpoint) as client:
            for feeds, fetch, words in (
                ({"input_ids": np.array([[3, CLASSES]])}, "hidden_states", "from 0 to 299"),
                ({"input_ids": ids(1, LONGEST + 1)}, "hidden_states", "takes at most 64"),
                ({"input_ids": ids(1, 2)}, "logits?top_k=9", "at most 8 classes"),
            ):
                with pytest.raises(RequestRefused, match=words):
                    client.infer(feeds, [fetch])
            assert client.infer({"input_ids": ids(1, 2)})["logits"].shape == (1, 2, CLASSES)


def test_a_replica_that_is_killed_changes_no_label(checkpoint):
    directory, model = checkpoint
    batches = [ragged(seed) for seed in range(40)]
    with Teacher("--causal-lm", directory) as one, Teacher("--causal-lm", directory) as two:
        reader = DistillReader(
            ["input_ids", "attention_mask"],
            ["logits"],
            source=batches,
            teachers=[one.endpoint, two.endpoint],
            top_k=4,
            teacher_batch_size=2,
            lengths="attention_mask",
        )
        for number, (tokens, mask, values, indices, _) in enumerate(reader):
            if number == 5:
                one.kill()
            logits = np.take_along_axis(whole(model, tokens), indices, -1)
            real = mask > 0
            np.testing.assert_allclose(values[real], logits[real], rtol=2e-3, atol=2e-3)
        assert number == 39
        reader.close()


def ragged(seed):
    """Rows of different length, filled up, and their mask."""
    lengths = np.random.default_rng(seed).integers(1, 21, (4, 1))
    mask = (np.arange(20) < lengths).astype(int)
    return ids(4, 20, seed) * mask, mask
