"""What is read of a page of figures, whoever wrote it."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from edl.serving.server.metrics import Metrics
from edl.view.exposition import last_error, reader
from edl.view.figures import (
    Samples,
    read_student,
    read_teacher,
    student_figures,
    teacher_figures,
)

read = reader(["edl_rows_total", "edl_requests_total", "up"])


def test_values_are_added_up_over_labels_and_by_outcome():
    registry = CollectorRegistry()
    requests = Counter("edl_requests", "", ["protocol", "outcome"], registry=registry)
    requests.labels("http", "ok").inc(3)
    requests.labels("baidu_std", "ok").inc(4)
    requests.labels("baidu_std", "failed").inc(2)
    Gauge("up", "", registry=registry).set(-1.5)
    Counter("edl_rows_seconds", "another", registry=registry).inc(9)
    assert read(generate_latest(registry).decode()) == {
        "edl_requests_total": 9.0,
        "edl_requests_total:ok": 7.0,
        "edl_requests_total:failed": 2.0,
        "up": -1.5,
    }


@pytest.mark.parametrize(
    "text",
    [
        "edl_rows_total NaN",
        "edl_rows_total +Inf",
        "edl_rows_total 1e999",
        "edl_rows_total 1e30",
        "edl_rows_total " + "9" * 5000,
        "edl_rows_total <b>1</b>",
        "edl_rows_total",
        "edl_rows_total{" + "x" * 100_000 + "} 1",
        'edl_rows_total{a="' + "{" * 1000 + " 1",
        "# edl_rows_total 1",
        "edl_rows_total_of_others 1",
        "\0" * 1000,
        "edl_rows_total{} " * 20_000,
    ],
    ids=lambda text: text[:30],
)
def test_what_makes_no_sense_is_not_there(text):
    assert "edl_rows_total" not in read(text)


def test_a_student_is_told_from_others_on_its_port():
    text = 'edl_student_rows_total{service="s",student="%s"} %d\n'
    page = text % ("one", 1) + text % ("two", 2)
    assert read_student(page, 'student="two"') == {"edl_student_rows_total": 2.0}


def test_the_last_error_of_a_teacher_is_read_in_its_words():
    metrics = Metrics()
    assert last_error(metrics.exposition().decode()) == ""
    metrics.last_error = "the model failed:\nedl_rows_total 99\n" + "x" * 1000
    page = metrics.exposition().decode()
    assert last_error(page).startswith("the model failed: edl_rows_total 99 xxx")
    assert len(last_error(page)) == 300
    assert read_teacher(page)["edl_rows_total"] == 0.0


def test_rates_and_shares_are_of_the_last_half_minute():
    samples = Samples()
    for second in range(0, 100, 10):
        requests = 10.0 * second
        samples.add(
            second,
            {
                "edl_rows_total": 320.0 * second,
                "edl_compute_seconds_sum": 0.6 * second * 2,
                "edl_workers_ready": 2.0,
                "edl_requests_total": requests,
                "edl_requests_total:failed": 0.05 * requests,
                "edl_request_seconds_sum": 0.02 * requests,
                "edl_request_seconds_count": requests,
                "edl_queued_rows": 7.0,
            },
        )
    assert samples.seconds == 30.0
    figures = teacher_figures(samples)
    assert figures.rows == pytest.approx(320.0)
    assert figures.busy == pytest.approx(0.6)
    assert figures.latency == pytest.approx(0.02)
    assert figures.errors == pytest.approx(0.05)
    assert figures.queued_rows == 7.0


def test_a_student_that_waits():
    samples = Samples()
    for second in (0, 10):
        figures = {"seconds": second, "wait_seconds": 0.31 * second, "rows": 100 * second,
                   "store_hit_rows": 30 * second, "store_miss_rows": 70 * second}  # fmt: skip
        samples.add(second, {f"edl_student_{name}_total": v for name, v in figures.items()})
    figures = student_figures(samples)
    assert figures.waits == pytest.approx(0.31)
    assert figures.store_hits == pytest.approx(0.3)
    assert figures.rows == pytest.approx(100)


def test_counters_that_begin_anew_make_no_negative_rates():
    samples = Samples()
    samples.add(0, {"edl_rows_total": 1e6})
    samples.add(10, {"edl_rows_total": 50.0})
    assert teacher_figures(samples).rows is None
    samples.add(20, {"edl_rows_total": 150.0})
    assert teacher_figures(samples).rows == 10.0


def test_one_look_says_no_rates():
    samples = Samples()
    samples.add(0, {"edl_rows_total": 5.0, "edl_queued_rows": 1.0})
    figures = teacher_figures(samples)
    assert (figures.rows, figures.busy, figures.errors) == (None, None, None)
    assert figures.queued_rows == 1.0
