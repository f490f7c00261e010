"""How a process is told to stop."""

import signal
import subprocess
import sys
import textwrap

from tests.support.processes import ROOT

PROGRAM = """
    import sys
    from edl._process import stop_event
    stop = stop_event()
    print("ready", flush=True)
    stop.wait()
    print("stopping", flush=True)
    sys.stdin.read()  # until the test has said all it has to say
"""


def test_a_signal_that_comes_twice_stops_it_once_and_in_silence():
    """As Ctrl-C does, where a shell and what started it both pass it on."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    for signum in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(signum)
    out, err = process.communicate("", timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
