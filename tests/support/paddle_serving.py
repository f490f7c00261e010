"""A real Paddle Serving in real processes: see scripts/paddle-serving."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from edl.discovery.embedded import free_port
from tests.support.processes import ROOT

VENV = Path(os.environ.get("EDL_SERVING_VENV", ROOT / ".venv-serving"))

needs_paddle_serving = pytest.mark.skipif(
    not (VENV / ".installed").is_file(),
    reason="scripts/paddle-serving has set up no Paddle Serving (it needs Python 3.9)",
)


def run(script, *arguments, timeout=100):
    """Run a script of tests/support with Paddle Serving's Python; the JSON on its last line."""
    result = subprocess.run(
        [
            VENV / "bin/python",
            "-W",
            "ignore",
            ROOT / "tests/support" / script,
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


class Pipeline:
    """A Python pipeline that hosts a model; ``script`` is given ``--model`` and ``--port``."""

    def __init__(self, script, model, directory, *arguments):
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self._log = (Path(directory) / "pipeline.log").open("w+")
        command = [VENV / "bin/python", "-W", "ignore", ROOT / script, "--model", model]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *map(str, arguments)],
            cwd=directory,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until_ready(self, timeout=90.0):
        import grpc

        deadline = time.monotonic() + timeout
        with grpc.insecure_channel(self.endpoint) as channel:
            while True:
                try:
                    grpc.channel_ready_future(channel).result(1.0)
                    return self
                except grpc.FutureTimeoutError:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        self._log.seek(0)
                        raise AssertionError(self._log.read()[-5000:]) from None

    def signal(self, signum):
        os.killpg(self.process.pid, signum)

    def close(self):
        try:
            self.signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._log.close()

    def __enter__(self):
        return self.wait_until_ready()

    def __exit__(self, *_):
        self.close()
