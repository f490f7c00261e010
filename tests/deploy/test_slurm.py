"""docs/how-to/slurm.md: its scripts and its PaddleJob, run here as they are written, but for ports,
devices, and the programs that users bring.
"""

import os
import re
import signal
import subprocess
import sys

import pytest

from edl.discovery.embedded import free_port
from tests.support.processes import ROOT, eventually, python_teacher

pytest.importorskip("paddle")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

PAGE = (ROOT / "docs/how-to/slurm.md").read_text()
BATCHES = 40

#: What users bring: each rank reads its batches, and says so.
TRAIN = f"""
import os, sys
import numpy as np
from edl.distill import DistillReader

teachers = sys.argv[sys.argv.index("--teachers") + 1] if "--teachers" in sys.argv else ""
teachers = teachers or sys.argv[-1].partition("--teachers=")[2]
batches = [(np.full((4, 2), number, "f4"),) for number in range({BATCHES})]
with DistillReader(["img"], ["prob"], source=batches, teachers=teachers) as reader:
    for number, (img, prob) in enumerate(reader):
        assert (prob[:, 0] == 2 * number).all()
rank, ranks = os.environ["PADDLE_TRAINER_ID"], os.environ["PADDLE_TRAINERS_NUM"]
with open(f"rank-{{rank}}-of-{{ranks}}", "w") as file:
    file.write(str(number + 1))
"""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def adapted(text, port):
    """For this machine: another port, a CPU, a rank for each launcher, and a teacher of tests."""
    for there, here in (
        (":2379", f":{port}"),
        ("--port 2379", f"--port {port}"),
        ("--host 0.0.0.0", "--host 127.0.0.1"),
        ("--model teacher_model", "--python tests.support.predictors:Sums"),
        ("--device gpu:0", "--device cpu"),
        ("--nproc_per_node 8", "--nproc_per_node 1"),
    ):
        text = text.replace(there, here)
    return text


@pytest.fixture
def here(tmp_path):
    """Runs a command line in a folder that has what users bring."""
    (tmp_path / "train.py").write_text(TRAIN)
    started = []

    def run(*command, **variables):
        environment = {
            **os.environ,
            "PATH": f"{ROOT / 'tests/support/slurm'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "EDL_TEST_PYTHON": sys.executable,
            **variables,
        }
        process = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def done(directory):
    return {path.name: int(path.read_text()) for path in directory.glob("rank-*")}


BOTH = {"rank-0-of-2": BATCHES, "rank-1-of-2": BATCHES}


def test_the_two_scripts_train_on_two_machines_with_an_array_of_teachers(here, tmp_path):
    port = free_port()
    students_script, teachers_script = blocks("bash")
    for name, script in (("students", students_script), ("teacher", teachers_script)):
        (tmp_path / name).write_text(adapted(script, port))
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    students = here("bash", "students", **slurm)
    eventually((tmp_path / "etcd.address").exists, 60)
    teachers = [here("bash", "teacher", SLURM_NNODES="1") for _ in range(2)]
    assert students.wait(120) == 0
    assert done(tmp_path) == BOTH
    for teacher in teachers:
        teacher.send_signal(signal.SIGTERM)
    assert [teacher.wait(60) for teacher in teachers] == [0, 0]


def test_a_paddle_job_needs_nothing_but_what_the_operator_says(
    here, tmp_path, etcd_server, service
):
    yaml = pytest.importorskip("yaml")
    (job,) = map(yaml.safe_load, blocks("yaml"))
    worker = job["spec"]["paddleReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert (container["name"], container["ports"][0]["name"]) == ("paddle", "master")
    where = ("--etcd", etcd_server.endpoint, "--service", service)
    substitutes = {
        "--nproc_per_node=8": "--nproc_per_node=1",
        "--log_dir=/tmp/log": f"--log_dir={tmp_path / 'log'}",
        "/workspace/train.py": "train.py",
        "--teachers=etcd://edl-etcd:2379/resnet_teacher": (
            f"--teachers=etcd://{etcd_server.endpoint}/{service}"
        ),
    }
    arguments = [substitutes.get(each, each) for each in container["args"]]
    assert len(set(arguments) - set(container["args"])) == len(substitutes)
    # As the operator does: to the first worker its own address, to the others the first one's name.
    said = {"PADDLE_NNODES": str(worker["replicas"]), "PADDLE_JOB_ID": job["metadata"]["name"]}
    port = free_port()
    with python_teacher("Sums", *where, verbose=False):
        own = {"PADDLE_MASTER": f"127.0.0.1:{port}", "POD_IP": "127.0.0.1"}
        name = {"PADDLE_MASTER": f"localhost:{port}", "POD_IP": "127.0.0.2"}
        workers = [here("edl", *arguments, **said, **each) for each in (own, name)]
        assert [worker.wait(120) for worker in workers] == [0, 0]
    assert done(tmp_path) == BOTH
