"""The stream of membership: complete at once, current after every change, whatever etcd does."""

import json
import threading

import pytest

from edl.discovery import Etcd, Membership, list_nodes
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


# --- many, and strange ones -----------------------------------------------------------------------


def test_a_key_that_is_not_utf8_blinds_nobody(etcd, service, watching):
    strange = f"{nodes_prefix(service)}".encode() + b"\xff\xfe:1"
    etcd.call(lambda client: client.put(strange, b"\xff"))
    put(etcd, service, "a:1")
    log = watching(etcd, service)
    eventually(lambda: log.is_now("a:1"))
    etcd.call(lambda client: client.put(strange, "again"))
    put(etcd, service, "b:1")
    eventually(lambda: log.is_now("a:1", "b:1"))
    etcd.call(lambda client: client.delete(strange))
    delete(etcd, service, "a:1")
    eventually(lambda: log.is_now("b:1"))
    assert list_nodes(etcd, service)[0] == {"b:1": "{}"}


def test_a_watcher_goes_on_when_its_callback_fails(etcd, service, caplog):
    seen = []

    def on_change(members):
        seen.append(set(members))
        raise RuntimeError("a mistake elsewhere")

    membership = Membership(etcd, service, on_change)
    membership.start()
    eventually(lambda: seen == [set()])
    put(etcd, service, "a:1")
    eventually(lambda: seen[-1] == {"a:1"})
    put(etcd, service, "b:1")
    eventually(lambda: seen[-1] == {"a:1", "b:1"})
    assert "a mistake elsewhere" in caplog.text
    membership.close()


def fill(etcd, service, count, value):
    """``count`` teachers, as many to a transaction as etcd allows."""
    prefix = nodes_prefix(service)
    for first in range(0, count, 128):
        numbers = range(first, min(count, first + 128))

        def put_all(client, numbers=numbers):
            puts = [client.transactions.put(f"{prefix}t{n:05}:1", value) for n in numbers]
            client.transaction(compare=[], success=puts, failure=[])

        etcd.call(put_all)


def test_more_teachers_than_a_message_of_four_megabytes_holds_are_listed_and_watched(
    etcd, service, watching
):
    fill(etcd, service, 14_000, json.dumps({"feeds": "x" * 300}))
    assert len(list_nodes(etcd, service)[0]) == 14_000
    log = watching(etcd, service)
    eventually(lambda: log.snapshots and len(log.snapshots[-1]) == 14_000)
    etcd.call(lambda client: client.delete_prefix(nodes_prefix(service)))
    eventually(log.is_now)


def test_a_list_in_pages_is_of_one_moment(etcd, service):
    """A teacher that moves to the end while the pages are read is there once."""
    fill(etcd, service, 2500, "{}")
    stop, moved = threading.Event(), 0
    prefix = nodes_prefix(service)

    def move():
        nonlocal moved
        at = "a:1"
        put(etcd, service, at)
        while not stop.is_set():
            to = "z:1" if at == "a:1" else "a:1"

            def swap(client, at=at, to=to):
                changes = client.transactions
                success = [changes.delete(prefix + at), changes.put(prefix + to, "{}")]
                client.transaction(compare=[], success=success, failure=[])

            etcd.call(swap)
            at, moved = to, moved + 1

    mover = threading.Thread(target=move)
    mover.start()
    try:
        eventually(lambda: moved)
        for _ in range(30):
            found, _ = list_nodes(etcd, service)
            assert len(found.keys() & {"a:1", "z:1"}) == 1
            assert len(found) == 2501
    finally:
        stop.set()
        mover.join()
    assert moved > 30
