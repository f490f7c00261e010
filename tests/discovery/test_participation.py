"""A student comes, says what it sees, and goes, whatever etcd does meanwhile."""

import contextlib
import json
import os
import signal
import threading
import time

import pytest

from edl.discovery import Etcd, Registration, StudentRecord, list_nodes
from edl.discovery.embedded import EmbeddedEtcd
from edl.discovery.keys import service_prefix
from edl.discovery.watch import list_prefix
from edl.distill.teachers import service_teachers
from tests.support.processes import eventually

HOST = "10.0.0.1:9000"


def ours(*names):
    """Names of this process's threads that EDL or gRPC started."""
    return sorted(
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("edl-") or "channel_spin" in thread.name
    )


def connections(endpoint):
    """How many TCP connections this process has to a port."""
    port = f":{int(endpoint.rpartition(':')[2]):04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    inodes = {row[9] for row in rows if row[2].endswith(port)}
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link)[8:-1] in inodes for link in links if os.path.islink(link))


@pytest.fixture
def frozen():
    """An etcd of one's own, and a way to freeze it."""
    with EmbeddedEtcd() as server:
        pid = server.pid
        yield server, lambda: os.kill(pid, signal.SIGSTOP)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def join(server, found, assigned, service="s"):
    teachers = service_teachers(server.endpoint, service)
    return teachers.join("a", StudentRecord(), found.append, assigned.append)


def test_closing_withdraws_the_student_before_it_returns(etcd_server, etcd, service):
    assigned = []
    student = join(etcd_server, [], assigned, service)
    prefix = service_prefix(service)
    eventually(lambda: {"students/a", "leader"} <= list_prefix(etcd, prefix)[0].keys())
    student.close()
    assert not {"students/a", "leader"} & list_prefix(etcd, prefix)[0].keys()


@pytest.mark.parametrize("ending", [signal.SIGCONT, signal.SIGKILL])
def test_closing_takes_a_second_with_a_frozen_etcd_and_leaves_nothing_behind(frozen, ending):
    server, freeze = frozen
    before = ours()
    found, assigned = [], []
    with Etcd(server.endpoint) as etcd:
        teacher = Registration(etcd, "s", HOST, "{}")
        teacher.start()
        student = join(server, found, assigned)
        eventually(lambda: assigned[-1:] == [{HOST}] and found)
        freeze()
        time.sleep(0.5)
        for close in (student.close, teacher.stop):
            started = time.monotonic()
            close()
            assert time.monotonic() - started < 1.5
        count = len(found) + len(assigned)
    if ending == signal.SIGKILL:
        server.kill()
    else:
        os.kill(server.pid, ending)
    eventually(lambda: ours() == before)
    eventually(lambda: connections(server.endpoint) == 0)
    assert len(found) + len(assigned) == count


def test_closing_takes_a_second_when_etcd_has_been_frozen_all_along(frozen):
    server, freeze = frozen
    before = ours()
    freeze()
    student = join(server, [], [])
    time.sleep(0.3)
    started = time.monotonic()
    student.close()
    assert time.monotonic() - started < 1.5
    eventually(lambda: ours() == before)


def test_a_teachers_rate_is_beside_its_entry_and_changes_only_by_more_than_noise(etcd, service):
    changes = []
    registration = Registration(etcd, service, HOST, "{}", ttl=1)
    registration.start()
    prefix = service_prefix(service)

    def told():
        value = list_prefix(etcd, prefix)[0].get(f"rates/{HOST}")
        if value not in changes[-1:]:
            changes.append(value)
        return changes[-1] and json.loads(changes[-1])["rate"]

    registration.measured(100.0)
    eventually(lambda: told() == 100)
    for rate in (110.0, 95.0, 118.0, 85.0):
        registration.measured(rate)
        time.sleep(0.5)
        assert told() == 100
    registration.measured(200.0)
    eventually(lambda: told() == 200)
    assert list_nodes(etcd, service)[0] == {HOST: "{}"}
    etcd.call(lambda client: client.revoke_lease(registration._entry._lease.id))
    eventually(lambda: HOST in list_nodes(etcd, service)[0])
    eventually(lambda: told() == 200)
    registration.stop()
    assert list_prefix(etcd, prefix)[0] == {}
