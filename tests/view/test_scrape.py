"""Asking ports for figures, whatever is behind them."""

import asyncio
import contextlib
import socket
import ssl
import threading

import pytest

from edl.discovery.embedded import free_port
from edl.serving.client.tls import Trust
from edl.view.scrape import MOST_BYTES, NoFigures, Target, fetch
from edl.view.targets import Access, targets

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nup 1\n"


@contextlib.contextmanager
def port(answer, seen=None, context=None):
    """A port on which ``answer(sock)`` talks, whoever comes; bytes are said at once."""
    ended = threading.Event()

    def talk(sock):
        with contextlib.suppress(OSError), sock:
            with context.wrap_socket(sock, server_side=True) if context else sock as spoken:
                request = spoken.recv(4096)
                if seen is not None:
                    seen.append(request)
                if isinstance(answer, bytes):
                    spoken.sendall(answer)
                else:
                    answer(spoken, ended)

    def listen(server):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        ended.set()
        server.shutdown(socket.SHUT_RDWR)


def ask(target, timeout=5.0):
    return asyncio.run(fetch(target, timeout=timeout))


def test_figures_are_asked_for_once_with_the_token():
    seen = []
    with port(OK, seen) as endpoint:
        assert ask(Target(endpoint, token="secret")) == "up 1\n"
    (request,) = seen
    assert request.startswith(b"GET /metrics HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in request


def test_a_redirect_is_not_followed():
    elsewhere = []
    with port(OK, elsewhere) as other:
        moved = f"HTTP/1.1 302 Found\r\nLocation: http://{other}/metrics\r\n\r\n".encode()
        with port(moved) as endpoint, pytest.raises(NoFigures, match="answers with status 302"):
            ask(Target(endpoint))
    assert elsewhere == []


def trickle(sock, ended):
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not ended.wait(0.02):
        sock.sendall(b"x")


def flood(sock, ended):
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not ended.is_set():
        sock.sendall(b"x" * 65536)


def headers_without_end(sock, ended):
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    while not ended.is_set():
        sock.sendall(b"a: b\r\n" * 1000)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda sock, ended: ended.wait(), "no answer within 0.3 s"),
        (trickle, "no answer within 0.3 s"),
        (flood, f"larger than {MOST_BYTES >> 10} KiB"),
        (headers_without_end, "does not speak HTTP"),
        (b"PRPC\0\0\0\0", "does not speak HTTP"),
        (b"", "closed the connection|does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nup 1\n", "does not speak HTTP"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "wants a token"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "status 500"),
    ],
    ids=["silent", "trickle", "flood", "headers", "brpc", "nothing", "short", "401", "500"],
)
def test_who_does_not_answer_as_should_be_is_given_up_with_a_reason(answer, says):
    with port(answer) as endpoint, pytest.raises(NoFigures, match=says):
        ask(Target(endpoint), timeout=0.3 if "0.3" in says else 10.0)


@pytest.mark.parametrize(
    "endpoint", ["", "nowhere", "http://h:1/x", "h:99999", "a b:1", "user@h:1", "[::1", "h:1/../x"]
)
def test_what_is_no_address_is_not_asked(endpoint):
    with pytest.raises(NoFigures, match="is not host:port"):
        ask(Target(endpoint))


def test_a_port_that_nobody_has():
    with pytest.raises(NoFigures, match="cannot be reached"):
        ask(Target(f"127.0.0.1:{free_port()}"))


@pytest.mark.parametrize("name", ["." * 300, "a\0b"], ids=["dots", "null"])
def test_a_name_that_can_be_none(name):
    with pytest.raises(NoFigures):
        ask(Target(f"{name}:1"))


def test_bytes_that_are_no_text_are_text_all_the_same():
    with port(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xfea") as endpoint:
        assert ask(Target(endpoint)).endswith("a")


def test_a_certificate_is_checked_before_the_token_is_shown(tmp_path):
    trustme = pytest.importorskip("trustme")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    access = Access(Trust(ca=str(tmp_path / "ca.pem")), token="secret")
    for signer, works in ((authority, True), (stranger, False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        signer.issue_cert("127.0.0.1").configure_cert(context)
        seen = []
        with port(OK, seen, context) as endpoint:
            target = access.teacher(endpoint, {"tls": True})
            if works:
                assert ask(target) == "up 1\n"
                assert b"secret" in seen[0]
            else:
                with pytest.raises(NoFigures, match="TLS"):
                    ask(target)
                assert seen == []


def test_certificates_that_are_renewed_are_read_again(tmp_path, monkeypatch):
    trustme = pytest.importorskip("trustme")
    path = tmp_path / "ca.pem"
    old, new = trustme.CA(), trustme.CA()
    old.cert_pem.write_to_path(path)
    access = Access(Trust(ca=str(path)), token="")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    new.issue_cert("127.0.0.1").configure_cert(context)
    with port(OK, context=context) as endpoint:
        target = access.teacher(endpoint, {"tls": True})
        with pytest.raises(NoFigures, match="TLS"):
            ask(target)
        path.write_text("half written")
        monkeypatch.setattr("edl.view.targets._READ_EVERY", 0.0)
        with pytest.raises(NoFigures, match="TLS"):
            ask(target)
        new.cert_pem.write_to_path(path)
        assert ask(target) == "up 1\n"
    assert access.teacher(endpoint, {"tls": True}) == target  # what is known of it stays


@pytest.mark.parametrize(
    ("endpoint", "trust", "entry", "shown"),
    [
        ("127.0.0.1:1", Trust(), {}, "secret"),
        ("10.0.0.1:1", Trust(), {}, ""),
        ("10.0.0.1:1", Trust(), {"tls": True}, "secret"),
        ("10.0.0.1:1", Trust(), {"tls": "yes"}, ""),
        ("127.0.0.1.example.org:1", Trust(), {}, ""),
        ("10.0.0.1:1", Trust(plain_token=True), {}, "secret"),
    ],
)
def test_the_token_leaves_this_machine_only_through_tls(endpoint, trust, entry, shown):
    assert Access(trust, token="secret").teacher(endpoint, entry).token == shown


def test_who_is_asked():
    teachers = {
        "10.0.0.1:9292": {"protocol": "baidu_std"},
        "10.0.0.2:9292": {"protocol": "pipeline"},
        "10.0.0.3:9292": {"info": "{gpu:20%, net:1}"},
        "10.0.0.4:9292": {"protocol": "baidu_std", "registrar": 7},
        "10.0.0.5:9292": {"protocol": ["baidu_std"]},
    }
    students = {
        "one": {"metrics": "10.0.0.9:9100"},
        "two": {"metrics": None},
        "three": {"metrics": {"a": 1}},
        "four": {},
    }
    registry = {"resnet": {"teachers": teachers, "students": students}}
    found = list(targets(registry, Access(Trust(), token="")))
    assert [(key, target.endpoint, student) for key, target, student in found] == [
        (("resnet", "10.0.0.1:9292"), "10.0.0.1:9292", ""),
        (("resnet", "one"), "10.0.0.9:9100", "one"),
    ]
