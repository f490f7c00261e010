"""What a student serves for Prometheus: true while it reads and while it waits, and never twice."""

import logging
import os
import signal
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edl.discovery import StudentRecord
from edl.discovery.keys import STUDENTS, service_prefix
from edl.discovery.watch import list_prefix
from edl.distill import DistillReader, Limits, TeacherPool, running
from edl.distill.metrics import advertised, parse_ports
from edl.errors import BatchRefused, ConfigError
from tests.support.processes import alive, eventually, python_teacher

ROWS = 4


def batches(count=20):
    return [(np.full((ROWS, 3), number, "f4"), np.arange(ROWS)) for number in range(count)]


def reader_of(teachers, source=None, **options):
    source = batches() if source is None else source
    return DistillReader(["img", "label"], ["prob"], source=source, teachers=teachers, **options)


def figures(endpoint):
    """Each sample of a student's metrics, by name; of histograms' buckets the last."""
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {sample.name: sample.value for family in families for sample in family.samples}


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def registered(etcd, service):
    entries, _ = list_prefix(etcd, service_prefix(service) + STUDENTS)
    return {name: StudentRecord.from_json(text) for name, text in entries.items()}


@pytest.fixture
def own_teacher(etcd_server, service):
    """One that may be stopped, of a service; with the service's address."""
    where = ("--etcd", etcd_server.endpoint, "--service", service)
    with python_teacher("Sums", *where) as teacher:
        yield teacher, f"etcd://{etcd_server.endpoint}/{service}"


@pytest.fixture(scope="module")
def model_teacher():
    """One whose model can be told from others, so that its labels may be stored."""
    with python_teacher("Triple") as teacher:
        yield teacher


def test_what_is_served_is_what_the_student_counts(model_teacher, tmp_path):
    with reader_of(model_teacher.endpoint, metrics_port=0, store=tmp_path / "labels") as reader:
        for number, _ in enumerate(reader):
            if number == 9:
                there = figures(reader.metrics_endpoint)
                assert there["edl_student_epoch"] == 0
                assert there["edl_student_epoch_batches"] == 10
                assert there["edl_student_epoch_length_batches"] == 20
                assert there["edl_student_batches_total"] == 10
                assert there["edl_student_rows_total"] == 10 * ROWS
        reader.flush()
        for _ in reader:
            pass
        there, stats = figures(reader.metrics_endpoint), reader.stats()
    assert there["edl_student_epoch"] == 2  # the one that would be next
    assert there["edl_student_batches_total"] == 40
    assert there["edl_student_bytes_total"] == stats["bytes"]
    assert there["edl_student_teachers"] == 1
    assert there["edl_student_in_flight_requests"] == 0
    assert there["edl_student_failed_requests_total"] == 0
    assert there["edl_student_store_hit_rows_total"] == 20 * ROWS
    assert there["edl_student_store_miss_rows_total"] == 20 * ROWS
    assert there["edl_student_volume_batches"] == 0
    limits = Limits()
    assert there["edl_student_volume_low_batches"] == limits.low_batches
    assert there["edl_student_volume_high_batches"] == limits.high_batches
    assert there["edl_student_request_seconds_count"] == there["edl_student_requests_total"] == 20
    assert 0 < there["edl_student_wait_seconds_total"] <= there["edl_student_seconds_total"]


def test_who_asks_while_a_student_begins_is_told_what_there_is(
    model_teacher, tmp_path, monkeypatch
):
    answers = []

    def ask_first(server, config):
        answers.append(figures(server.endpoint))
        return advertised(server, config)

    monkeypatch.setattr(running, "advertised", ask_first)
    with reader_of(model_teacher.endpoint, metrics_port=0, store=tmp_path / "labels") as reader:
        assert len(list(reader)) == 20
    assert len(answers) == 1


def test_waiting_is_seen_while_it_lasts(own_teacher):
    teacher, service = own_teacher
    endless = iter(batches(1000))
    with reader_of(service, lambda: endless, metrics_port=0) as reader:
        items = iter(reader)
        next(items)
        os.kill(teacher.process.pid, signal.SIGSTOP)
        taking = threading.Thread(target=lambda: list(items), daemon=True)
        taking.start()
        try:
            eventually(lambda: figures(reader.metrics_endpoint)["edl_student_volume_batches"] == 0)
            before = figures(reader.metrics_endpoint)
            time.sleep(0.3)
            after = figures(reader.metrics_endpoint)
        finally:
            os.kill(teacher.process.pid, signal.SIGCONT)
        waited, lasted = (
            after[name] - before[name]
            for name in ("edl_student_wait_seconds_total", "edl_student_seconds_total")
        )
        assert waited == pytest.approx(lasted, abs=0.05)
        assert waited >= 0.3
        assert before["edl_student_batches_total"] == after["edl_student_batches_total"]
        taking.join(30)


def test_the_registry_says_where(own_teacher, etcd, service):
    with reader_of(own_teacher[1], metrics_port=0) as reader:
        assert reader.metrics_endpoint is None
        iteration = iter(reader)
        next(iteration)
        (record,) = eventually(lambda: registered(etcd, service)).values()
        assert record.metrics == reader.metrics_endpoint
        assert record.metrics.startswith("127.0.0.1:")


def test_who_listens_everywhere_says_an_address_of_this_machine(
    own_teacher, etcd, service, monkeypatch
):
    monkeypatch.setenv("EDL_METRICS_PORT", "0")
    monkeypatch.setenv("EDL_METRICS_HOST", "0.0.0.0")
    with reader_of(own_teacher[1]) as reader:
        iteration = iter(reader)
        next(iteration)
        (record,) = eventually(lambda: registered(etcd, service)).values()
        port = reader.metrics_endpoint.rpartition(":")[2]
        assert record.metrics == f"127.0.0.1:{port}"  # the way to this etcd
        assert figures(record.metrics)["edl_student_batches_total"] == 1


def test_students_of_one_machine_find_ports_of_their_own(sums_teacher, monkeypatch):
    first = free_port()
    monkeypatch.setenv("EDL_METRICS_PORT", f"{first}-{min(65535, first + 50)}")
    with reader_of(sums_teacher.endpoint) as one, reader_of(sums_teacher.endpoint) as other:
        for reader in (one, other):
            assert len(list(reader)) == 20
        assert one.metrics_endpoint != other.metrics_endpoint
        for reader in (one, other):
            assert figures(reader.metrics_endpoint)["edl_student_batches_total"] == 20


def test_a_port_that_is_taken_ends_no_training(sums_teacher, caplog):
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        with reader_of(sums_teacher.endpoint, metrics_port=port) as reader:
            with caplog.at_level(logging.WARNING):
                assert len(list(reader)) == 20
            assert reader.metrics_endpoint is None
    assert f"cannot listen on 127.0.0.1:{port}" in caplog.text


def test_a_closed_reader_leaves_the_port_free_even_if_a_child_has_its_socket(sums_teacher):
    port = free_port()
    with reader_of(sums_teacher.endpoint, metrics_port=port) as reader:
        assert len(list(reader)) == 20
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        try:
            reader.close()
            assert alive(child)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
            assert len(list(reader)) == 20
            assert reader.metrics_endpoint == f"127.0.0.1:{port}"
            assert figures(reader.metrics_endpoint)["edl_student_batches_total"] == 20
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.mark.parametrize(("port", "serving"), [(None, 1), (0, 2)], ids=["one port", "any port"])
def test_workers_of_a_dataloader_do_not_fight_for_a_port(
    own_teacher, etcd, service, port, serving, caplog
):
    paddle = pytest.importorskip("paddle")
    port = free_port() if port is None else port
    with reader_of(own_teacher[1], metrics_port=port) as reader:
        loader = iter(paddle.io.DataLoader(reader, batch_size=None, num_workers=2))
        next(loader)
        records = eventually(
            lambda: (found := registered(etcd, service)) and len(found) == 2 and found
        )
        addresses = {record.metrics for record in records.values()} - {None}
        assert len(addresses) == serving
        assert all("edl_student_rows_total" in figures(address) for address in addresses)
        assert reader.metrics_endpoint is None
        assert sum(1 for _ in loader) == 19


def test_of_several_models_each_has_its_own(sums_teacher):
    teachers = dict.fromkeys(("a", "b"), sums_teacher.endpoint)
    with reader_of(teachers, metrics_port=0) as reader:
        list(reader)
        address = f"http://{reader.metrics_endpoint}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    rows = {
        sample.labels["service"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "edl_student_rows_total"
    }
    assert rows == {"a": 20 * ROWS, "b": 20 * ROWS}


def test_a_teacher_pool_serves_its_requests(sums_teacher):
    with TeacherPool(["prob"], sums_teacher.endpoint, metrics_port=0) as pool:
        pool.infer({"img": np.ones((ROWS, 3), "f4")})
        there = figures(pool.metrics_endpoint)
    assert there["edl_student_rows_total"] == ROWS
    assert there["edl_student_outstanding_requests"] == 0
    assert "edl_student_wait_seconds_total" not in there


@pytest.mark.parametrize(("teacher", "times"), [("Picky", 1), ("Fragile", 3)])
def test_requests_that_fail_are_counted(teacher, times):
    negative = [(np.full((ROWS, 3), -1, "f4"), np.arange(ROWS))]
    with python_teacher(teacher) as teacher:
        with reader_of(teacher.endpoint, negative, metrics_port=0) as reader:
            with pytest.raises(BatchRefused):
                list(reader)
            assert figures(reader.metrics_endpoint)["edl_student_failed_requests_total"] == times


@pytest.mark.parametrize(
    ("said", "ports"),
    [(0, [0]), (9100, [9100]), ("9100", [9100]), ("9100-9102", [9100, 9101, 9102])],
)
def test_ports_are_read(said, ports):
    assert list(parse_ports("metrics_port", said)) == ports


@pytest.mark.parametrize("said", [-1, 65536, True, 1.5, "", "x", "2-1", "0-9", "1-65536", "1-2-3"])
def test_what_is_no_port_is_refused(said):
    with pytest.raises(ConfigError, match="metrics_port"):
        parse_ports("metrics_port", said)
