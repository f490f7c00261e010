"""Entries live as long as their process, and nobody touches another's."""

import threading

import pytest

from edl.discovery import Etcd, Registration, list_nodes
from edl.discovery.embedded import EmbeddedEtcd
from edl.discovery.keys import nodes_prefix
from edl.errors import AlreadyRegistered, ConfigError, EtcdUnavailable
from tests.support.processes import eventually

HOST = "10.0.0.1:9000"


def nodes(etcd, service):
    return list_nodes(etcd, service)[0]


@pytest.fixture
def register(etcd, service):
    """register(value, **options): a started Registration of HOST, stopped at the end."""
    started = []

    def start(value="{}", patience=0.0, **options):
        registration = Registration(etcd, service, HOST, value, **options)
        registration.start(patience)
        started.append(registration)
        return registration

    yield start
    for registration in started:
        registration.stop()


def test_an_entry_is_at_the_originals_key_with_its_value(etcd, service, register):
    register('{"feeds": {}}')
    value, _ = etcd.call(lambda client: client.get(f"/service/{service}/nodes/{HOST}"))
    assert value == b'{"feeds": {}}'


def test_stopping_removes_the_entry(etcd, service, register):
    registration = register()
    registration.stop()
    assert nodes(etcd, service) == {}


def test_an_entry_outlives_its_lease_while_its_process_lives(etcd, service, register):
    register(ttl=2)
    threading.Event().wait(4)
    assert HOST in nodes(etcd, service)


def test_an_unhealthy_teacher_is_withdrawn_and_comes_back(etcd, service, register):
    healthy = threading.Event()
    healthy.set()
    register(ttl=1, healthy=healthy.is_set)
    healthy.clear()
    eventually(lambda: HOST not in nodes(etcd, service))
    healthy.set()
    eventually(lambda: HOST in nodes(etcd, service))


def test_a_live_entry_of_another_process_is_not_overwritten(etcd, service, register):
    register("first")
    with pytest.raises(AlreadyRegistered, match=f"{service}.*{HOST}"):
        register("second")
    assert nodes(etcd, service) == {HOST: "first"}


def test_an_entry_that_a_dead_process_left_is_waited_for(etcd, service, register):
    lease = etcd.call(lambda client: client.lease(2))
    etcd.call(lambda client: client.put(nodes_prefix(service) + HOST, "dead", lease=lease))
    register("alive", patience=10)
    assert nodes(etcd, service) == {HOST: "alive"}


def test_a_lost_lease_is_replaced(etcd, service, register):
    registration = register("mine", ttl=1)
    etcd.call(lambda client: client.revoke_lease(registration._entry._lease.id))
    assert nodes(etcd, service) == {}
    eventually(lambda: nodes(etcd, service) == {HOST: "mine"})


def test_an_entry_that_is_deleted_by_hand_is_written_again(etcd, service, register):
    registration = register("mine", ttl=60)
    etcd.call(lambda client: client.delete(nodes_prefix(service) + HOST))
    assert nodes(etcd, service) == {}
    eventually(lambda: nodes(etcd, service) == {HOST: "mine"})
    registration.update("news")
    eventually(lambda: nodes(etcd, service) == {HOST: "news"})
    registration.stop()
    assert nodes(etcd, service) == {}


def test_an_entry_that_another_has_written_meanwhile_is_that_ones(etcd, service, register, caplog):
    """Also if it says the same, and until it is gone."""
    registration = register("same", ttl=1)
    lease = etcd.call(lambda client: client.lease(60))
    key = nodes_prefix(service) + HOST
    etcd.call(lambda client: client.delete(key))
    etcd.call(lambda client: client.put(key, "same", lease=lease))
    eventually(lambda: "another process holds" in caplog.text)
    registration.update("ours")
    threading.Event().wait(1.5)
    assert nodes(etcd, service) == {HOST: "same"}
    etcd.call(lambda client: client.revoke_lease(lease.id))
    eventually(lambda: nodes(etcd, service) == {HOST: "ours"})


def test_a_process_that_lost_its_entry_neither_overwrites_nor_removes_its_successors(
    etcd, service, register
):
    registration = register("old", ttl=1)
    etcd.call(lambda client: client.revoke_lease(registration._entry._lease.id))
    etcd.call(lambda client: client.put(nodes_prefix(service) + HOST, "new"))
    threading.Event().wait(1.5)
    assert nodes(etcd, service) == {HOST: "new"}
    registration.stop()
    assert nodes(etcd, service) == {HOST: "new"}


def test_a_process_whose_lease_has_just_expired_may_stop(etcd, service, register, caplog):
    registration = register("mine")
    etcd.call(lambda client: client.revoke_lease(registration._entry._lease.id))
    registration.stop()
    assert nodes(etcd, service) == {}
    assert "WARNING" not in caplog.text


def test_who_was_overwritten_by_force_does_not_change_what_is_anothers(etcd, service, register):
    registration = register("mine", ttl=1)
    etcd.call(lambda client: client.put(nodes_prefix(service) + HOST, "another's"))
    registration.update("news")
    threading.Event().wait(1.5)
    assert nodes(etcd, service) == {HOST: "another's"}


def test_an_entry_survives_an_etcd_restart(tmp_path):
    server = EmbeddedEtcd(tmp_path)
    with server, Etcd(server.endpoint) as etcd:
        registration = Registration(etcd, "s", HOST, "value", ttl=2)
        registration.start()
        server.kill()
        threading.Event().wait(1)
        server.start()
        threading.Event().wait(3)
        assert nodes(etcd, "s") == {HOST: "value"}
        registration.stop()


def test_an_entry_comes_back_in_an_etcd_that_lost_everything(tmp_path):
    server = EmbeddedEtcd(tmp_path / "one")
    server.start()
    port = int(server.endpoint.rpartition(":")[2])
    with Etcd(server.endpoint) as etcd:
        registration = Registration(etcd, "s", HOST, "value", ttl=2)
        registration.start()
        server.stop()
        with EmbeddedEtcd(tmp_path / "two", port):
            eventually(lambda: nodes(etcd, "s") == {HOST: "value"}, timeout=20)
            registration.stop()


def test_no_etcd_is_an_error_after_the_patience(service):
    with Etcd("127.0.0.1:1", timeout=0.5) as etcd, pytest.raises(EtcdUnavailable):
        Registration(etcd, service, HOST, "").start(patience=0.1)


@pytest.mark.parametrize("name", ["", "a/b", " a"])
def test_an_impossible_service_name_is_refused(etcd, name):
    with pytest.raises(ConfigError, match="service name"):
        list_nodes(etcd, name)
