"""The original, paddle_edl 0.3.1, in a virtual environment of its own, with a predictor that costs
nothing and transfers nothing.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import tempfile
import venv
from pathlib import Path

ORIGINAL_VENV = Path(tempfile.gettempdir()) / "edl-benchmark-original"

ORIGINAL = """
import json, resource, sys, time, types, logging
import numpy as np
sys.modules["paddle_serving_client"] = types.SimpleNamespace(Client=None)  # is replaced
from paddle_edl.distill import distill_worker, distill_reader
logging.disable(logging.CRITICAL)
distill_worker._NOP_PREDICT_TEST = True
shape, count, teachers = json.loads(sys.argv[1])
def source():
    image, label = np.zeros((32, *shape), np.float32), np.zeros((32, 1), np.int64)
    for _ in range(count + 1):
        yield image, label
reader = distill_reader.DistillReader(ins=["img", "label"], predicts=["prob"])
reader.set_serving_conf_file(sys.argv[2])
reader.set_teacher_batch_size(32)
reader.set_fixed_teacher(["127.0.0.1:%d" % (9000 + n) for n in range(teachers)])
reader.set_batch_generator(source)
for number, _ in enumerate(reader()):
    if number == 0:
        started = time.perf_counter()
print(json.dumps((time.perf_counter() - started) / count), flush=True)
"""


def run_original(shape: tuple, teachers: int, count: int) -> tuple[float, float]:
    """The same for paddle_edl 0.3.1 in its own environment. Raises CalledProcessError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = ORIGINAL_VENV / "original.py"
    script.write_text(ORIGINAL)
    python = [ORIGINAL_VENV / "bin/python", "-E"]  # PYTHONPATH may lead to our own paddle_edl
    process = subprocess.Popen(
        [*python, script, json.dumps([shape, count, teachers]), script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)  # its workers too: they do not end by themselves
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(line), cpu / count


def make_original_environment() -> bool:
    """A virtual environment with paddle_edl 0.3.1; whether that worked."""
    if not (ORIGINAL_VENV / "ready").exists():
        venv.create(ORIGINAL_VENV, with_pip=True, clear=True)
        pip = [ORIGINAL_VENV / "bin/python", "-m", "pip", "install", "-q"]
        for arguments in (["paddle_edl==0.3.1", "--no-deps"], ["six", "numpy"]):
            if subprocess.run([*pip, *arguments], check=False).returncode:
                return False
        (ORIGINAL_VENV / "ready").touch()
    return True
