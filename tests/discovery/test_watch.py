"""The stream of membership: complete at once, current after every change, whatever etcd does."""

import pytest

from edl.discovery import Etcd, Membership
from edl.discovery.embedded import EmbeddedEtcd
from edl.discovery.keys import nodes_prefix
from tests.support.processes import eventually


class Log:
    """Remembers every snapshot."""

    def __init__(self):
        self.snapshots = []

    def __call__(self, members):
        self.snapshots.append(members)

    def is_now(self, *endpoints):
        return bool(self.snapshots) and set(self.snapshots[-1]) == set(endpoints)


@pytest.fixture
def watching():
    """watching(etcd, service): a Log that follows it."""
    opened = []

    def watch(etcd, service):
        log = Log()
        membership = Membership(etcd, service, log)
        membership.start()
        opened.append(membership)
        return log

    yield watch
    for membership in opened:
        membership.close()


def put(etcd, service, *endpoints, value="{}"):
    for endpoint in endpoints:
        etcd.call(lambda client, e=endpoint: client.put(nodes_prefix(service) + e, value))


def delete(etcd, service, endpoint):
    etcd.call(lambda client: client.delete(nodes_prefix(service) + endpoint))


def test_the_first_snapshot_holds_those_who_are_there(etcd, service, watching):
    put(etcd, service, "a:1", "b:1")
    log = watching(etcd, service)
    eventually(lambda: log.is_now("a:1", "b:1"))
    assert len(log.snapshots) == 1


def test_joins_leaves_and_changes_are_reported_one_by_one(etcd, service, watching):
    log = watching(etcd, service)
    eventually(log.is_now)
    put(etcd, service, "a:1")
    eventually(lambda: log.is_now("a:1"))
    put(etcd, service, "a:1", value="new")
    eventually(lambda: log.snapshots[-1] == {"a:1": "new"})
    delete(etcd, service, "a:1")
    eventually(log.is_now)


def test_other_services_are_not_mixed_in(etcd, service, watching):
    log = watching(etcd, service)
    put(etcd, service + "_more", "x:1")
    put(etcd, service, "a:1")
    eventually(lambda: log.is_now("a:1"))
    assert all("x:1" not in snapshot for snapshot in log.snapshots)


def test_a_dead_process_leaves_with_its_lease(etcd, service, watching):
    lease = etcd.call(lambda client: client.lease(1))
    etcd.call(lambda client: client.put(nodes_prefix(service) + "a:1", "", lease=lease))
    log = watching(etcd, service)
    eventually(lambda: log.is_now("a:1"))
    eventually(log.is_now)


def test_members_stand_while_etcd_is_away_and_are_compared_when_it_is_back(tmp_path, watching):
    server = EmbeddedEtcd(tmp_path)
    with server, Etcd(server.endpoint) as etcd:
        put(etcd, "s", "a:1", "b:1")
        log = watching(etcd, "s")
        eventually(lambda: log.is_now("a:1", "b:1"))
        server.kill()
        assert log.is_now("a:1", "b:1")
        server.start()
        delete(etcd, "s", "a:1")
        put(etcd, "s", "c:1")
        eventually(lambda: log.is_now("b:1", "c:1"))
        put(etcd, "s", "d:1")
        eventually(lambda: log.is_now("b:1", "c:1", "d:1"))


def test_it_starts_without_etcd_and_says_why_nothing_comes(tmp_path, watching):
    server = EmbeddedEtcd(tmp_path)
    server.start()
    server.kill()
    with Etcd(server.endpoint, timeout=1) as etcd:
        log = Log()
        membership = Membership(etcd, "s", log)
        membership.start()
        eventually(lambda: membership.error)
        assert log.snapshots == []
        with server:
            put(etcd, "s", "a:1")
            eventually(lambda: log.is_now("a:1"))
            assert membership.error == ""
            membership.close()


def test_compaction_is_no_harm(etcd, service, watching):
    log = watching(etcd, service)
    for number in range(5):
        put(etcd, service, f"a:{number + 1}")
    _, meta = etcd.call(lambda client: client.get(nodes_prefix(service) + "a:5"))
    etcd.call(lambda client: client.compact(meta.mod_revision))
    put(etcd, service, "b:1")
    eventually(lambda: log.is_now("a:1", "a:2", "a:3", "a:4", "a:5", "b:1"))


def test_nothing_is_reported_after_close(etcd, service):
    log = Log()
    membership = Membership(etcd, service, log)
    membership.start()
    eventually(log.is_now)
    membership.close()
    put(etcd, service, "a:1")
    assert log.is_now()
