"""What ``edl teacher`` announces, and how it ends before it has begun."""

import signal
import socket
import time

import numpy as np
import pytest

from edl.discovery import list_nodes
from edl.discovery.embedded import free_port
from edl.errors import TeacherUnreachable
from edl.serving import TeacherClient
from tests.support.processes import alive, children_of, edl, eventually, python_teacher

IMG = {"img": np.ones((1, 3), "f4")}


def host_of(endpoint):
    return endpoint.rpartition(":")[0]


def test_a_teacher_on_all_addresses_announces_the_name_of_its_machine():
    with python_teacher("Sums", "--host", "0.0.0.0") as teacher:
        assert host_of(teacher.endpoint) == socket.gethostname()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_or_the_address_that_it_reaches_etcd_from(host, etcd_server, etcd, service):
    where = ("--etcd", etcd_server.endpoint, "--service", service)
    with python_teacher("Sums", "--host", host, *where) as teacher:
        assert host_of(teacher.endpoint) == "127.0.0.1"
        assert list(list_nodes(etcd, service)[0]) == [teacher.endpoint]
        with TeacherClient(teacher.endpoint) as client:
            assert client.infer(IMG)["prob"][0, 0] == 3


def test_or_what_it_was_told_to():
    with python_teacher("Sums", "--host", "127.0.0.1", "--advertise", "gpu7.cluster") as teacher:
        assert host_of(teacher.endpoint) == "gpu7.cluster"


def test_a_teacher_whose_address_cannot_be_told_asks_for_it():
    result = edl(
        *("teacher", "--python", "tests.support.predictors:Sums", "--host", "0.0.0.0"),
        *("--etcd", "[::1]:1", "--service", "s"),  # no way there from an IPv4 address
    )
    assert result.returncode == 1
    assert "cannot tell this machine's address; use --advertise" in result.stderr


def test_an_ipv6_address_is_announced_as_clients_read_it():
    with python_teacher("Sums", "--host", "::1") as teacher:
        assert host_of(teacher.endpoint) == "[::1]"
        with TeacherClient(teacher.endpoint) as client:
            assert client.infer(IMG)["prob"][0, 0] == 3


def test_a_teacher_that_is_stopped_while_it_loads_leaves_at_once_and_in_good_order():
    with python_teacher("Hollow", delay=60, wait=False, port=(port := free_port())) as teacher:
        eventually(lambda: listens(port))
        workers = eventually(lambda: children_of(teacher.process.pid))
        started = time.monotonic()
        teacher.kill(signal.SIGTERM)
        assert teacher.wait() == 0
        assert time.monotonic() - started < 10, "it would load for a minute"
        assert teacher.process.stdout.read() == ""
        eventually(lambda: not any(alive(pid) for pid in workers))


def listens(port):
    try:
        TeacherClient(f"127.0.0.1:{port}").close()
    except TeacherUnreachable:
        return False
    return True
