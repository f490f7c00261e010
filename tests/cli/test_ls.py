"""``edl ls`` and ``edl balancer``."""

import contextlib
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from rich.console import Console

from edl.cli.ls import tables
from edl.discovery import Etcd, Participation, Registration, StudentRecord
from edl.discovery.embedded import free_port
from edl.discovery.keys import NODES, RATES
from edl.discovery.records import format_assignment
from edl.view.registry import describe
from tests.support.processes import ROOT, edl, eventually


@pytest.fixture
def populated(etcd_server, etcd, service):
    """Two teachers, one of them the original's, and a student."""
    rated = Registration(etcd, service, "10.0.0.1:9000", '{"rate": 120, "protocol": "baidu_std"}')
    original = Registration(etcd, service, "10.0.0.2:9000", "{gpu:20%, net:1}")
    assigned = []
    with Etcd(etcd_server.endpoint) as own:
        student = Participation(own, service, "student1", StudentRecord(3), assigned.append)
        for part in (rated, original, student):
            part.start()
        eventually(lambda: assigned and len(assigned[-1]) == 2)
        yield service
        student.close()
        original.stop()
        rated.stop()


def test_ls_shows_services_teachers_students_and_assignments(etcd_server, populated):
    result = edl("ls", "--etcd", etcd_server.endpoint, "--service", populated)
    assert result.returncode == 0
    for text in (populated, "2 teachers, 1 students", "10.0.0.1:9000", "baidu_std", "120"):
        assert text in result.stdout
    assert "{gpu:20%, net:1}" in result.stdout.replace("\n", "")
    assert "student1"[:8] in result.stdout


def test_ls_json_is_for_programs(etcd_server, populated):
    everything = json.loads(edl("ls", "--etcd", etcd_server.endpoint, "--json").stdout)
    one = json.loads(
        edl("ls", "--etcd", etcd_server.endpoint, "--json", "--service", populated).stdout
    )
    assert everything[populated] == one[populated]
    found = one[populated]
    assert found["students"]["student1"]["teachers"] == ["10.0.0.1:9000", "10.0.0.2:9000"]
    assert found["students"]["student1"]["max_teachers"] == 3
    assert found["teachers"]["10.0.0.2:9000"] == {"info": "{gpu:20%, net:1}"}
    assert found["balance"]["teachers"] == 2
    assert found["leader"]


def test_ls_shows_how_tensors_travel():
    ways = {"10.0.0.1:9000": "shared memory", "10.0.0.2:9000": "tcp"}
    entries = {
        "students/s": StudentRecord(ways=ways).to_json(),
        "assignments/s": format_assignment(frozenset([*ways, "10.0.0.3:9000"])),
    }
    console = Console(width=200, file=io.StringIO())
    console.print(tables({"one": describe(entries)}))
    shown = "10.0.0.1:9000 (shared memory), 10.0.0.2:9000, 10.0.0.3:9000"
    assert shown in console.file.getvalue()


ODD = [
    "", "[/]", "\x1b[2J", "\ud800", "[" * 100_000, "{", "[1]", "x" * 5000, '"1"', "9" * 5000,
    *(
        f'{{"{name}": {value}}}'
        for name in ("since", "rate", "want", "max_teachers", "rows_per_second", "demand", "idle",
                     "teachers", "protocol", "device", "hostname", "pid", "info", "ways")
        for value in ('"[/b]\\u001b[2J\\ud800"', "9" * 400, "1e999", "NaN", "-1", "true", "null",
                      "[[]]", '["[/]", 3]', '{"a": {}}')
    ),
]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:40])
def test_ls_shows_what_strangers_wrote_and_obeys_none_of_it(text):
    keys = ("nodes/[/]:1", "nodes/a:1", "rates/a:1", "students/s", "assignments/s", "balance")
    one = describe({**dict.fromkeys(keys, text), "leader": text, "students": text, "": text})
    json.loads(json.dumps(one), parse_constant=pytest.fail)
    out = io.StringIO()
    Console(file=out, width=200).print(tables({"[/]\x1b": one}))
    shown = out.getvalue().encode().decode()
    assert "2 teachers, 1 students" in shown
    assert "[/]:1" in shown
    assert "\x1b" not in shown


def test_ls_lists_keys_that_are_nobodys(etcd_server, etcd, service):
    for key in (b"/service/no_slash", b"/service/\xff/nodes/a:1", f"/service/{service}/nodes/\xe9"):
        etcd.call(lambda client, key=key: client.put(key, b"\xff"))
    result = edl("ls", "--etcd", etcd_server.endpoint)
    assert result.returncode == 0, result.stderr
    assert "no_slash" in result.stdout
    assert f"{service}: 1 teachers" in result.stdout
    etcd.call(lambda client: client.delete("/service/no_slash"))
    etcd.call(lambda client: client.delete(b"/service/\xff/nodes/a:1"))


def test_ls_of_an_empty_registry_and_without_etcd(etcd_server):
    assert (
        "nothing is registered"
        in edl("ls", "--etcd", etcd_server.endpoint, "--service", "no_such_service").stdout
    )
    result = edl("ls", "--etcd", f"127.0.0.1:{free_port()}")
    assert result.returncode == 1
    assert "does not answer" in result.stderr
    assert "Traceback" not in result.stderr


def test_ls_watch_redraws_until_it_is_interrupted(etcd_server, populated):
    command = [sys.executable, "-m", "edl.cli.main", "ls", "--etcd", etcd_server.endpoint]
    process = subprocess.Popen(
        [*command, "--watch", "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for _ in range(2):
        assert populated in json.loads(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    process.stdout.close()


@pytest.mark.parametrize("command", [("ls", "--watch"), ("top",)])
def test_a_terminal_is_redrawn_until_ctrl_c(etcd_server, etcd, service, command):
    first = Registration(etcd, service, "10.0.0.3:9000", "{}")
    second = Registration(etcd, service, "10.0.0.4:9000", "{}")
    where = ("--etcd", etcd_server.endpoint, "--service", service)
    screen, terminal = pty.openpty()
    first.start()
    with subprocess.Popen(
        [sys.executable, "-m", "edl.cli.main", *command, *where], cwd=ROOT, stdout=terminal
    ) as process:
        os.close(terminal)
        shown = b""
        while b"10.0.0.3:9000" not in shown:
            shown += os.read(screen, 1 << 16)
        second.start()
        while b"10.0.0.4:9000" not in shown:
            shown += os.read(screen, 1 << 16)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the end of the terminal
            while os.read(screen, 1 << 16):
                pass
        assert process.wait(20) == 0
    os.close(screen)
    first.stop()
    second.stop()


def test_a_rate_that_was_measured_replaces_the_declared_one():
    entries = {f"{NODES}h:1": '{"rate": 5}', f"{RATES}h:1": '{"rate": 7}', f"{RATES}gone:1": "x"}
    assert describe(entries)["teachers"] == {"h:1": {"rate": 7}}


def test_a_balancer_of_its_own_serves_demand_and_supply_for_autoscalers(etcd_server, etcd, service):
    port = free_port()
    command = [sys.executable, "-m", "edl.cli.main", "balancer", "--etcd", etcd_server.endpoint]
    process = subprocess.Popen(
        [*command, "--service", service, "--metrics-port", str(port)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == f"balancing {service}\n"
        teacher = Registration(etcd, service, "10.0.0.1:9000", '{"rate": 100}')
        teacher.start()
        with Etcd(etcd_server.endpoint) as own:
            record = StudentRecord(want=250.0)
            student = Participation(own, service, "s", record, lambda teachers: None, lead=False)
            student.start()

            def metrics():
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                    return page.read().decode()

            label = f'{{service="{service}"}}'
            for line in (f"demand{label} 250.0", f"supply{label} 100.0", f"unsatisfied{label} 1.0"):
                eventually(lambda line=line: f"edl_service_{line}" in metrics())
            student.close()
        teacher.stop()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        time.sleep(0.1)
        assert etcd.call(lambda c: c.get(f"/service/{service}/leader")[0]) is None
    finally:
        process.kill()
        process.communicate()


def test_a_port_for_metrics_that_is_taken_is_said_in_one_line():
    command = ("balancer", "--etcd", "127.0.0.1:1", "--service", "resnet", "--metrics-port")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = edl(*command, port)
    assert result.returncode == 1
    assert result.stderr == f"edl: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("command", [["etcd", "--port"], ["balancer", "--metrics-port"]])
def test_a_port_that_cannot_be_is_a_usage_error(command):
    result = edl(*command, 99999)
    assert result.returncode == 2
    assert "99999 is not in the range" in result.stderr
