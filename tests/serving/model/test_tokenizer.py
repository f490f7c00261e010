"""Which tokenizers are the same: those that make the same ids of a text."""

import json

import pytest

from edl.errors import ConfigError, ModelError
from edl.serving.model.tokenizer import parse_tokenizer, tokenizer_of

FAST = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [], "padding": None}


def write(directory, **files):
    directory.mkdir()
    for name, content in files.items():
        (directory / name.replace("_", ".")).write_text(content)
    return directory


def test_what_does_not_change_ids_does_not_count(tmp_path):
    one = write(tmp_path / "one", tokenizer_json=json.dumps(FAST), merges_txt="a b")
    changed = {"padding": {"length": 7}, **{key: FAST[key] for key in ("added_tokens", "model")}}
    two = write(tmp_path / "two", tokenizer_json=json.dumps(changed, indent=2))
    assert tokenizer_of(one) == tokenizer_of(two)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_json": json.dumps({**FAST, "added_tokens": [{"id": 2, "content": "c"}]})},
        {"tokenizer_json": json.dumps({**FAST, "normalizer": {"type": "NFC"}})},
        {"vocab_json": json.dumps({"a": 0, "b": 1})},
        {"vocab_txt": "a\nb\n"},
        {"vocab_txt": "b\na\n"},
    ],
)
def test_what_changes_ids_does(tmp_path, files):
    one = write(tmp_path / "one", tokenizer_json=json.dumps(FAST))
    two = write(tmp_path / "two", **files)
    assert None not in (tokenizer_of(one), tokenizer_of(two))
    assert tokenizer_of(one) != tokenizer_of(two)


def test_a_fingerprint_or_a_directory_can_be_said(tmp_path):
    directory = write(tmp_path / "one", tokenizer_json=json.dumps(FAST))
    fingerprint = tokenizer_of(directory)
    assert fingerprint.startswith("tokenizer:")
    assert fingerprint == parse_tokenizer(fingerprint) == parse_tokenizer(str(directory))


def test_a_directory_without_one_or_with_a_broken_one_is_said(tmp_path):
    with pytest.raises(ConfigError, match="there is no tokenizer in"):
        parse_tokenizer(str(tmp_path))
    broken = write(tmp_path / "broken", tokenizer_json="[1]")
    with pytest.raises(ModelError, match="cannot read the tokenizer in"):
        parse_tokenizer(broken)
