"""Running demos/resnet in processes of its own."""

import contextlib
import json
import os
import subprocess
import sys

from tests.support.processes import ROOT, Teacher

DEMO = ROOT / "demos" / "resnet"
NETWORK = "shufflenet_v2_x0_25"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2"}
EDL = ("-m", "edl.cli.main")


def python(*arguments):
    """A Python process in the demo's directory, its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        cwd=DEMO, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process, timeout=200):
    """What it wrote, when it has ended well."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


def steps(directory, rank=0):
    """[(epoch, samples seen, loss)] in the order in which they were written."""
    path = directory / f"losses-{rank}.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [(line["epoch"], line["seen"], line["loss"]) for line in lines]


def losses(directory, rank=0):
    """{(epoch, samples seen): loss}; of a step that was done twice, the later one."""
    return {(epoch, seen): loss for epoch, seen, loss in steps(directory, rank)}


@contextlib.contextmanager
def cluster_of(model, etcd_server, service):
    """start(): one more teacher in the service; start.address: where students find them."""
    teachers = []

    def start():
        where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 2)
        teachers.append(Teacher("--model", model, *where, verbose=False))
        return teachers[-1]

    start.address = f"etcd://{etcd_server.endpoint}/{service}"
    try:
        yield start
    finally:
        for teacher in teachers:
            teacher.close()
