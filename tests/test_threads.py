"""Background loops say what goes wrong and go on."""

import threading

from edl._threads import Loop
from tests.support.processes import eventually


def test_a_step_that_fails_is_logged_once_and_the_loop_goes_on(caplog):
    steps = []

    def step():
        steps.append(threading.current_thread().name)
        raise RecursionError("too deep")

    loop = Loop("edl-test", step, 0.001)
    loop.start()
    eventually(lambda: len(steps) > 5)
    loop.stop()
    assert loop.join(1.0)
    assert set(steps) == {"edl-test"}
    assert caplog.text.count("edl-test failed and goes on: RecursionError: too deep") == 1


def test_what_is_to_be_done_at_the_end_keeps_nobody_waiting():
    release, finished = threading.Event(), []

    def finish():
        release.wait()
        finished.append(threading.current_thread().name)

    loop = Loop("edl-test", lambda: None, 60.0, finish)
    loop.start()
    loop.stop()
    assert not loop.join(0.05)
    release.set()
    assert loop.join(1.0)
    assert finished == ["edl-test"]


def test_it_ends_from_within_a_step():
    loop = Loop("edl-test", lambda: (loop.stop(), loop.join(1.0)), 0.0)
    loop.start()
    assert loop.join(1.0)
