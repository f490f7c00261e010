"""TLS between teachers and those who talk to them: who is believed, who is refused, and what never
travels in plain text.
"""

import contextlib
import datetime
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import tracemalloc
import urllib.error
import urllib.request

import numpy as np
import pytest

from edl import _tls
from edl._endpoints import is_same_machine
from edl.errors import (
    AccessDenied,
    ConfigError,
    TeacherConnectionLost,
    TeacherUnreachable,
    TlsRefused,
)
from edl.serving import ServerOptions, ServerTls, TeacherClient, Trust, serve
from edl.serving.client.entry import Entry
from edl.serving.client.measure import read_counters
from edl.serving.client.page import read_page
from edl.serving.server.tls import exposure
from edl.serving.wire.tensor import drop_sent
from tests.support import elsewhere
from tests.support.certificates import Authority
from tests.support.processes import eventually

TOKEN = "secret-of-this-test"
ONE = {"x": np.ones((1, 3), "float32")}
PLAIN = Trust()


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("foreign"), "foreign")


def teacher(tls=None, **options):
    return serve(
        lambda x: x * 2,
        {"x": ((-1,), "float32")},
        {"y": ((-1,), "float32")},
        options=ServerOptions(tls=tls, **options),
    )


@pytest.fixture(scope="module")
def secured(ours):
    """A teacher with a certificate for 127.0.0.1, that wants a token."""
    with teacher(ours.server(), token=TOKEN, local=False) as served:
        yield served


def ask(endpoint, trust, token=TOKEN, feeds=ONE):
    with TeacherClient(endpoint, token=token, trust=trust) as client:
        return client.infer(feeds)["y"]


class Recorder:
    """A server that answers nothing, and keeps what it is sent."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        conn, _ = self._listener.accept()
        with conn:
            conn.settimeout(10)
            self.received = conn.recv(1 << 16)

    def close(self):
        self._thread.join(20)
        self._listener.close()


# --- what works -----------------------------------------------------------------------------


def test_what_is_asked_and_answered_is_the_same_as_without(secured, ours):
    assert ask(secured.endpoint, ours.trust()).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("rows", [1, 700, 40_000])
def test_large_and_small_messages_arrive_whole_in_both_directions(secured, ours, rows):
    feeds = {"x": np.random.default_rng(rows).random((rows, 151), np.float32)}
    answer = ask(secured.endpoint, ours.trust(), feeds=feeds)
    np.testing.assert_array_equal(answer, feeds["x"] * 2)


def test_large_tensors_are_not_copied_on_their_way_into_tls_or_out_of_it(ours):
    feeds = {"x": np.random.default_rng(0).random((32, 3 * 224 * 224), np.float32)}
    with serve(
        lambda x: x[:, :5],
        {"x": ((-1,), "float32")},
        {"y": ((-1,), "float32")},
        options=ServerOptions(tls=ours.server(), local=False),
    ) as served:
        with TeacherClient(served.endpoint, trust=ours.trust()) as client:
            client.infer(ONE)  # who is trusted gets shared memory for its whole body
            tracemalloc.start()
            try:
                answer = client.infer(feeds)["y"]
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert (answer == feeds["x"][:, :5]).all()
    assert peak < feeds["x"].nbytes / 10


def test_what_a_slow_client_has_taken_of_a_large_tensor_counts_before_it_has_all(ours):
    answer = np.random.default_rng(0).bytes(16 << 20)
    server, client = connected(ours)
    with server, client:
        server.setblocking(False)
        left, received = [memoryview(answer)], bytearray()
        progress = 0
        while left:
            try:
                sent = _tls.send_some(server, left)
                progress += 1
                drop_sent(left, sent)
            except BlockingIOError:
                received += client.recv(1 << 16)
        server.close()
        while part := client.recv(1 << 16):
            received += part
    assert progress >= 16
    assert received == answer


def connected(ours):
    """Both ends of a TLS connection, blocking."""
    files, trust = ours.server(), ours.trust()
    context = _tls.server_context()
    _tls.load(context, files.cert, files.key)
    ends = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            ends.append(context.wrap_socket(listener.accept()[0], server_side=True))

        thread = threading.Thread(target=accept)
        thread.start()
        plain = socket.create_connection(listener.getsockname())
        ends.append(_tls.client_context(trust.ca).wrap_socket(plain, server_hostname="127.0.0.1"))
        thread.join()
    server, client = sorted(ends, key=lambda end: not end.server_side)
    return server, client


def test_many_requests_of_all_sizes_are_under_way_at_once_from_several_threads(secured, ours):
    generator = np.random.default_rng(0)
    sizes = [1, 20_000, 3, 500_000, 4_000] * 12
    answers, done = {}, threading.Event()
    with TeacherClient(secured.endpoint, token=TOKEN, trust=ours.trust()) as client:
        assert client.way == "tls"

        def run(number):
            for each in range(number, len(sizes), 3):
                feeds = {"x": generator.random((1, sizes[each]), np.float32)}

                def on_answer(answer, each=each, sent=feeds["x"]):
                    answers[each] = isinstance(answer, dict) and bool(
                        (answer["y"] == 2 * sent).all()
                    )
                    if len(answers) == len(sizes):
                        done.set()

                client.submit(feeds, ["y"], on_answer)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done.wait(60)
    assert list(answers.values()) == [True] * len(sizes)


def test_pages_and_inference_over_https_for_other_clients(secured, ours):
    context = ssl.create_default_context(cafile=ours.ca)
    request = urllib.request.Request(
        f"https://{secured.endpoint}/GeneralModelService/inference",
        json.dumps(
            {
                "tensor": [
                    {
                        "name": "x", "alias_name": "x", "shape": [1, 2], "elem_type": 1,
                        "float_data": [1, 2],
                    }
                ],
                "fetch_var_names": ["y"],
            }
        ).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"},
    )  # fmt: skip
    with urllib.request.urlopen(request, context=context, timeout=20) as response:
        assert json.load(response)["outputs"][0]["tensor"][0]["float_data"] == [2, 4]
    assert read_page(secured.endpoint, "/healthz", trust=ours.trust()) == (200, b"ok\n")


def test_counters_are_read_with_what_the_environment_says(secured, ours, monkeypatch):
    monkeypatch.setenv("EDL_TEACHER_CA", ours.ca)
    assert read_counters(secured.endpoint, TOKEN)["edl_queue_seconds_count"] >= 0


def test_a_client_of_old_speaks_plain_text_with_a_plain_teacher_as_ever():
    with teacher(token=TOKEN) as served:
        assert ask(served.endpoint, PLAIN).tolist() == [[2, 2, 2]]


def test_a_teacher_on_this_machine_is_used_by_its_socket_once_it_has_shown_who_it_is(ours):
    from edl.distill import DistillReader

    with teacher(ours.server()) as served:
        reader = DistillReader(["x"], ["y"], teachers=[served.endpoint])
        reader.set_batch_generator(lambda: iter([[np.ones((4, 3), "float32")]] * 40))
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("EDL_TEACHER_CA", ours.ca)
            assert sum(len(batch[0]) for batch in reader()) == 160
        ways = {each["way"] for each in reader.stats()["teachers"].values()}
    assert ways
    assert ways <= {"unix socket", "shared memory"}


# --- who is not believed --------------------------------------------------------------------


def test_a_certificate_of_a_foreign_authority_is_refused(secured, foreign):
    with pytest.raises(TlsRefused, match=r"certificate is not accepted.*EDL_TEACHER_CA"):
        ask(secured.endpoint, foreign.trust())


def test_without_an_authority_the_systems_count_for_who_is_said_to_speak_tls(secured):
    with pytest.raises(TlsRefused, match="system's authorities"):
        Entry(tls=True).connect(secured.endpoint, TOKEN)


def test_an_expired_certificate_is_refused(ours):
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    before = yesterday - datetime.timedelta(days=9)
    expired = ours.server(called="expired", not_after=yesterday, not_before=before)
    with teacher(expired, token=TOKEN) as served:
        with pytest.raises(TlsRefused, match="expired"):
            ask(served.endpoint, ours.trust())


@pytest.mark.parametrize("names", [("127.0.0.2",), ("teacher.example",)])
def test_a_certificate_for_another_host_is_refused(ours, names):
    with teacher(ours.server(*names), token=TOKEN) as served:
        with pytest.raises(TlsRefused, match=r"127\.0\.0\.1.*EDL_TEACHER_NAME"):
            ask(served.endpoint, ours.trust())


def test_the_name_that_certificates_are_for_can_be_said(ours):
    with teacher(ours.server("teacher.example"), token=TOKEN) as served:
        assert len(ask(served.endpoint, ours.trust(name="teacher.example")))
        with pytest.raises(TlsRefused):
            ask(served.endpoint, ours.trust(name="other.example"))


# --- certificates of clients ----------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(ours):
    """A teacher that wants certificates of its clients."""
    with teacher(ours.server(client_ca=ours.ca, called="strict"), local=False) as served:
        yield served


def test_a_client_with_a_certificate_is_served(strict, ours):
    assert len(ask(strict.endpoint, ours.trust("student.example"), token=""))


def test_a_client_without_one_is_refused_and_told_why(strict, ours):
    with pytest.raises(TlsRefused, match="EDL_TEACHER_CERT and EDL_TEACHER_KEY"):
        ask(strict.endpoint, ours.trust(), token="")


def test_a_client_with_a_foreign_one_is_refused(strict, ours, foreign):
    cert, key = foreign.issue("student.example")
    with pytest.raises(TlsRefused, match="does not accept our certificate"):
        ask(strict.endpoint, Trust(ours.ca, cert, key), token="")


def test_without_one_only_health_is_told(strict, ours):
    assert read_page(strict.endpoint, "/healthz", trust=ours.trust())[0] == 200
    assert read_page(strict.endpoint, "/readyz", trust=ours.trust())[0] == 200
    assert read_page(strict.endpoint, "/metrics", trust=ours.trust())[0] == 403
    trust = ours.trust("student.example")
    assert read_page(strict.endpoint, "/metrics", trust=trust)[0] == 200


# --- plain text -----------------------------------------------------------------------------


def test_a_stolen_token_is_of_no_use_in_plain_text(secured):
    with pytest.raises(TlsRefused, match="speaks TLS only: set EDL_TEACHER_CA"):
        ask(secured.endpoint, PLAIN, TOKEN)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/GeneralModelService/describe"])
def test_neither_is_it_over_http(secured, path):
    request = urllib.request.Request(
        f"http://{secured.endpoint}{path}", headers={"authorization": f"Bearer {TOKEN}"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    assert caught.value.code == 400
    assert b"TLS only" in caught.value.read()


def test_a_wrong_token_is_refused_over_tls_too(secured, ours):
    with pytest.raises(AccessDenied):
        ask(secured.endpoint, ours.trust(), "guess")


@pytest.mark.parametrize(
    "connect",
    [
        lambda endpoint, trust: TeacherClient(endpoint, token=TOKEN, trust=trust),
        lambda endpoint, trust: Entry(tls=True).connect(endpoint, TOKEN, trust=trust),
        lambda endpoint, trust: read_page(endpoint, "/metrics", TOKEN, trust=trust),
    ],
)
def test_a_client_with_an_authority_sends_a_plain_server_nothing_of_its_own(ours, connect):
    recorder = Recorder()
    try:
        with pytest.raises((TeacherUnreachable, TlsRefused), match="plain text"):
            connect(recorder.endpoint, ours.trust())
    finally:
        recorder.close()
    assert recorder.received[:2] == b"\x16\x03"  # a record of a handshake
    assert TOKEN.encode() not in recorder.received
    assert b"PRPC" not in recorder.received
    assert b"GET" not in recorder.received


def test_a_plain_teacher_closes_a_connection_that_begins_with_tls(ours):
    with teacher() as served:
        with pytest.raises(TeacherUnreachable, match="perhaps it speaks plain text"):
            ask(served.endpoint, ours.trust())
        assert len(ask(served.endpoint, PLAIN))


def test_an_entry_that_has_lost_its_tls_is_refused_before_anything_is_sent(ours):
    text = Entry(tls=True).to_json()
    lost = json.dumps({**json.loads(text), "tls": False})
    with pytest.raises(TlsRefused, match="EDL_TEACHER_PLAIN_TEXT"):
        Entry.from_json(lost).connect("127.0.0.1:9", TOKEN, trust=ours.trust())
    with pytest.raises(TlsRefused):
        Entry.from_json('{"protocol": "pipeline"}').connect("127.0.0.1:9", trust=ours.trust())


def test_unless_plain_text_is_allowed(ours):
    with teacher(token=TOKEN) as served:
        trust = ours.trust(plain_text=True)
        with Entry.from_json(Entry().to_json()).connect(
            served.endpoint, TOKEN, trust=trust
        ) as client:
            assert len(client.infer(ONE)["y"])


def test_an_entry_says_what_its_teacher_speaks(ours):
    assert json.loads(Entry(tls=True).to_json())["tls"] is True
    assert "tls" not in json.loads(Entry().to_json())
    assert Entry.from_json('{"tls": true}').tls is True
    assert Entry.from_json("{gpu:20%}").tls is None  # of the original: nothing is said


@pytest.mark.parametrize(
    ("ours", "peer", "same"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", True),
        ("::1", "::1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", False),
    ],
)
def test_a_token_is_shown_in_plain_text_on_this_machine_only(ours, peer, same):
    assert is_same_machine(ours, peer) == same


needs_network = pytest.mark.skipif(
    not elsewhere.can_be(), reason="this system allows no network namespaces"
)


@needs_network
def test_beyond_this_machine_a_token_is_not_shown_in_plain_text_and_nothing_is_asked():
    found = elsewhere.what_comes_of_it(EDL_TEACHER_CA="", EDL_TOKEN_PLAIN_TEXT="")
    for name in ("client", "page"):
        raised, anything, token = found[f"{name} with a token"]
        assert raised.startswith("TlsRefused")
        assert "EDL_TOKEN_PLAIN_TEXT=1" in raised
        assert (anything, token) == (False, False)
        raised, anything, _ = found[f"{name} without"]
        assert anything
        assert not raised.startswith("TlsRefused")


@needs_network
def test_unless_that_is_allowed():
    found = elsewhere.what_comes_of_it(EDL_TEACHER_CA="", EDL_TOKEN_PLAIN_TEXT="1")
    assert [found[f"{name} with a token"][2] for name in ("client", "page")] == [True, True]


# --- files ----------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used_for_new_connections(ours, foreign, tmp_path):
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")

    def install(authority):
        for new, place in zip(authority.issue("127.0.0.1", called="renewed"), (cert, key)):
            shutil.copy(new, f"{place}.new")
            os.replace(f"{place}.new", place)

    install(foreign)
    with teacher(ServerTls(cert, key), local=False) as served:
        with TeacherClient(served.endpoint, trust=foreign.trust()) as before:
            before.infer(ONE)
            install(ours)
            assert len(ask(served.endpoint, ours.trust(), ""))
            before.infer(ONE)  # what was begun goes on
            os.unlink(key)  # half-written: the one before is kept
            assert len(ask(served.endpoint, ours.trust(), ""))


def test_files_that_are_none_are_refused_by_name(ours, tmp_path):
    cert, key = ours.issue("127.0.0.1")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"--tls-key.*no such file"):
        ServerTls(cert, "/no/such.pem")
    with pytest.raises(ConfigError, match="no certificate and its key"):
        teacher(ServerTls(str(text), key))
    with pytest.raises(ConfigError, match="holds no certificates"):
        teacher(ServerTls(cert, key, str(text)))
    other_key = ours.issue("127.0.0.1", called="other")[1]
    with pytest.raises(ConfigError, match="no certificate and its key"):
        teacher(ServerTls(cert, other_key))
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:x", "-out", str(locked)]
    if shutil.which("openssl"):
        subprocess.run(command, check=True, capture_output=True)
        with pytest.raises(ConfigError, match="has a password"):
            teacher(ServerTls(cert, str(locked)))


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"EDL_TEACHER_CERT": "a"}, "go together"),
        ({"EDL_TEACHER_CA": "/no/such.pem"}, "EDL_TEACHER_CA is '/no/such.pem'"),
        ({"EDL_TEACHER_PLAIN_TEXT": "yes"}, "must be 0 or 1"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(monkeypatch, variables, complaint):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=complaint):
        Trust.from_environment()


# --- who can reach it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "token", "secured", "said"),
    [
        ("127.0.0.1", "", False, ""),
        ("localhost", "", False, ""),
        ("::1", "", False, ""),
        ("0.0.0.0", "", False, "anybody who reaches 0.0.0.0 can use"),
        ("10.0.0.1", "t", False, "--tls-cert"),
        ("10.0.0.1", "", True, "EDL_TOKEN or --tls-client-ca"),
        ("10.0.0.1", "t", True, ""),
    ],
)
def test_what_is_said_of_a_teacher_that_others_can_reach(ours, host, token, secured, said):
    warning = exposure(host, token, ours.server() if secured else None)
    assert said in warning
    assert bool(said) == bool(warning)


def test_it_is_said_once_and_only_when_it_begins(caplog):
    with teacher(host="0.0.0.0") as served:
        address = served.endpoint.replace("0.0.0.0", "127.0.0.1")
        assert len(ask(address, PLAIN, ""))
        assert len(ask(address, PLAIN, ""))
    assert caplog.text.count("anybody who reaches 0.0.0.0") == 1


# --- hostile peers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16", id="the beginning of a handshake"),
        pytest.param(b"\x16\x03\x01\xff\xff" + b"\0" * 600, id="a record that is too long"),
        pytest.param(b"\x16" * 70_000, id="much of nothing"),
        pytest.param(b"PRPC", id="the beginning of a frame"),
        pytest.param(b"\0" * 99, id="zeros"),
    ],
)
def test_garbage_ends_its_connection_and_no_other(secured, ours, sent):
    host, port = secured.endpoint.split(":")
    with TeacherClient(secured.endpoint, token=TOKEN, trust=ours.trust()) as client:
        with socket.create_connection((host, int(port)), 10) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(20)
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 16):
                    pass
        assert len(client.infer(ONE)["y"])


def test_a_peer_that_resets_its_connection_before_the_handshake_is_no_failure(
    secured, ours, caplog
):
    """As who looks for open ports does: what it has sent is there, and it is not any longer."""
    host, port = secured.endpoint.split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.sendall(b"\x16\x03\x01")
    assert ask(secured.endpoint, ours.trust()).tolist() == [[2, 2, 2]]
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_peer_that_breaks_off_in_a_request_costs_nobody_else(secured, ours):
    host, port = secured.endpoint.split(":")
    context = ssl.create_default_context(cafile=ours.ca)
    with socket.create_connection((host, int(port)), 10) as raw:
        with context.wrap_socket(raw, server_hostname=host) as sock:
            sock.sendall(b"PRPC" + (1 << 20).to_bytes(4, "big") + (40).to_bytes(4, "big") + b"x")
    assert len(ask(secured.endpoint, ours.trust()))


def test_the_end_of_a_teacher_is_noticed_while_its_answer_is_awaited(ours):
    began, go_on = threading.Event(), threading.Event()

    def slow(x):
        began.set()
        go_on.wait(20)
        return x

    served = serve(slow, {"x": ((-1,), "float32")}, {"y": ((-1,), "float32")},
                   options=ServerOptions(tls=ours.server(), local=False))  # fmt: skip
    answers = []
    with TeacherClient(served.endpoint, trust=ours.trust()) as client:
        client.submit(ONE, ["y"], answers.append)
        assert began.wait(20)
        closing = threading.Thread(target=served.close, args=(0.1,))
        closing.start()
        go_on.set()
        closing.join(30)
        eventually(lambda: answers)
        with pytest.raises(TeacherConnectionLost):
            client.infer(ONE, timeout=20)
