"""Before a fork, the threads have ended that are ending, for the system, too."""

import logging
import threading
import time

import pytest

from edl import _forking
from edl._forking import note_thread, wait_for_ending_threads
from tests.support.processes import eventually
from tests.support.threads import SlowEnds


@pytest.fixture(autouse=True)
def only_these(monkeypatch):
    monkeypatch.setattr(_forking, "_noted", {})


NEVER, AT_ONCE = threading.Event(), threading.Event()
AT_ONCE.set()


def started(target, told=NEVER):
    thread = threading.Thread(target=target, name="test-thread", daemon=True)
    thread.start()
    note_thread(thread, told, threading.Event.is_set)
    return thread


def took(timeout):
    """Seconds of the wait."""
    before = time.monotonic()
    wait_for_ending_threads(timeout)
    return time.monotonic() - before


def test_a_thread_is_waited_for_until_the_system_has_ended_it():
    slow = SlowEnds(1.0)
    thread = started(slow.here)
    eventually(lambda: not thread.is_alive())
    assert slow.ending() == [thread]
    assert took(60.0) < 30.0
    assert slow.ending() == []


def test_so_is_one_that_has_been_told_to_end(caplog):
    told, ended = threading.Event(), []

    def go_on():
        told.wait()
        time.sleep(0.3)
        ended.append(True)

    started(go_on, told)
    wait_for_ending_threads(60.0)
    assert not ended, "nobody has told it"
    told.set()
    wait_for_ending_threads(60.0)
    assert ended
    assert caplog.text == ""


def test_one_that_does_not_end_is_named_once_and_waited_for_no_more(caplog):
    release = threading.Event()
    busy = started(release.wait, AT_ONCE)
    slow = SlowEnds(1.0)
    started(slow.here)
    with caplog.at_level(logging.WARNING):
        assert took(0.1) >= 0.1
    assert "have not ended in 0 s: test-thread; if a worker hangs" in caplog.text
    caplog.clear()
    assert took(60.0) < 30.0
    assert slow.ending() == [], "the others are waited for all the same"
    assert caplog.text == ""
    release.set()
    busy.join()


def test_a_thread_does_not_wait_for_itself():
    done = []

    def fork():
        note_thread(threading.current_thread(), AT_ONCE, threading.Event.is_set)
        done.append(took(60.0))

    started(fork).join()
    assert done[0] < 30.0


def test_threads_that_are_gone_are_forgotten():
    for _ in range(300):
        started(lambda: None).join()
    wait_for_ending_threads(60.0)
    assert len(_forking._noted) == 0
    for _ in range(300):
        started(lambda: None).join()
    eventually(lambda: len(_forking._noted) < 300)
