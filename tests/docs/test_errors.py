"""The page about errors has all of them."""

from tests.docs.messages import messages
from tests.docs.pages import ROOT


def page():
    return " ".join((ROOT / "docs/how-to/errors.md").read_text(encoding="utf-8").split())


def test_every_message_of_the_code_is_on_the_page():
    text = page()
    missing = [
        f"{message.path}:{message.line}: {message.words!r}"
        for message in messages()
        if message.words not in text
    ]
    assert not missing, "without cause and remedy:\n" + "\n".join(missing)


def test_messages_are_found_in_the_code():
    words = {message.words for message in messages()}
    assert "is not host:port" in words  # of an f-string
    assert "this teacher is shutting down" in words  # what a teacher answers
    assert "--etcd and --service go together" in words  # what a command says
