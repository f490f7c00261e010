"""What a registry entry says, whoever wrote it."""

import pytest

from edl.errors import ConfigError
from edl.serving import Description, TensorSpec
from edl.serving.client.entry import Entry


@pytest.mark.parametrize(
    "text", ["", "{gpu:20%, net:1}", "[" * 100_000, '{"feeds": {"x": [1e999]}}']
)
def test_other_text_is_a_teacher_of_which_nothing_is_known(text):
    assert Entry.from_json(text) == Entry()


def test_an_entry_keeps_the_fingerprint():
    description = Description({}, {}, fingerprint="resnet50-v3")
    entry = Entry.from_json(Entry(description=description).to_json())
    assert entry.description is not None
    assert entry.description.fingerprint == "resnet50-v3"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"protocol": "http"}', "it speaks 'http'; known are baidu_std, pipeline"),
        ('{"protocol": "pipeline", "form": "xml"}', "it takes the form 'xml'; known are"),
    ],
)
def test_an_entry_of_another_protocol_says_which(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Entry.from_json(text)


def test_an_entry_of_a_pipeline_is_read_as_it_was_written():
    entry = Entry("pipeline", description=Description({"x": TensorSpec((1,), "float32")}, {}))
    read = Entry.from_json(entry.to_json())
    assert (read.protocol, read.form) == ("pipeline", entry.form)
    assert read.description is not None
    assert read.description.feeds == {"x": TensorSpec((1,), "float32")}
