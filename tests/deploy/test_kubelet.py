"""The trial of deploy/kubernetes, with TLS and a token, run as a kubelet would run it: students
train, teachers are scaled to the number wanted, a machine is drained, and nothing is lost.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
import trustme

from edl.discovery import Etcd, list_nodes
from tests.support.kubelet import Cluster
from tests.support.manifests import KUBERNETES, need_kubectl, render_folder
from tests.support.processes import ROOT, eventually

pytest.importorskip("paddle")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: As many teachers as this cluster has room for: more pods than that stay pending.
ROOM = 2
BATCHES_PER_EPOCH = 19  # 1200 digits, 64 at a time


@pytest.fixture
def model(tmp_path):
    """The teacher that deploy/Dockerfile puts into the image, trained for less long."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    line = re.search(r"python /opt/edl/(\S+) (.*) /opt/edl/models/digits", dockerfile)
    command = [sys.executable, line[1], *line[2].split(), str(tmp_path / "model"), "--epochs", "1"]
    subprocess.run(command, check=True, timeout=120, cwd=ROOT)
    return tmp_path / "model"


@pytest.fixture
def secrets():
    """As the documentation says to make them."""
    authority = trustme.CA()
    own = authority.issue_cert("edl-teacher.edl.svc")
    tls = {
        "tls.crt": own.cert_chain_pems[0].bytes(),
        "tls.key": own.private_key_pem.bytes(),
        "ca.crt": authority.cert_pem.bytes(),
    }
    return {
        "edl-access": {"EDL_TOKEN": "0123456789abcdef"},
        "edl-teacher-tls": {name: value.decode() for name, value in tls.items()},
    }


@pytest.fixture
def cluster(tmp_path, model, secrets):
    need_kubectl()
    made = []
    here = os.path.relpath(KUBERNETES.resolve(), tmp_path.resolve())
    kind = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    parts = f"resources: [{here}/overlays/trial]\ncomponents: [{here}/components/access]\n"
    (tmp_path / "kustomization.yaml").write_text(kind + parts)
    image = {"/opt/edl/models/digits": model, "/opt/edl/demos": ROOT / "demos"}
    one = Cluster(render_folder(tmp_path), tmp_path / "pods", image, secrets)
    make = one.pod

    def pod(*arguments):
        made.append(make(*arguments))
        return made[-1]

    one.pod = pod
    yield one
    for each in reversed(made):
        each.kill()
    assert {each.name: each.restarts for each in made if each.restarts} == {}


def wanted(balancers):
    """What Prometheus would find: of the one that leads."""
    for balancer in balancers:
        with urllib.request.urlopen(f"http://{balancer.address}:9100/metrics") as page:
            text = page.read().decode()
        found = re.search(r'^edl_teachers_wanted\{service="digits"\} (.*)$', text, re.M)
        if found:
            return int(float(found[1]))
    return None


def shown(dashboard):
    """How many of each the page shows."""
    with urllib.request.urlopen(f"http://{dashboard.address}:8600/events") as events:
        said = next(line for line in events if line.startswith(b"data: "))
    (service,) = json.loads(said[len("data: ") :])["services"].values()
    return {kind: len(service[kind]) for kind in ("teachers", "students")}


def test_students_train_while_teachers_are_scaled_and_a_machine_is_drained(cluster):
    etcd = [cluster.pod("edl-etcd", index) for index in range(3)]
    assert all(node.ready.wait(60) for node in etcd)
    balancers = [cluster.pod("edl-balancer") for _ in range(2)]
    assert all(balancer.ready.wait(60) for balancer in balancers)
    eventually(lambda: wanted(balancers) == 0, 30)

    dashboard = cluster.pod("edl-dashboard")
    students = [cluster.pod("edl-student", index) for index in range(2)]
    teachers = []

    def scaled():
        """Whether there are as many teachers as are wanted, or fit; starts who is missing."""
        number = wanted(balancers)
        if number is not None and len(teachers) < min(number, ROOM):
            teachers.append(cluster.pod("edl-teacher"))
        return number and len(teachers) >= min(number, ROOM)

    def epochs(student):
        logs = (student.directory / "tmp/log").glob("workerlog.*")
        return sum(log.read_text(errors="replace").count("epoch ") for log in logs)

    eventually(scaled, 60)
    assert all(teacher.ready.wait(120) for teacher in teachers)
    eventually(lambda: all(epochs(student) >= 1 for student in students), 120)

    eventually(lambda: shown(dashboard) == {"teachers": len(teachers), "students": 2}, 20)

    with Etcd(f"{etcd[0].address}:2379") as client:
        entries = list_nodes(client, "digits")[0].values()
    assert all(json.loads(entry)["tls"] for entry in entries)

    # The machine with the teacher, an etcd node and the leading balancer is drained.
    leading = next(one for one in balancers if wanted([one]) is not None)
    drained = [teachers.pop(0), etcd[2], leading]
    balancers.remove(leading)
    assert [each.stop() for each in drained] == [0, -signal.SIGTERM, 0], "etcd ends by the signal"
    assert all(student.process.poll() is None for student in students), "in the midst of it"
    balancers.append(cluster.pod("edl-balancer"))
    eventually(scaled, 60)

    for student in students:
        assert student.process.wait(200) == 0, student.said()
        (log,) = (student.directory / "tmp/log").glob("workerlog.0")
        said = log.read_text()
        assert "Traceback" not in said
        done = re.findall(r"^epoch (\d+): ", said, re.M)
        assert done == [str(number) for number in range(20)], "without a restart"
        assert re.search(rf"^{20 * BATCHES_PER_EPOCH} batches with soft labels", said, re.M)
    assert all(each.stop() == 0 for each in teachers)
    with Etcd(f"{etcd[0].address}:2379") as client:
        assert list_nodes(client, "digits")[0] == {}
