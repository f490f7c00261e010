"""Looking at a registry and asking everybody, once after the other."""

import asyncio
import contextlib
import json
import threading

import numpy as np
import pytest

from edl.discovery import Registration
from edl.discovery.keys import NODES, service_prefix
from edl.errors import ConfigError, EdlError
from edl.serving import TeacherClient
from edl.serving.client.tls import Trust
from edl.view import observer
from edl.view.observer import observe
from edl.view.targets import Access
from tests.support.processes import python_teacher

NOTHING = Access(Trust(), token="")


def look(etcd, service, until, looks=400, access=NOTHING):
    """The first snapshot of the service of which ``until`` is true."""

    async def run():
        snapshots = observe(etcd, service, access, period=0.05)
        try:
            for _ in range(looks):
                seen = await snapshots.__anext__()
                if seen.services and until(seen.services[0]):
                    return seen
        finally:
            await snapshots.aclose()
        raise AssertionError("it was not seen")

    return asyncio.run(run())


def registered(etcd, service, endpoint):
    entry = json.dumps({"protocol": "baidu_std", "device": "cpu"})
    registration = Registration(etcd, service, endpoint, entry)
    registration.start()
    return registration


def test_a_real_teacher_that_fails_is_quoted(etcd, service):
    with python_teacher("Fragile") as teacher:
        there = registered(etcd, service, teacher.endpoint)
        ended = threading.Event()

        def ask():
            client = TeacherClient(teacher.endpoint)
            while not ended.wait(0.01):
                with contextlib.suppress(EdlError):
                    client.infer({"img": -np.ones((1, 4), np.float32)})
            client.close()

        asking = threading.Thread(target=ask)
        asking.start()
        seen = look(etcd, service, lambda one: any(t.errors and t.words for t in one.teachers))
        ended.set()
        asking.join()
        there.stop()
    (one,) = seen.services[0].teachers
    assert one.errors == 1.0
    assert "negative input" in one.words


def test_a_token_is_shown_to_a_teacher_on_this_machine(etcd, service):
    with python_teacher("Sums", "--token", "s3cret") as teacher:
        there = registered(etcd, service, teacher.endpoint)
        seen = look(etcd, service, lambda one: one.teachers[0].problem)
        assert "wants a token" in seen.services[0].teachers[0].problem
        shown = Access(Trust(), token="s3cret")
        look(etcd, service, lambda one: one.teachers[0].queue == 0.0, access=shown)
        there.stop()


def test_whatever_goes_wrong_it_goes_on_and_says_so(etcd, service, monkeypatch):
    prefix = service_prefix(service) + NODES
    etcd.call(lambda client: client.put(prefix + "10.0.0.1:9292", "{}"))
    broken = []
    real = observer.snapshot

    def failing(*arguments):
        if broken:
            raise KeyError("unexpected")
        return real(*arguments)

    monkeypatch.setattr(observer, "snapshot", failing)

    async def run():
        snapshots = observe(etcd, service, NOTHING, period=0.01)
        while not (await snapshots.__anext__()).services:
            pass
        broken.append(True)
        seen = await snapshots.__anext__()
        broken.clear()
        after = await snapshots.__anext__()
        await snapshots.aclose()
        return seen, after

    seen, after = asyncio.run(run())
    assert seen.problem == "KeyError: 'unexpected'"
    assert len(seen.services[0].teachers) == 1
    assert after.problem == ""
    etcd.call(lambda client: client.delete(prefix + "10.0.0.1:9292"))


def test_a_service_name_that_cannot_be(etcd):
    with pytest.raises(ConfigError, match="must not be empty or contain"):
        look(etcd, "a/b", lambda one: True)
