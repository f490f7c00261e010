"""What a registry entry says, whoever wrote it."""

import pytest

from edl.serving import Description
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
