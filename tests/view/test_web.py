"""The page's server: what it answers, and to whom."""

import contextlib
import http.client
import json
import re
import socket
import ssl
import sys
import threading

import pytest

from edl.discovery import Registration
from edl.discovery.embedded import free_port
from edl.errors import ConfigError, MissingDependencyError
from edl.serving.client.tls import Trust
from edl.view.targets import Access
from edl.view.web import MOST_PAGES, Dashboard, Listen
from tests.support.processes import ROOT, edl, eventually

NOTHING = Access(Trust(), token="")


@pytest.fixture
def dashboard(etcd, service):
    """The page of one service, with a teacher."""
    teacher = Registration(etcd, service, "10.0.0.1:9292", '{"device": "cpu"}')
    teacher.start()
    with Dashboard(etcd, Listen(), service, NOTHING, period=0.05) as one:
        yield one
    teacher.stop()


def get(one, path="/", method="GET", context=None, **headers):
    """Status, headers in lower case, and the body."""
    host, _, port = one.url.split("/")[2].rpartition(":")
    kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
    options = {"context": context} if context else {}
    with contextlib.closing(kind(host, int(port), timeout=10, **options)) as connection:
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()


@contextlib.contextmanager
def listening(one, **headers):
    """An open page: a function to the next event."""
    host, _, port = one.url.split("/")[2].rpartition(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request("GET", "/events", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200

        def event():
            kind = answer.readline().decode().removeprefix("event: ").strip()
            value = json.loads(answer.readline().decode().removeprefix("data: "))
            answer.readline()
            return kind, value

        yield event


@pytest.mark.parametrize(
    "path", ["/", "/view.js", "/view.css", "/icon.svg", "/nowhere", "/events/"]
)
def test_a_browser_is_told_to_fetch_nothing_from_elsewhere_and_to_be_framed_by_nobody(
    dashboard, path
):
    _, headers, body = get(dashboard, path)
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert set(re.findall(rb"[a-z]+://[^\s\"'<]+", body)) <= {b"http://www.w3.org/2000/svg"}
    assert b"@import" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_ever_reads(dashboard, method):
    for path in ("/", "/events"):
        assert get(dashboard, path, method)[0] == 405


def test_a_page_is_told_everything_once_and_then_what_changes(dashboard, etcd, service):
    with listening(dashboard) as event:
        kind, value = event()
        assert kind == "full"
        assert set(value["services"][service]["teachers"]) <= {"10.0.0.1:9292"}
        other = Registration(etcd, service, "10.0.0.2:9292", "{}")
        other.start()

        def told():
            kind, value = event()
            assert kind == "change"
            return value["services"].get(service, {}).get("teachers", {})

        teachers = {}
        while "10.0.0.2:9292" not in teachers:
            teachers = told()
        assert "10.0.0.1:9292" not in teachers or teachers["10.0.0.1:9292"]
        other.stop()
        while teachers.get("10.0.0.2:9292", True) is not None:
            teachers = told()


def test_names_that_are_not_this_machines_are_not_answered(dashboard):
    for host in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "[::1",
        "a@localhost",
    ):
        assert get(dashboard, "/", Host=host)[0] in (400, 421), host
    for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]:5", "127.3.2.1:80"):
        assert get(dashboard, "/", Host=host)[0] == 200, host


def test_with_a_token_nobody_sees_anything_without(etcd, service):
    with Dashboard(etcd, Listen(token="s3cret"), service, NOTHING, period=0.05) as one:
        for path in ("/", "/view.js", "/events", "/?token=wrong", "/?token="):
            status, headers, body = get(one, path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert b"needs its token" in body
        for cookie in (
            "edl_dashboard=",
            "edl_dashboard=s3cret",
            "edl_dashboard=\xff",
            ";;=",
            "a b",
        ):
            assert get(one, "/", Cookie=cookie)[0] == 401
        assert get(one, "/", Authorization="Bearer s3cret")[0] == 200
        status, headers, _ = get(one, "/?token=s3cret")
        assert (status, headers["location"]) == (303, "/")
        assert "HttpOnly; SameSite=Lax" in headers["set-cookie"]
        assert "s3cret" not in headers["set-cookie"]
        cookie = headers["set-cookie"].partition(";")[0]
        assert get(one, "/", Cookie=cookie)[0] == 200
        with listening(one, Cookie=cookie) as event:
            assert event()[0] == "full"


def test_beyond_this_machine_it_wants_a_token_or_tls(etcd_server):
    result = edl("dashboard", "--etcd", etcd_server.endpoint, "--host", "0.0.0.0", "--port", 0)
    assert result.returncode == 1
    assert result.stderr == (
        "edl: --host 0.0.0.0 would show the dashboard to everybody: set EDL_DASHBOARD_TOKEN to a "
        "secret, or give --tls-cert and --tls-key\n"
    )
    assert Listen("0.0.0.0", token="s").token
    with pytest.raises(ConfigError, match="go together"):
        Listen(cert="x")


def test_with_tls(etcd, service, tmp_path):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1")
    paths = [str(tmp_path / name) for name in ("cert.pem", "key.pem")]
    cert.cert_chain_pems[0].write_to_path(paths[0])
    cert.private_key_pem.write_to_path(paths[1])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    listen = Listen(token="s3cret", cert=paths[0], key=paths[1])
    with Dashboard(etcd, listen, service, NOTHING) as one:
        assert one.url.startswith("https://")
        status, headers, _ = get(one, "/?token=s3cret", context=context)
        assert status == 303
        assert headers["set-cookie"].endswith("; Secure")
    with pytest.raises(ConfigError, match="are not a certificate and its key"):
        Dashboard(etcd, Listen(cert=paths[1], key=paths[0]), service, NOTHING).start()


def test_a_port_that_is_taken(etcd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use$"
        ):
            Dashboard(etcd, Listen(port=port), None, NOTHING).start()


def test_a_service_name_that_cannot_be(etcd):
    with pytest.raises(ConfigError, match="must not be empty or contain"):
        Dashboard(etcd, Listen(), "a/b", NOTHING)


def test_without_the_libraries_it_says_what_to_install(etcd, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingDependencyError, match="pip install starlette uvicorn"):
        Dashboard(etcd, Listen())


def test_a_crowd_of_pages_is_refused_and_the_others_go_on(dashboard):
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(listening(dashboard))
        for _ in range(MOST_PAGES - 1):
            stack.enter_context(listening(dashboard))
        assert get(dashboard, "/events")[0] == 503
        assert first()[0] == "full"
    eventually(lambda: get(dashboard, "/nowhere")[0] == 404)


def test_a_page_that_does_not_read_keeps_nobody_waiting(dashboard, etcd, service):
    host, _, port = dashboard.url.split("/")[2].rpartition(":")
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        lazy.connect((host, int(port)))
        lazy.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        with listening(dashboard) as event:
            assert event()[0] == "full"
            for number in range(30):
                name = f"/service/{service}/nodes/10.0.{number}.9:1"
                etcd.call(
                    lambda client, name=name: client.put(name, '{"device": "%s"}' % ("x" * 9999))
                )
            seen = set()
            while len(seen) < 30:
                _, value = event()
                teachers = value["services"].get(service, {}).get("teachers", {})
                seen |= {
                    key for key in teachers if key.startswith("10.0.") and key.endswith(".9:1")
                }
    for number in range(30):
        name = f"/service/{service}/nodes/10.0.{number}.9:1"
        etcd.call(lambda client, name=name: client.delete(name))


def test_etcd_that_is_away_is_said_and_the_page_is_there(service):
    from edl.discovery import Etcd

    with Etcd(f"127.0.0.1:{free_port()}", timeout=0.3) as away:
        with Dashboard(away, Listen(), service, NOTHING, period=0.1) as one:
            with listening(one) as event:
                problem = ""
                while not problem:
                    problem = event()[1]["problem"]
    assert "does not answer" in problem


def test_stopping_ends_open_pages(etcd, service):
    one = Dashboard(etcd, Listen(), service, NOTHING, period=0.05).start()
    with listening(one) as event:
        event()
        stopping = threading.Thread(target=one.stop)
        stopping.start()
        with contextlib.suppress(ValueError, OSError, http.client.HTTPException):
            while True:  # until it is no event any more
                event()
        stopping.join(20)
        assert not stopping.is_alive()


def test_it_is_served_by_a_process_that_reads_its_files_from_the_package():
    assert {path.name for path in (ROOT / "edl/view/page").iterdir()} == {
        "index.html", "view.css", "view.js", "icon.svg",
    }  # fmt: skip
