"""Teachers of two models under one service: an epoch is labelled by one of them.

The teachers are real servers in this process. ``prob`` is ``factor`` times the sum of a row.
"""

import contextlib
import json
import logging
import time

import numpy as np
import pytest

from edl.discovery import Registration
from edl.discovery.embedded import free_port
from edl.distill import DistillReader
from edl.errors import NoTeacherError
from edl.serving import serve
from edl.serving.client.entry import Entry
from edl.serving.server.server import ServerOptions
from tests.support.processes import eventually

ROWS = 4


def teacher(fingerprint="", factor=1, width=8, outputs=10, port=0):
    def model(img):
        return np.repeat(factor * img.sum(axis=1, keepdims=True), outputs, axis=1)

    return serve(
        model,
        {"img": ((width,), "float32")},
        {"prob": ((outputs,), "float32")},
        fingerprint=fingerprint,
        options=ServerOptions(port=port, input_bytes=1 << 20),
    )


def images(count, width=8):
    for number in range(count):
        yield (np.full((ROWS, width), number, "f4"),)


def factors(batches, first=0):
    """By which factor each batch was labelled; every batch in its turn, by one model alone."""
    found = []
    for number, (img, prob) in enumerate(batches, first):
        assert (img == number).all()
        ratio = np.unique((prob[:, 0] + 1) / (img.sum(axis=1) + 1))
        assert len(ratio) == 1
        if number:
            found.append(round(float((prob / img.sum(axis=1, keepdims=True)).mean()), 3))
    return found


def reader_of(teachers, count=100, **options):
    return DistillReader(
        ["img"], ["prob"], source=lambda: images(count), teachers=teachers, **options
    )


@contextlib.contextmanager
def registered(etcd, service, *servers, **extra):
    """Entries for servers, as ``edl teacher`` makes them: with what they serve."""
    registrations = []
    for server in servers:
        with Entry().connect(server.endpoint) as client:
            entry = Entry(description=client.describe(), extra=extra)
        registration = Registration(etcd, service, server.endpoint, entry.to_json(), ttl=2)
        registration.start()
        registrations.append(registration)
    try:
        yield
    finally:
        for registration in registrations:
            registration.stop()


# --- two models at once -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"outputs": 10}, {"outputs": 12}),
        ({"fingerprint": "model:a"}, {"fingerprint": "model:b"}),
    ],
    ids=["other shapes", "other weights"],
)
@pytest.mark.parametrize("where", ["fixed", "etcd"])
def test_an_epoch_is_labelled_by_one_model_and_the_other_is_named(
    first, second, where, etcd_server, etcd, service, caplog
):
    with (
        teacher(factor=1, **first) as one,
        teacher(factor=2, **second) as two,
        contextlib.ExitStack() as stack,
    ):
        endpoints = [one.endpoint, two.endpoint]
        if where == "etcd":
            stack.enter_context(registered(etcd, service, one, two))
            endpoints = f"etcd://{etcd_server.endpoint}/{service}"
        with reader_of(endpoints, 300) as reader:
            batches = iter(reader)
            next(batches)
            eventually(lambda: reader.stats()["unusable"])
            batches.close()
            assert len(set(factors(reader))) == 1
            stats = reader.stats()
            ((other, why),) = stats["unusable"].items()
            used = reader._running.models()[0]
        assert stats["models"] == [used]
        assert other in {one.endpoint, two.endpoint} - stats["teachers"].keys()
        assert used in why
        assert f"teacher {other} is left out: {why}" in caplog.text


def test_students_of_the_same_fixed_teachers_choose_the_same_model():
    with (
        teacher("model:b", 2) as one,
        teacher("model:a", 1) as two,
        teacher("model:b", 2) as three,
    ):
        endpoints = [two.endpoint, one.endpoint, three.endpoint]
        for _ in range(4):
            with reader_of(endpoints, 10) as reader:
                assert set(factors(reader)) == {2.0}, "the model that most of them serve"


def test_a_model_that_is_only_known_by_its_feeds_and_fetches_is_no_ones_equal(caplog):
    """As a Paddle Serving's is: its weights may be the same, and may be others."""
    with (
        teacher("model:resnet", 1) as ours,
        teacher("model:resnet", 1) as ours_too,
        teacher("", 2) as serving,
        reader_of([ours.endpoint, serving.endpoint, ours_too.endpoint], 50) as reader,
    ):
        assert set(factors(reader)) == {1.0}
        eventually(lambda: serving.endpoint in reader.stats()["unusable"])
        why = reader.stats()["unusable"][serving.endpoint]
        assert "feeds and fetches" in why
        assert "cannot be told" in why
        assert "a service of its own" in why
        assert f"{serving.endpoint} is left out: {why}" in caplog.text


@pytest.mark.parametrize("declared", [True, False])
def test_a_left_out_teacher_is_not_tried_again_and_again(
    etcd_server, etcd, service, caplog, declared
):
    caplog.set_level(logging.INFO, "edl")
    address = f"etcd://{etcd_server.endpoint}/{service}"
    with (
        teacher("model:a", 1) as one,
        teacher("model:a", 1) as two,
        teacher("model:b", 2) as other,
        registered(etcd, service, one, two, *([other] if declared else [])),
        reader_of(address, 700) as reader,
    ):
        silent = Registration(etcd, service, other.endpoint, "{}")
        if not declared:
            silent.start()

        def slowly():
            for batch in reader:
                time.sleep(0.004)
                yield batch

        assert set(factors(slowly())) == {1.0}
        assert caplog.text.count(f"teacher {other.endpoint} is connected") <= 1
        assert reader.stats()["unusable"].keys() == {other.endpoint}
        assert reader.stats()["teachers"].keys() == {one.endpoint, two.endpoint}
        if not declared:
            silent.stop()


# --- a rolling upgrade --------------------------------------------------------------------------


def test_a_rolling_upgrade_between_epochs_is_followed_and_recorded(caplog):
    port = free_port()
    with reader_of(f"127.0.0.1:{port}", 20) as reader:
        with teacher("model:v1", 1, port=port):
            assert set(factors(reader)) == {1.0}
        with teacher("model:v2", 2, port=port):
            assert set(factors(reader)) == {2.0}
        assert reader.stats()["models"] == ["model:v1", "model:v2"]
    assert "the model is model:v2 from now on, all teachers have it; it was model:v1" in caplog.text


def test_between_epochs_the_model_stays_while_a_teacher_has_it(etcd_server, etcd, service):
    address = f"etcd://{etcd_server.endpoint}/{service}"
    with (
        teacher("model:v1", 1) as old,
        registered(etcd, service, old),
        reader_of(address, 20) as reader,
    ):
        assert set(factors(reader)) == {1.0}
        with (
            teacher("model:v2", 2) as new,
            teacher("model:v2", 2) as newer,
            registered(etcd, service, new, newer),
        ):
            eventually(lambda: reader.stats()["unusable"].keys() == {new.endpoint, newer.endpoint})
            assert set(factors(reader)) == {1.0}
            assert reader.stats()["models"] == ["model:v1"]


def test_in_the_middle_of_an_epoch_it_waits_for_its_model_says_so_and_gives_up(caplog):
    port = free_port()
    with reader_of(f"127.0.0.1:{port}", 10**6, no_teacher_timeout=6.0) as reader:
        with teacher("model:v1", 1, port=port):
            batches = iter(reader)
            for _ in range(5):
                next(batches)
        with (
            teacher("model:v2", 2, port=port),
            pytest.raises(NoTeacherError, match="its model is model:v2, this epoch's is model:v1"),
        ):
            factors(batches, 5)
        assert "has waited 5 s" in caplog.text


def test_in_the_middle_of_an_epoch_it_goes_on_when_its_model_is_back():
    port = free_port()
    with reader_of(f"127.0.0.1:{port}", 200) as reader:
        seen = []
        with teacher("model:v1", 1, port=port):
            batches = iter(reader)
            seen.append(next(batches))
        with teacher("model:v2", 2, port=port):
            eventually(lambda: reader.stats()["unusable"])
            time.sleep(0.3)
        with teacher("model:v1", 1, port=port):
            seen.extend(batches)
        assert set(factors(seen)) == {1.0}
        assert len(seen) == 200


# --- the state ----------------------------------------------------------------------------------


def test_a_state_from_the_middle_of_an_epoch_keeps_to_its_model():
    with teacher("model:v1", 1) as old:
        with reader_of(old.endpoint, 30) as reader:
            batches = iter(reader)
            for _ in range(10):
                next(batches)
            state = json.loads(json.dumps(reader.state_dict()))
        assert state["models"] == ["model:v1"]
        with teacher("model:v2", 2) as new, teacher("model:v2", 2) as newer:
            endpoints = [new.endpoint, newer.endpoint, old.endpoint]
            with reader_of(endpoints, 30) as reader:
                reader.load_state_dict(state)
                rest = list(reader)
                assert len(rest) == 20
                assert all((prob[:, 0] == img.sum(axis=1)).all() for img, prob in rest)


def test_a_state_that_was_loaded_says_its_own_models_not_those_in_use():
    with teacher("model:v1", 1) as one, reader_of(one.endpoint, 30) as reader:
        list(reader)
        state = {**reader.state_dict(), "delivered": 5, "models": ["model:v0"]}
        reader.load_state_dict(state)
        assert reader.state_dict()["models"] == ["model:v0"]


def test_a_state_whose_model_is_gone_ends_with_the_reason():
    with teacher("model:v2", 2) as new, reader_of(new.endpoint, 30) as reader:
        state = {**reader.state_dict(), "delivered": 5, "models": ["model:v1"]}
    with (
        teacher("model:v2", 2) as new,
        reader_of(new.endpoint, 30, no_teacher_timeout=0.5) as reader,
    ):
        reader.load_state_dict(state)
        with pytest.raises(NoTeacherError, match="model:v2, this epoch's is model:v1"):
            list(reader)
