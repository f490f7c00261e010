"""What ``edl.serving`` offers, without importing a server before one is asked for."""

import subprocess
import sys

import edl.serving
from tests.support.processes import ROOT


def test_every_public_name_is_there_and_no_other():
    for name in edl.serving.__all__:
        assert getattr(edl.serving, name) is not None
    assert not hasattr(edl.serving, "nothing")


def test_a_student_imports_no_server():
    code = "import sys, edl.serving; print('edl.serving.server.server' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert said.stdout == b"False\n"
