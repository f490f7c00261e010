"""What the original's programs, variables and addresses are answered with."""

import os
import runpy
import socket
import subprocess
import sys
import threading
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

import edl.distill
from edl import __version__
from edl._original import translate
from edl.discovery import Etcd
from edl.distill import DistillReader
from edl.errors import DiscoveryError, EtcdUnavailable, NoTeacherError
from tests.support.processes import ROOT

PROGRAMS = (
    "discovery.register",
    "distill.discovery_server",
    "distill.redis.server_register",
    "distill.redis.balance_server",
    "collective.launch",
)
ONLY_PADDLE_EDL = (
    "collective.http_store",
    "demo.collective.job_server_demo",
    "demo.collective.job_client_demo",
)


def started(module, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_original_s_import_gives_the_same_reader():
    from paddle_edl.distill.distill_reader import DistillReader as original

    assert original is edl.distill.DistillReader


def test_the_version_follows_the_original_s_last():
    import paddle_edl

    assert paddle_edl.__version__ == __version__
    assert tuple(map(int, __version__.split(".")[:3])) > (0, 3, 1)


def test_the_distribution_has_the_original_s_name():
    """As ``setup.py`` says it to whoever builds it."""
    pytest.importorskip("setuptools")
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "--name", "--version"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert result.stdout.split() == ["paddle-edl", __version__]


@pytest.mark.parametrize(
    ("module", "arguments", "command"),
    [
        (
            "paddle_edl.discovery.register",
            ["--db_endpoints", "10.0.0.1:2379", "--service_name", "R 50", "--server", "a:1"],
            "edl register --etcd 10.0.0.1:2379 --service 'R 50' --server a:1",
        ),
        (
            "edl.distill.redis.balance_server",
            ["--db_endpoints", "10.0.0.1:6379"],
            "edl balancer --etcd HOST:2379 --service SERVICE ",
        ),
    ],
)
def test_a_program_of_the_original_says_what_to_run_instead(module, arguments, command):
    result = started(module, *arguments)
    assert result.returncode == 2
    assert command in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("top", "program"),
    [
        *(("edl", program) for program in PROGRAMS),
        *(("paddle_edl", program) for program in (*PROGRAMS, *ONLY_PADDLE_EDL)),
    ],
)
def test_each_of_them_answers_by_its_old_name(top, program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module(f"{top}.{program}", run_name="__main__")
    assert f"{program} is a program of the original" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "arguments", "command"),
    [
        ("discovery.register", "", "edl register --etcd 127.0.0.1:2379 --service SERVICE"),
        (
            "discovery.register",
            "--db_passwd s3cret --server a:1 --service_name s",
            "EDL_ETCD_USER=... EDL_ETCD_PASSWORD=... edl register",
        ),
        ("distill.redis.server_register", "--db_endpoints r:6379", "edl register --etcd HOST:2379"),
        ("distill.discovery_server", "--db_endpoints a:1,b:2", "edl balancer --etcd a:1,b:2"),
        (
            "collective.launch",
            "--selected_gpus 0,1 --log_dir log --started_port 7000 train.py --lr 0.1",
            "edl launch --start_port 7000 --devices 0,1 --log_dir log train.py --lr 0.1",
        ),
        (
            "collective.launch",
            "--cluster_node_ips a,b --node_ip b --log_level 10 --use_paddlecloud train.py",
            "edl launch --nnodes 2 --master a:6170 --host b --log_level DEBUG train.py",
        ),
        (
            "demo.collective.job_client_demo",
            "--package_sh a.sh --log_dir log train.py --lr 0.1",
            "edl launch --master etcd://HOST:2379 --nnodes 1:8 --log_dir log train.py --lr 0.1",
        ),
        ("demo.collective.job_server_demo", "--node_ips a,b", "--nnodes 1:8 train.py"),
        ("collective.http_store", "--host a --port 1", "edl launch --master etcd://HOST:2379"),
    ],
)
def test_flags_are_translated(program, arguments, command):
    text = translate(program, arguments.split())
    assert command in text
    assert "s3cret" not in text


def test_what_edl_launch_is_said_to_take_it_takes():
    pytest.importorskip("paddle")
    known = started("paddle.distributed.launch", "--help").stdout
    said = translate("collective.launch", ["--cluster_node_ips", "a,b", "--selected_gpus", "0"])
    flags = [word for word in said.splitlines()[-1].split() if word.startswith("--")]
    assert len(flags) == 4
    assert all(flag in known for flag in [*flags, "--start_port", "--log_dir", "--log_level"])


def test_variables_without_effect_are_answered_in_the_log(sums_teacher, monkeypatch, caplog):
    monkeypatch.setenv("PADDLE_DISTILL_BALANCE_TYPE", "redis")
    monkeypatch.setenv("DISTILL_READER_PROFILE", "0")
    with DistillReader(["img"], ["prob"], [(np.ones((2, 3), "f4"),)], sums_teacher.endpoint) as r:
        list(r)
        assert "PADDLE_DISTILL_BALANCE_TYPE has no effect: the registry is always etcd" in (
            caplog.text
        )
        assert "PROFILE" not in caplog.text  # it is off
    monkeypatch.setenv("DISTILL_READER_PROFILE", "1")
    with DistillReader(["img"], ["prob"], [(np.ones((2, 3), "f4"),)], sums_teacher.endpoint) as r:
        list(r)
    assert "EDL_DISTILL_TRACE" in caplog.text


@contextmanager
def grpc_balance_server():
    """As the original's ``distill.discovery_server``: gRPC, and nothing of etcd's."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextmanager
def redis_balance_server():
    """As the original's ``distill.redis.balance_server``: a socket that closes on what it does not
    understand.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    conn, _ = listener.accept()
                except OSError:
                    return
                with conn:
                    conn.recv(10)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


SERVERS = [(grpc_balance_server, DiscoveryError), (redis_balance_server, EtcdUnavailable)]


@pytest.mark.parametrize(("server", "error"), SERVERS)
def test_a_balance_server_in_the_place_of_etcd_is_recognised(server, error):
    with (
        server() as endpoint,
        Etcd(endpoint, timeout=2) as etcd,
        pytest.raises(error, match="balance server of the original paddle_edl") as caught,
    ):
        etcd.call(lambda client: client.get("/"))
    assert endpoint in str(caught.value)


@pytest.mark.parametrize(("server", "error"), SERVERS)
def test_and_named_in_the_student_s_error(server, error):
    with server() as endpoint:
        reader = DistillReader(["img"], ["prob"], [(np.ones((2, 3), "f4"),)], no_teacher_timeout=8)
        reader.set_dynamic_teacher(endpoint, "service")
        with reader, pytest.raises(NoTeacherError, match="balance server of the original"):
            next(reader())


def test_an_etcd_that_is_not_there_is_not_called_a_balance_server():
    from edl.discovery.embedded import free_port

    with Etcd(f"127.0.0.1:{free_port()}", 1) as etcd, pytest.raises(EtcdUnavailable) as caught:
        etcd.call(lambda client: client.get("/"))
    assert "balance server" not in str(caught.value)


def test_nor_is_an_etcd_that_says_no(etcd):
    with pytest.raises(DiscoveryError) as caught:
        etcd.call(lambda client: client.revoke_lease(12345))
    assert "balance server" not in str(caught.value)


def test_the_environment_of_a_paddle_cloud_job_is_read(etcd_server, service, monkeypatch):
    """PADDLE_DISTILL_BALANCE_SERVER gives etcd's address; the rest is as it was."""
    from tests.support.processes import Registrar, python_teacher

    monkeypatch.setenv("PADDLE_DISTILL_BALANCE_SERVER", etcd_server.endpoint)
    monkeypatch.setenv("PADDLE_DISTILL_SERVICE_NAME", service)
    monkeypatch.setenv("PADDLE_DISTILL_MAX_TEACHER", "1")
    assert "PADDLE_DISTILL_CONF_FILE" not in os.environ
    register = ("--etcd", etcd_server.endpoint, "--service", service)
    with python_teacher() as teacher, Registrar(*register, "--server", teacher.endpoint):
        with DistillReader(["img"], ["prob"], [(np.ones((2, 3), "f4"),)]) as reader:
            assert [prob.tolist() for _, prob in reader] == [[[3, 6], [3, 6]]]
