"""``edl targets``: what Prometheus is told to ask, whatever strangers have written."""

import json
import urllib.error

import pytest

from edl.discovery import Registration, StudentRecord
from edl.discovery.embedded import EmbeddedEtcd, free_port
from edl.discovery.keys import STUDENTS
from edl.discovery.targets import targets
from tests.support.processes import Targets, edl

TEACHER = json.dumps({"protocol": "baidu_std", "device": "gpu:0", "fingerprint": "model:1"})
STUDENT = StudentRecord(metrics="10.0.0.3:9100").to_json()


def test_teachers_and_students_are_found_with_their_labels():
    found = targets({"a/nodes/10.0.0.1:9292": TEACHER, "a/students/1": STUDENT})
    said = {"device": "gpu:0", "model": "model:1"}
    assert found == [
        {"targets": ["10.0.0.1:9292"], "labels": {"role": "teacher", "service": "a", **said}},
        {"targets": ["10.0.0.3:9100"], "labels": {"role": "student", "service": "a"}},
    ]
    (only,) = targets({"a/nodes/10.0.0.1:9292": TEACHER, "a/students/1": STUDENT}, "student")
    assert only["targets"] == ["10.0.0.3:9100"]


def test_an_address_is_asked_once_whatever_it_serves():
    (one,) = targets({f"{name}/students/{name}": STUDENT for name in "ab"})
    assert one["labels"]["service"] == "a,b"


def test_a_teacher_with_tls_is_asked_by_https():
    entry = json.dumps({"protocol": "baidu_std", "tls": True})
    (one,) = targets({"a/nodes/10.0.0.1:9292": entry})
    assert one["labels"]["__scheme__"] == "https"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a/nodes/10.0.0.1:9292", "{gpu:20%, net:1}"),  # the original's
        ("a/nodes/10.0.0.1:9292", '{"protocol": "pipeline", "registrar": 7}'),
        ("a/nodes/10.0.0.1:9292/../x", TEACHER),
        ("a/nodes/evil?x=:80", TEACHER),
        ("a/nodes/10.0.0.1", TEACHER),
        ("a/students/1", StudentRecord().to_json()),
        ("a/students/1", '{"metrics": "http://10.0.0.3:9100"}'),
        ("a/students/1", '{"metrics": ["10.0.0.3:9100"]}'),
        ("a/students/1", "[" * 100_000),
        ("a/assignments/1", STUDENT),
        ("a", STUDENT),
    ],
)
def test_what_has_no_figures_or_no_address_is_left_out(key, value):
    assert targets({key: value}) == []


def test_labels_are_short_lines_whatever_is_written():
    entry = json.dumps(
        {"protocol": "baidu_std", "device": "x\n\0" + "y" * 9999, "fingerprint": {"a": 1}}
    )
    (one,) = targets({"a/nodes/h:1": entry})
    assert one["labels"]["device"].startswith("x\ufffd\ufffdyy")
    assert len(one["labels"]["device"]) == 200
    assert one["labels"]["model"] == ""


def test_it_is_printed_once_without_a_port(etcd_server, etcd, service):
    teacher = Registration(etcd, service, "10.0.0.1:9292", TEACHER)
    teacher.start()
    result = edl("targets", "--etcd", etcd_server.endpoint)
    teacher.stop()
    assert result.returncode == 0
    ours = [one for one in json.loads(result.stdout) if one["labels"]["service"] == service]
    assert [one["targets"] for one in ours] == [["10.0.0.1:9292"]]


def test_it_is_served_as_the_registry_is_now(etcd_server, etcd, service):
    with Targets(etcd_server.endpoint) as served:
        for page in ("/", "/students", "/teachers"):
            assert service not in [one["labels"]["service"] for one in served.get(page)]
        student = Registration(etcd, service, "1", STUDENT, kind=STUDENTS)
        student.start()
        for page, count in (("/", 1), ("/students", 1), ("/teachers", 0)):
            found = [one for one in served.get(page) if one["labels"]["service"] == service]
            assert len(found) == count
        with pytest.raises(urllib.error.HTTPError) as error:
            served.get("/elsewhere")
        assert error.value.code == 404
        student.stop()
        assert service not in [one["labels"]["service"] for one in served.get("/")]


def test_while_etcd_is_away_prometheus_is_told_nothing():
    with EmbeddedEtcd() as server:
        served = Targets(server.endpoint)
        with served:
            assert served.get("/") == []
            server.stop()
            with pytest.raises(urllib.error.HTTPError) as error:
                served.get("/")
            assert error.value.code == 503


def test_a_port_that_is_taken_is_said(etcd_server):
    port = free_port()
    with Targets(etcd_server.endpoint, port):
        result = edl("targets", "--etcd", etcd_server.endpoint, "--port", port)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
