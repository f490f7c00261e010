"""etcd as it is in production: three nodes of which some fail, users, TLS; and frozen processes."""

import signal
import subprocess
import sys
import time

import pytest
import trustme

from edl.discovery import (
    Balancer,
    Etcd,
    Membership,
    Participation,
    Registration,
    StudentRecord,
    list_nodes,
)
from edl.discovery._etcd3 import etcd3
from edl.discovery.etcd import Credentials
from edl.errors import ConfigError, DiscoveryError
from tests.support.etcd_cluster import Cluster, Member, answers, free_port
from tests.support.processes import eventually, python_teacher

HOST = "10.0.0.1:9000"


class Sight:
    """What a membership reports."""

    def __init__(self, etcd, service):
        self.members = {}
        self.membership = Membership(etcd, service, self._on_change)
        self.membership.start()

    def _on_change(self, members):
        self.members = members


def is_there(etcd):
    try:
        return HOST in list_nodes(etcd, "s")[0]
    except DiscoveryError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_three_nodes_may_die_or_freeze_even_the_leader(tmp_path, signum):
    with Cluster(tmp_path) as cluster, Etcd(cluster.endpoints, timeout=1.0) as etcd:
        assigned = []
        student = Participation(etcd, "s", "a", StudentRecord(), assigned.append)
        registration = Registration(etcd, "s", HOST, "{}", ttl=5)
        second = Registration(etcd, "s", "10.0.0.2:9000", "{}", ttl=5)
        sight = Sight(etcd, "s")
        try:
            registration.start()
            student.start()
            eventually(lambda: sight.members == {HOST: "{}"} and assigned[-1:] == [{HOST}])

            cluster.leader().kill(signum)
            second.start(patience=30)
            eventually(lambda: sight.members.keys() == {HOST, "10.0.0.2:9000"}, 40)
            eventually(lambda: assigned[-1] == {HOST, "10.0.0.2:9000"}, 40)
            time.sleep(6)
            assert HOST in list_nodes(etcd, "s")[0], "its lease was kept alive"
        finally:
            for ending in (second.stop, student.close, registration.stop, sight.membership.close):
                ending()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_without_a_quorum_nothing_is_lost_and_everything_goes_on_with_it(tmp_path):
    with Cluster(tmp_path) as cluster, Etcd(cluster.endpoints, timeout=1.0) as etcd:
        registration = Registration(etcd, "s", HOST, "{}", ttl=3)
        registration.start()
        sight = Sight(etcd, "s")
        balancer = Balancer(etcd, "s", ttl=2, eager=True)
        balancer.start()
        eventually(lambda: sight.members == {HOST: "{}"} and balancer.leading)
        for member in cluster.members[:2]:
            member.kill()
        eventually(lambda: not balancer.leading, 20)
        time.sleep(4)
        assert sight.members == {HOST: "{}"}, "the last known members stand"
        for member in cluster.members[:2]:
            member.start()
        eventually(lambda: balancer.leading, 30)
        eventually(lambda: is_there(etcd), 30)
        assert sight.members == {HOST: "{}"}
        for ending in (balancer.stop, registration.stop, sight.membership.close):
            ending()


def single(tmp_path, *options, scheme="http"):
    port, peer = free_port(), free_port()
    peers = f"one=http://127.0.0.1:{peer}"
    return Member("one", tmp_path, port, peer, peers, *options, scheme=scheme)


def enable_auth(endpoint):
    """A user root, and a user edl who may do anything under /service/."""
    rpc = etcd3.etcdrpc
    with Etcd(endpoint) as etcd:
        stub = rpc.AuthStub(etcd._client(0).channel)
        stub.UserAdd(rpc.AuthUserAddRequest(name="root", password="r"))
        stub.UserGrantRole(rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        stub.RoleAdd(rpc.AuthRoleAddRequest(name="edl"))
        grant = rpc.AuthRoleGrantPermissionRequest(name="edl")
        grant.perm.permType, grant.perm.key = 2, b"/service/"
        grant.perm.range_end = b"/service0"
        stub.RoleGrantPermission(grant)
        stub.UserAdd(rpc.AuthUserAddRequest(name="edl", password="secret"))
        stub.UserGrantRole(rpc.AuthUserGrantRoleRequest(user="edl", role="edl"))
        stub.AuthEnable(rpc.AuthEnableRequest())


def test_a_user_and_password(tmp_path, monkeypatch):
    member = single(tmp_path)
    member.start()
    try:
        eventually(lambda: answers(member), 30)
        enable_auth(member.endpoint)
        with Etcd(member.endpoint) as stranger, pytest.raises(DiscoveryError, match="user"):
            list_nodes(stranger, "s")
        wrong = Credentials("edl", "wrong")
        with Etcd(member.endpoint, credentials=wrong) as etcd, pytest.raises(DiscoveryError):
            list_nodes(etcd, "s")
        monkeypatch.setenv("EDL_ETCD_USER", "edl")
        monkeypatch.setenv("EDL_ETCD_PASSWORD", "secret")
        with Etcd(member.endpoint) as etcd:
            registration = Registration(etcd, "s", HOST, "{}", ttl=5)
            registration.start()
            sight = Sight(etcd, "s")
            eventually(lambda: sight.members == {HOST: "{}"})
            member.kill()  # tokens do not survive that
            member.start()
            eventually(lambda: is_there(etcd), 20)
            registration.stop()
            eventually(lambda: sight.members == {}, 20)
            sight.membership.close()
    finally:
        member.close()


def test_tls_with_certificates_of_both_sides(tmp_path):
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("student.example")
    files = {}
    for name, blob in (
        ("ca", authority.cert_pem),
        ("server", server.cert_chain_pems[0]),
        ("server_key", server.private_key_pem),
        ("client", client.cert_chain_pems[0]),
        ("client_key", client.private_key_pem),
    ):
        files[name] = str(tmp_path / f"{name}.pem")
        blob.write_to_path(files[name])
    member = single(
        tmp_path,
        *("--cert-file", files["server"], "--key-file", files["server_key"]),
        *("--client-cert-auth", "--trusted-ca-file", files["ca"]),
        scheme="https",
    )
    credentials = Credentials(ca_cert=files["ca"], cert=files["client"], key=files["client_key"])
    member.start()
    try:
        eventually(lambda: answers(member, credentials=credentials), 30)
        with Etcd(f"https://{member.endpoint}", credentials=credentials) as etcd:
            registration = Registration(etcd, "s", HOST, "{}")
            registration.start()
            assert HOST in list_nodes(etcd, "s")[0]
            registration.stop()
        for lacking in (Credentials(), Credentials(ca_cert=files["ca"])):
            with Etcd(member.endpoint, timeout=1.0, credentials=lacking) as etcd:
                with pytest.raises(DiscoveryError):
                    list_nodes(etcd, "s")
    finally:
        member.close()


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"EDL_ETCD_USER": "me"}, "go together"),
        ({"EDL_ETCD_CERT": "a"}, "go together"),
        ({"EDL_ETCD_CERT": "a", "EDL_ETCD_KEY": "b"}, "CERT and EDL_ETCD_KEY need EDL_ETCD_CA_"),
        ({"EDL_ETCD_CA_CERT": "/no/such.pem"}, "'/no/such.pem' does not exist"),
    ],
)
def test_credentials_that_cannot_be_are_refused(monkeypatch, variables, complaint):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=complaint):
        Etcd("127.0.0.1:2379")


@pytest.mark.slow
def test_a_teacher_that_was_frozen_for_longer_than_its_lease_comes_back(etcd_server, etcd, service):
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 1)
    with python_teacher("Sums", *where) as teacher:
        assert teacher.endpoint in list_nodes(etcd, service)[0]
        teacher.kill(signal.SIGSTOP)
        eventually(lambda: list_nodes(etcd, service)[0] == {})
        teacher.kill(signal.SIGCONT)
        eventually(lambda: teacher.endpoint in list_nodes(etcd, service)[0])


@pytest.mark.slow
def test_a_frozen_process_that_wakes_up_leaves_its_successors_entry_alone(
    etcd_server, etcd, service
):
    where = ("--etcd", etcd_server.endpoint, "--service", service, "--ttl", 1)
    with python_teacher("Sums", *where, verbose=False) as stale:
        stale.kill(signal.SIGSTOP)
        eventually(lambda: list_nodes(etcd, service)[0] == {})
        successor = Registration(etcd, service, stale.endpoint, "the successor", ttl=2)
        successor.start()
        stale.kill(signal.SIGCONT)
        time.sleep(2.5)
        assert list_nodes(etcd, service)[0] == {stale.endpoint: "the successor"}
        stale.kill(signal.SIGTERM)
        assert stale.wait() == 0
        assert list_nodes(etcd, service)[0] == {stale.endpoint: "the successor"}
        successor.stop()


@pytest.mark.slow
def test_a_frozen_leader_that_wakes_up_steps_down(etcd_server, etcd, service):
    command = ["-m", "edl.cli.main", "balancer", "--etcd", etcd_server.endpoint]
    process = subprocess.Popen(
        [sys.executable, *command, "--service", service],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == f"balancing {service}\n"
        sight = eventually(lambda: etcd.call(lambda c: c.get(f"/service/{service}/leader")[0]))
        process.send_signal(signal.SIGSTOP)
        other = Balancer(etcd, service, eager=True)
        other.start()
        eventually(lambda: other.leading, 20)
        process.send_signal(signal.SIGCONT)
        time.sleep(1.0)
        assert etcd.call(lambda c: c.get(f"/service/{service}/leader")[0]) != sight
        assert other.leading
        other.stop()
        eventually(lambda: etcd.call(lambda c: c.get(f"/service/{service}/leader")[0]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
