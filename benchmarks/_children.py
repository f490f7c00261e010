"""Processes of this directory that are asked in lines of JSON, and answer so."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import Any

from _teachers import ROOT

from edl import _process

#: Seconds in which a child has to be ready, and to answer.
READY_WITHIN, ANSWER_WITHIN = 180.0, 300.0


class NotReady(Exception):
    """A child that does not start; says why."""


class Child:
    """``python -m`` with these words. Its first line is "ready", or what went wrong."""

    def __init__(self, *words: str, python: str = sys.executable) -> None:
        self._process = _process.start(
            [python, "-W", "ignore", "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT / "benchmarks",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Raises NotReady."""
        said = self._read(READY_WITHIN)
        if said != "ready":
            raise NotReady(said)

    def ask(self, *question: Any) -> Any:
        self.tell(*question)
        return self.hear()

    def tell(self, *question: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """The answer. Raises SystemExit with what the child has said in place of one."""
        said = self._read(ANSWER_WITHIN)
        if isinstance(said, str):
            raise SystemExit(f"a process of this benchmark has failed: {said}")
        return said

    def _read(self, within: float) -> Any:
        """A line; text in place of an answer says what went wrong."""
        assert self._process.stdout is not None
        # A child says one line at a time, so that nothing is left in the buffer.
        if not select.select([self._process.stdout], [], [], within)[0]:
            return f"it has said nothing for {within:.0f} s"
        return json.loads(self._process.stdout.readline() or b'"it has ended"')

    def close(self) -> None:
        """Let it end by itself, so that it ends what it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
