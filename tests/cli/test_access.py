"""Commands that talk to teachers, with teachers that speak TLS."""

import json
import ssl
import time

import pytest

from edl.cli.inspection import NOTE, OK, PROBLEM, check_trust
from edl.discovery import list_nodes
from tests.support.certificates import Authority
from tests.support.processes import Registrar, edl, eventually, python_teacher


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def secured(ours):
    cert, key = ours.issue("127.0.0.1")
    arguments = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ours.ca)
    with python_teacher("Sums", *arguments) as teacher:
        yield teacher


@pytest.fixture
def trusting(ours, monkeypatch):
    """Programs that are started now believe in our authority, and have a certificate of it."""
    cert, key = ours.issue("student.example")
    for name, value in (("CA", ours.ca), ("CERT", cert), ("KEY", key)):
        monkeypatch.setenv(f"EDL_TEACHER_{name}", value)


@pytest.mark.usefixtures("trusting")
def test_a_teacher_is_measured_and_so_are_its_figures(secured):
    result = edl("bench", secured.endpoint, "--batch", 1, "--clients", 1, "--seconds", 0.2,
                 "--feed", "img:float32:3", "--json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    (speed,) = json.loads(result.stdout)
    assert speed["queue"] is not None


def test_without_an_authority_it_is_said_what_is_missing(secured):
    result = edl("bench", secured.endpoint, "--feed", "img:float32:3")
    assert result.returncode == 1
    assert "speaks TLS only: set EDL_TEACHER_CA" in result.stderr


@pytest.mark.usefixtures("trusting")
def test_a_registrar_says_that_its_server_speaks_tls(secured, etcd_server, etcd, service):
    with Registrar(
        "--etcd", etcd_server.endpoint, "--service", service, "--server", secured.endpoint
    ):
        entry = eventually(lambda: list_nodes(etcd, service)[0].get(secured.endpoint))
    assert json.loads(entry)["tls"] is True


@pytest.mark.parametrize("given", ["--tls-cert", "--tls-key", "--tls-client-ca"])
def test_options_that_go_together_are_asked_for(ours, given):
    result = edl("teacher", "--python", "tests.support.predictors:Sums", given, ours.ca)
    assert result.returncode == 2
    assert "--tls-key" in result.stderr


def test_doctor_looks_at_what_teachers_are_believed_by(ours, monkeypatch):
    now = time.time()
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.delenv(f"EDL_TEACHER_{name}", raising=False)
    assert [finding.state for finding in check_trust(now)] == [OK]
    monkeypatch.setenv("EDL_TEACHER_CA", ours.ca)
    assert [finding.state for finding in check_trust(now)] == [OK]
    (authority,) = ssl.create_default_context(cafile=ours.ca).get_ca_certs()
    end = ssl.cert_time_to_seconds(authority["notAfter"])
    assert [finding.state for finding in check_trust(end - 10 * 86400)] == [NOTE]
    assert [finding.state for finding in check_trust(end + 86400)] == [PROBLEM]
    monkeypatch.setenv("EDL_TEACHER_CA", ours.issue("127.0.0.1")[1])
    assert [finding.state for finding in check_trust(now)] == [PROBLEM]
