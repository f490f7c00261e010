"""The page about access is right: its certificates work, and so do its roles in etcd, with which
nobody may do more than they are for.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from edl.cli import main
from edl.cli.inspection import OK, check_etcd
from edl.discovery import Balancer, Etcd
from edl.discovery._etcd3 import etcd3
from edl.discovery.embedded import etcd_binary, free_port
from edl.discovery.etcd import Credentials
from edl.distill import DistillReader
from edl.errors import DiscoveryError
from edl.serving import TeacherClient, Trust
from tests.docs.pages import blocks, commands
from tests.support.etcd_cluster import Member, answers
from tests.support.processes import ROOT, edl, eventually, python_teacher

PAGE = "docs/how-to/access.md"
COMMANDS = main.edl.list_commands(click.Context(main.edl))
SERVICE = "resnet_teacher"
PREFIX = f"/service/{SERVICE}"


def shell(word):
    """The page's commands in its shell blocks that begin with a word."""
    return [
        words
        for block in blocks(PAGE, "bash")
        for words in commands(block.code)
        if words[0] == word
    ]


# --- certificates ---------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the command openssl")
def test_the_certificates_that_the_page_makes_are_believed(tmp_path):
    code = next(block.code for block in blocks(PAGE, "bash") if "openssl req" in block.code)
    subprocess.run(["bash", "-euc", code], cwd=tmp_path, check=True, capture_output=True)
    files = [str(tmp_path / name) for name in ("teacher.pem", "teacher-key.pem")]
    with python_teacher("Sums", "--tls-cert", files[0], "--tls-key", files[1]) as teacher:
        with TeacherClient(teacher.endpoint, trust=Trust(str(tmp_path / "ca.pem"))) as client:
            assert client.infer({"img": np.ones((1, 3), "f4")})["prob"][0, 0] == 3


# --- etcd's users ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def passwords():
    """Of the page's users."""
    return dict(words[3].split(":") for words in shell("etcdctl") if words[1:3] == ["user", "add"])


@pytest.fixture(scope="module")
def etcd_with_users(tmp_path_factory):
    """The endpoint of an etcd that was told what the page says."""
    ports = free_port(), free_port()
    peers = f"m=http://127.0.0.1:{ports[1]}"
    member = Member("m", tmp_path_factory.mktemp("etcd"), *ports, peers)
    member.start()
    try:
        eventually(lambda: answers(member), 30)
        etcdctl = Path(etcd_binary()).with_name("etcdctl")
        environment = {**os.environ, "ETCDCTL_ENDPOINTS": member.endpoint, "ETCDCTL_API": "3"}
        for words in shell("etcdctl"):
            command = [str(etcdctl), *words[1:]]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            assert not done.returncode, f"{shlex.join(words)}: {done.stderr}"
        yield member.endpoint
    finally:
        member.close()


@pytest.fixture
def as_user(passwords, monkeypatch):
    """Programs and readers that are made from then on are this user's."""

    def become(user):
        monkeypatch.setenv("EDL_ETCD_USER", user)
        monkeypatch.setenv("EDL_ETCD_PASSWORD", passwords[user])

    return become


@contextlib.contextmanager
def balancer(*arguments):
    """``edl balancer``, as the environment's user."""
    command = [sys.executable, "-m", "edl.cli.main", "balancer", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("balancing")
        yield
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def test_everything_runs_with_exactly_these_roles(etcd_with_users, as_user):
    with contextlib.ExitStack() as stack:
        as_user("teacher")
        arguments = ("--etcd", etcd_with_users, "--service", SERVICE)
        teachers = [stack.enter_context(python_teacher("Sums", *arguments)) for _ in range(2)]
        as_user("balancer")
        stack.enter_context(balancer(*arguments))
        as_user("student")
        reader = stack.enter_context(DistillReader(["img"], ["prob"], max_teachers=1))
        reader.set_dynamic_teacher(etcd_with_users, SERVICE, require_max_teacher=1)
        reader.set_batch_generator(lambda: iter([[np.ones((4, 3), "f4")]] * 400))
        batches = iter(reader())
        rows = len(next(batches)[0])
        as_user("view")

        def seen():
            done = edl("ls", "--etcd", etcd_with_users, "--service", SERVICE, "--json")
            assert not done.returncode, done.stderr
            service = json.loads(done.stdout)[SERVICE]
            students = service["students"].values()
            return service if any(student["teachers"] for student in students) else None

        service = eventually(seen, 30)
        if "top" in COMMANDS:
            done = edl("top", "--etcd", etcd_with_users, "--service", SERVICE, "--once")
            assert not done.returncode, done.stderr
            assert all(teacher.endpoint in done.stdout for teacher in teachers)
        rows += sum(len(batch[0]) for batch in batches)
    assert rows == 1600
    assert service["teachers"].keys() == {teacher.endpoint for teacher in teachers}


@pytest.mark.parametrize(
    ("user", "forbidden"),
    [
        ("teacher", ["students/x", "assignments/x", "leader", "balance", "labelling/j/1"]),
        ("student", ["nodes/h:1", "rates/h:1", "assignments/x", "leader", "balance"]),
        ("balancer", ["nodes/h:1", "rates/h:1", "students/x", "labelling/j/1"]),
        ("view", ["nodes/h:1", "students/x", "assignments/x", "leader", "balance"]),
        ("labeller", ["nodes/h:1", "assignments/x", "leader", "balance"]),
    ],
)
def test_nobody_writes_or_removes_what_is_anothers(etcd_with_users, passwords, user, forbidden):
    with Etcd(etcd_with_users, credentials=Credentials(user, passwords[user])) as etcd:
        for key in [*(f"{PREFIX}/{key}" for key in forbidden), "/service/other/nodes/h:1"]:
            with pytest.raises(DiscoveryError, match="permission denied"):
                etcd.call(lambda client, key=key: client.put(key, "{}"))
            with pytest.raises(DiscoveryError, match="permission denied"):
                etcd.call(lambda client, key=key: client.delete(key))


def test_nor_ends_anothers_lease(etcd_with_users, passwords):
    """A lease's end removes its keys, whoever asks for it."""
    student, teacher = (
        Etcd(etcd_with_users, credentials=Credentials(user, passwords[user]))
        for user in ("student", "teacher")
    )
    with student, teacher:
        lease = student.call(lambda client: client.lease(60))
        student.call(lambda client: client.put(f"{PREFIX}/students/s", "{}", lease))
        with pytest.raises(DiscoveryError, match="permission denied"):
            teacher.call(lambda client: client.revoke_lease(lease.id))
        found = student.call(lambda client: client.get(f"{PREFIX}/students/s"))
        assert found[0] == b"{}"
        student.call(lambda client: client.revoke_lease(lease.id))


def test_a_student_that_may_not_balance_leaves_it_to_others_and_no_leases(
    etcd_with_users, passwords
):
    with contextlib.ExitStack() as stack:
        root, student = (
            stack.enter_context(Etcd(etcd_with_users, credentials=Credentials(u, passwords[u])))
            for u in ("root", "student")
        )
        before = leases(root)
        balancer = Balancer(student, SERVICE)
        balancer.start()
        eventually(lambda: not balancer.running, 30)
        assert not balancer.leading
        assert leases(root) <= before


def leases(etcd):
    """Of the whole cluster, by number."""
    request = etcd3.etcdrpc.LeaseLeasesRequest()

    def ask(client):
        stub = etcd3.etcdrpc.LeaseStub(client.channel)
        return {each.ID for each in stub.LeaseLeases(request, metadata=client.metadata).leases}

    return etcd.call(ask)


def test_doctor_takes_the_answer_that_it_may_not_for_an_answer(etcd_with_users, as_user):
    as_user("student")
    first, *_ = check_etcd(etcd_with_users)
    assert first.state == OK


def test_without_a_user_nothing_is_read(etcd_with_users):
    with Etcd(etcd_with_users, credentials=Credentials()) as etcd:
        with pytest.raises(DiscoveryError):
            etcd.call(lambda client: client.get(f"{PREFIX}/nodes/h:1"))
