"""A student among teachers that speak TLS, of which one is not what it seems: nothing is lost,
doubled or out of order, and the one that is not believed is sent no rows.
"""

import contextlib
import json
import threading

import numpy as np
import pytest

from edl.discovery import Etcd, Registration, list_nodes
from edl.distill import DistillReader
from edl.errors import ReaderError
from edl.serving import ServerOptions, serve
from tests.support.certificates import Authority
from tests.support.processes import python_teacher

ROWS = 8


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("foreign"), "foreign")


def numbered(count):
    for number in range(count):
        yield np.full((ROWS, 3), number, "f4") + np.arange(ROWS, dtype="f4")[:, None], number


def read(reader, count, on_batch=lambda number: None):
    """Read an epoch and check that it is whole, in order, and rightly labelled."""
    number = -1
    for number, (img, label, prob) in enumerate(reader()):
        assert label == number
        assert (prob[:, 0] == img.sum(axis=1)).all()
        on_batch(number)
    assert number + 1 == count


def sums(tls):
    """A teacher in this process, and the list of the rows that it was sent."""
    seen = []

    def compute(img):
        seen.extend(img[:, 0].tolist())
        total = img.sum(axis=1)
        return np.stack([total, 2 * total], axis=1)

    options = ServerOptions(tls=tls, local=False)
    return serve(compute, {"img": ((-1,), "float32")}, {"prob": ((2,), "float32")},
                 options=options), seen  # fmt: skip


def test_one_of_three_has_a_foreign_certificate_and_another_is_killed(
    ours, foreign, monkeypatch, caplog
):
    count = 300
    cert, key = ours.issue("127.0.0.1")
    monkeypatch.setenv("EDL_TEACHER_CA", ours.ca)
    monkeypatch.setenv("EDL_TOKEN", "of-the-test")
    arguments = ("--tls-cert", cert, "--tls-key", key, "--no-local")
    impostor, seen = sums(foreign.server())
    with impostor, python_teacher("Sums", *arguments, delay=0.003) as victim:
        with python_teacher("Sums", *arguments, delay=0.003) as other:
            reader = DistillReader(["img", "label"], ["prob"])
            reader.set_fixed_teacher([impostor.endpoint, victim.endpoint, other.endpoint])
            reader.set_batch_generator(lambda: numbered(count))

            def kill_in_the_middle(number):
                if number == count // 2:
                    assert reader.stats()["teachers"][victim.endpoint]["answered"] > 5
                    victim.kill()

            with reader:
                read(reader, count, kill_in_the_middle)
                stats = reader.stats()
    assert seen == []
    assert "certificate is not accepted" in stats["unusable"][impostor.endpoint]
    assert {each["way"] for each in stats["teachers"].values()} == {"tls"}
    assert caplog.text.count(f"teacher {impostor.endpoint} is not used: its certificate") == 1


def test_a_registry_that_loses_tls_of_an_entry_sends_no_row_there(
    ours, monkeypatch, etcd_server, service
):
    """Who may write to the registry may lead students astray, but not to plain text."""
    monkeypatch.setenv("EDL_TEACHER_CA", ours.ca)
    cert, key = ours.issue("127.0.0.1")
    arguments = ("--etcd", etcd_server.endpoint, "--service", service)
    tls = ("--tls-cert", cert, "--tls-key", key)
    plain, seen = sums(None)
    told, drawn = threading.Event(), []

    def until_that_is_said():
        for batch in numbered(100_000):
            if told.is_set():
                return
            drawn.append(batch)
            yield batch

    with contextlib.ExitStack() as stack:
        stack.enter_context(plain)
        teacher = stack.enter_context(python_teacher("Sums", *arguments, *tls, delay=0.005))
        etcd = stack.enter_context(Etcd(etcd_server.endpoint))
        entry = json.loads(list_nodes(etcd, service)[0][teacher.endpoint])
        assert entry.pop("tls") is True
        registration = Registration(etcd, service, plain.endpoint, json.dumps(entry))
        registration.start()
        stack.callback(registration.stop)
        reader = stack.enter_context(DistillReader(["img", "label"], ["prob"]))
        reader.set_dynamic_teacher(etcd_server.endpoint, service, require_max_teacher=2)
        reader.set_batch_generator(until_that_is_said)

        number = -1
        for number, (img, label, prob) in enumerate(reader()):
            assert label == number
            assert (prob[:, 0] == img.sum(axis=1)).all()
            why = reader.stats()["unusable"].get(plain.endpoint, "")
            if "does not say that it speaks TLS" in why:
                told.set()
        assert told.is_set()
        assert number + 1 == len(drawn)
    assert seen == []


def test_if_none_is_believed_the_student_says_why_at_once(ours, foreign, monkeypatch):
    monkeypatch.setenv("EDL_TEACHER_CA", ours.ca)
    impostor, seen = sums(foreign.server())
    with impostor:
        reader = DistillReader(["img", "label"], ["prob"], teachers=[impostor.endpoint])
        reader.set_batch_generator(lambda: numbered(5))
        with reader, pytest.raises(ReaderError, match="certificate is not accepted"):
            next(iter(reader()))
    assert seen == []
