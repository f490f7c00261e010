"""Processes that we start, and how one is told to stop."""

import os
import signal
import subprocess
import sys
import textwrap

from edl import _process
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


#: What C libraries ask to be told of a fork by; gRPC starts its threads again then.
FORKS = """
    import ctypes, subprocess, sys
    from edl import _process
    forks = []
    count = ctypes.CFUNCTYPE(None)(lambda: forks.append(1))
    ctypes.CDLL(None).__register_atfork(count, None, None, None)
    {}
    print(len(forks))
"""


def forks_of(statement):
    program = textwrap.dedent(FORKS).format(statement)
    return int(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT))


def test_no_library_takes_a_program_that_is_started_for_a_process_of_its_own():
    assert forks_of("_process.start(['true']).wait()") == 0
    assert forks_of("_process.start(['true'], stdout=subprocess.DEVNULL, env={}).wait()") == 0
    assert forks_of("subprocess.Popen(['true'], preexec_fn=lambda: None).wait()") == 1


PARENT = """
    import sys, time
    from edl import _process
    process = _process.start([sys.executable, "-c", "print('here', flush=True); input()"])
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_a_program_that_is_started_dies_with_who_has_started_it():
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    said = {parent.stdout.readline(), parent.stdout.readline()} - {"here\n"}
    (pid,) = map(int, said)
    assert os.getsid(pid) == pid  # a Ctrl-C in the terminal is not for it
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == ""  # which it has open until it ends


def test_a_program_is_not_begun_if_who_has_started_it_is_gone_already():
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    late = [sys.executable, "-c", _process._BECOME, str(nobody.pid), "echo", "begun"]
    assert subprocess.check_output(late) == b""


def test_a_program_that_is_started_has_what_it_is_given(tmp_path):
    process = _process.start(
        ["sh", "-c", "cat; pwd; echo $WORD"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd=tmp_path, env={"WORD": "given", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert process.communicate("said\n") == (f"said\n{tmp_path}\ngiven\n", None)
    assert process.returncode == 0
