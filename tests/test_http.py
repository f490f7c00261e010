"""The small HTTP server: strangers cost it little, and it ends at once."""

import socket
import struct
import threading
import urllib.request

import pytest

from edl import _http
from edl._http import HttpServer
from tests.support.processes import eventually


def greet(request, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


@pytest.fixture
def server():
    server = HttpServer(greet, "127.0.0.1", [0])
    yield server
    server.close()


def connect(server):
    host, _, port = server.endpoint.rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def get(server):
    with urllib.request.urlopen(f"http://{server.endpoint}/", timeout=10) as answer:
        return answer.read()


def test_who_leaves_in_the_midst_of_a_request_leaves_no_trace(server, capfd):
    with connect(server) as client:
        client.sendall(b"GET / HT")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert get(server) == b"hello"
    assert capfd.readouterr().err == ""


def test_who_says_nothing_is_not_waited_for(monkeypatch, capfd):
    monkeypatch.setattr(_http._Handler, "timeout", 0.1)
    server = HttpServer(greet, "127.0.0.1", [0])
    with connect(server) as client:
        assert client.recv(1) == b""  # it was closed by the server
    server.close()
    assert capfd.readouterr().err == ""


def test_many_connections_keep_others_out_only_while_they_last(server):
    silent = [connect(server) for _ in range(_http._MOST)]
    with connect(server) as late:
        late.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            assert late.recv(100) == b""
        except ConnectionResetError:
            pass
    for client in silent:
        client.close()

    def served():
        try:
            return get(server) == b"hello"
        except OSError:
            return False

    eventually(served)


def test_a_port_that_is_taken_is_passed_over(server):
    taken = int(server.endpoint.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        HttpServer(greet, "127.0.0.1", [taken])
    other = HttpServer(greet, "127.0.0.1", [taken, 0])
    assert get(other) == b"hello"
    other.close()


def test_it_ends_at_once_and_for_all(server):
    assert get(server) == b"hello"
    server.close()
    with pytest.raises(ConnectionRefusedError):
        connect(server)
    server.close()  # again: nothing happens


def test_two_threads_may_close_it_at_once():
    failed = []

    def close():
        together.wait()
        try:
            server.close()
        except OSError as error:
            failed.append(error)

    for _ in range(10):
        server = HttpServer(lambda environ, respond: [], "127.0.0.1", [0])
        together = threading.Barrier(2)
        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert not failed
