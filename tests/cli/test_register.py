"""``edl register`` with real servers, a real etcd, and real signals."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edl.cli.register import _can_be_probed, _entry
from edl.discovery import Registration, list_nodes
from edl.discovery.embedded import free_port
from edl.distill import DistillReader
from edl.serving import TeacherClient, TensorSpec
from edl.serving.client.entry import Entry
from edl.serving.model.prototxt import ModelConfig, Variable, write_config
from edl.serving.wire import frame
from tests.distill.test_bad_teachers import respond
from tests.serving.client.test_teacher import receive
from tests.support.predictors import Sums
from tests.support.processes import ROOT, Registrar, Teacher, edl, eventually, python_teacher


@pytest.fixture
def where(etcd_server, service):
    return ("--etcd", etcd_server.endpoint, "--service", service)


def nodes(etcd, service):
    return list_nodes(etcd, service)[0]


def registering(*arguments):
    """``edl register``, whose words can be read."""
    command = [sys.executable, "-m", "edl.cli.main", "register", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def refused(*arguments):
    """``edl register`` that has looked at its server, and says that it waits for it."""
    with registering(*arguments) as process:
        assert "waiting for" in process.stderr.readline()
        yield
        process.terminate()
        assert process.wait(20) == 0


FAST = ("--interval", 0.1, "--timeout", 1)


def test_a_server_is_registered_with_what_it_serves_until_the_registrar_ends(where, etcd, service):
    with python_teacher("Sums") as teacher:
        with Registrar(*where, "--server", teacher.endpoint, *FAST):
            eventually(lambda: nodes(etcd, service))
            ((endpoint, value),) = nodes(etcd, service).items()
            entry = json.loads(value)
            assert endpoint == teacher.endpoint
            assert (entry["protocol"], entry["fetches"]["prob"]["shape"]) == ("baidu_std", [2])
        assert nodes(etcd, service) == {}


def test_it_waits_for_a_server_takes_it_out_and_puts_it_back(where, etcd, service):
    with python_teacher("Sums") as teacher:
        port = teacher.port
        teacher.kill()
        teacher.wait()
        with Registrar(*where, "--server", teacher.endpoint, *FAST):
            time.sleep(0.5)
            assert nodes(etcd, service) == {}
            with python_teacher("Sums", port=port) as second:
                eventually(lambda: nodes(etcd, service))
                second.kill(signal.SIGSTOP)
                eventually(lambda: not nodes(etcd, service), 20)
                second.kill(signal.SIGCONT)
                eventually(lambda: nodes(etcd, service), 20)
            eventually(lambda: not nodes(etcd, service), 20)


def test_a_server_that_answers_but_does_not_compute_fails_the_probe(where, etcd, service):
    with python_teacher("Hollow") as teacher:
        with refused(*where, "--server", teacher.endpoint, "--probe", *FAST):
            assert nodes(etcd, service) == {}
        with Registrar(*where, "--server", teacher.endpoint, *FAST):
            eventually(lambda: nodes(etcd, service))


def test_a_server_whose_conf_is_known_is_probed_unless_told_otherwise(
    where, etcd, service, tmp_path
):
    spec = TensorSpec((4,), "float32")
    conf = tmp_path / "conf.prototxt"
    write_config(
        conf,
        ModelConfig(
            (Variable("img", "img", spec),),
            (Variable("prob", "prob", TensorSpec((2,), "float32")),),
        ),
    )
    with python_teacher("Hollow") as teacher:
        named = ("--server", teacher.endpoint, "--conf", conf, *FAST)
        with refused(*where, *named):
            assert nodes(etcd, service) == {}
        with Registrar(*where, *named, "--no-probe"):
            eventually(lambda: nodes(etcd, service))


def test_a_server_that_cannot_be_probed_is_taken_at_its_word(where, etcd, service, tmp_path):
    conf = tmp_path / "conf.prototxt"
    model = ModelConfig(
        (Variable("img", "img", TensorSpec((-1, 4), "float32")),),
        (Variable("prob", "prob", TensorSpec((2,), "float32")),),
    )
    write_config(conf, model)
    with python_teacher("Hollow") as teacher:
        named = ("--server", teacher.endpoint, "--conf", conf, *FAST)
        with registering(*where, *named) as process:
            assert "cannot probe: feed 'img' has no fixed size" in process.stderr.readline()
            eventually(lambda: nodes(etcd, service))
            process.terminate()
            assert process.wait(20) == 0


def test_a_server_that_is_gone_again_is_registered_as_it_was_described(where, etcd, service):
    """It is healthy once; nobody is there when it is asked what it serves."""
    listener = socket.create_server(("127.0.0.1", 0))
    endpoint = f"127.0.0.1:{listener.getsockname()[1]}"

    def answer_once():
        conn, _ = listener.accept()
        listener.close()
        with conn:
            body_size, meta_size = frame.parse_header(receive(conn, frame.HEADER_SIZE))
            meta, _ = frame.parse_body(memoryview(receive(conn, body_size)), meta_size)
            respond(conn, meta, [Sums.description.to_json().encode()])

    threading.Thread(target=answer_once, daemon=True).start()
    patient = ("--interval", 0.1, "--failures", 10**6)
    with Registrar(*where, "--server", endpoint, *patient):
        eventually(lambda: nodes(etcd, service))
        assert "feeds" not in json.loads(nodes(etcd, service)[endpoint])


def test_a_server_is_known_for_the_model_in_its_directory(where, etcd, service, paddle_model):
    """An entry says the same fingerprint as an edl teacher of that model."""
    with Teacher("--model", paddle_model) as teacher:
        with TeacherClient(teacher.endpoint) as client:
            fingerprint = client.describe().fingerprint
    directory = paddle_model / "serving_server"
    options = {"conf": None, "model": directory, "protocol": "baidu_std", "form": "tensors"}
    assert _entry(options).description.fingerprint == fingerprint
    assert _can_be_probed(_entry(options).description)


def test_an_entry_of_another_registrar_is_left_alone_and_taken_over_when_it_is_gone(
    where, etcd, service
):
    with python_teacher("Sums") as teacher:
        other = Registration(etcd, service, teacher.endpoint, "the other's", ttl=1)
        other.start()
        with Registrar(*where, "--server", teacher.endpoint, *FAST):
            time.sleep(1.5)
            assert nodes(etcd, service) == {teacher.endpoint: "the other's"}
            other.stop()
            eventually(lambda: "protocol" in nodes(etcd, service).get(teacher.endpoint, ""))
        other = Registration(etcd, service, teacher.endpoint, "the other's", ttl=2)
        other.start()
        with registering(*where, "--server", teacher.endpoint, *FAST) as process:
            assert "is healthy" in process.stderr.readline()
            time.sleep(0.5)
            process.terminate()
            assert process.wait(20) == 0
        assert nodes(etcd, service) == {teacher.endpoint: "the other's"}, "still"
        other.stop()


def test_it_says_what_it_waits_for(where):
    with registering(*where, "--server", f"127.0.0.1:{free_port()}") as process:
        assert re.search(r"waiting for 127.*cannot connect", process.stderr.readline())
        process.terminate()
        assert process.wait(20) == 0


def test_a_registrar_that_is_killed_leaves_the_registry_with_its_lease(where, etcd, service):
    with python_teacher("Sums") as teacher:
        registrar = Registrar(*where, "--server", teacher.endpoint, "--ttl", 1, *FAST)
        eventually(lambda: nodes(etcd, service))
        registrar.process.kill()
        registrar.process.wait()
        eventually(lambda: not nodes(etcd, service))


def test_several_servers_are_kept_under_the_host_that_students_use(where, etcd, service):
    with python_teacher("Sums") as one, python_teacher("Sums") as two:
        servers = ("--server", one.endpoint, "--server", two.endpoint)
        with Registrar(*where, *servers, "--advertise", "teacher.example", *FAST):
            expected = {f"teacher.example:{teacher.port}" for teacher in (one, two)}
            eventually(lambda: nodes(etcd, service).keys() == expected)


def test_a_student_uses_what_the_originals_registrar_wrote(etcd_server, etcd, service):
    """The value that the original's registrar writes is not JSON; its key is the same as ours."""
    with python_teacher("Sums") as teacher:
        etcd.call(
            lambda client: client.put(
                f"/service/{service}/nodes/{teacher.endpoint}", "{gpu:20%, net:1}"
            )
        )
        x = np.ones((2, 3), "f4")
        teachers = f"etcd://{etcd_server.endpoint}/{service}"
        with DistillReader(["img"], ["prob"], source=[(x,)], teachers=teachers) as reader:
            ((_, prob),) = reader
    assert prob[0, 0] == 3


@pytest.mark.parametrize(
    ("value", "protocol"),
    [
        ("", "baidu_std"),
        ("{gpu:20%, net:1}", "baidu_std"),
        ("[]", "baidu_std"),
        ("{}", "baidu_std"),
        ('{"protocol": "pipeline", "form": "key_value"}', "pipeline"),
    ],
)
def test_entries_of_any_origin_are_understood(value, protocol):
    entry = Entry.from_json(value)
    assert (entry.protocol, entry.description) == (protocol, None)
    assert Entry.from_json(entry.to_json()).protocol == protocol


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--server", "nonsense"], "'nonsense' is not host:port"),
        (["--server", "a:1", "--conf", "/no/such"], "/no/such"),
        (["--server", "a:1", "--model", "BARE"], "has no serving_server_conf.prototxt; edl export"),
        (["--server", "a:1", "--conf", __file__], "is not a Paddle Serving configuration"),
    ],
)
def test_what_cannot_be_registered_is_refused(where, arguments, complaint, tmp_path):
    for name in ("bare.pdmodel", "bare.pdiparams"):
        (tmp_path / name).touch()
    arguments = [str(tmp_path) if item == "BARE" else item for item in arguments]
    result = edl("register", *where, *arguments)
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_registrar_imports_no_paddle(where):
    code = (
        "import sys, edl.cli.register, edl.discovery, edl.serving.client.health\n"
        "assert 'paddle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
