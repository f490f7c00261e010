"""``deploy/prometheus`` and ``deploy/grafana``, with a real Prometheus and real students."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack, closing, contextmanager, suppress

import numpy as np
import pytest

from edl.discovery.embedded import EmbeddedEtcd, free_port
from edl.distill import DistillReader, TeacherPool
from edl.errors import BatchRefused
from tests.support.certificates import Authority
from tests.support.processes import ROOT, Targets, eventually, python_teacher

PROMETHEUS, GRAFANA = ROOT / "deploy/prometheus", ROOT / "deploy/grafana"
SERVICE = "watched"
ROWS = 4

installed = pytest.mark.skipif(
    shutil.which("prometheus") is None and os.environ.get("CI") != "true",
    reason="prometheus is not installed (Debian: apt-get install prometheus)",
)


def dashboard():
    return json.loads((GRAFANA / "dashboards/edl.json").read_text())


def panels():
    return dashboard()["panels"]


def queries():
    """All that the dashboard asks, with a value for each of Grafana's variables."""
    return [
        target["expr"].replace("$service", ".*").replace("$__rate_interval", "30s")
        for panel in panels()
        for target in panel.get("targets", ())
    ]


def without_thresholds(expression):
    """What is compared: there whether it is too much or not."""
    return re.sub(r" (?:==|[<>]=?) [0-9.]+", "", expression)


def promtool(*arguments, **options):
    return subprocess.run(
        ["promtool", *map(str, arguments)],
        cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


# --- the files ---------------------------------------------------------------------------------


def test_panels_have_names_of_their_own_and_do_not_overlap():
    taken = {}
    for panel in panels():
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["id"]) == panel["id"], panel["title"]
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert all(panel["description"] for panel in panels() if panel["type"] != "row")


def test_dashboard_and_alerts_ask_for_figures_that_are_in_the_table():
    page = (ROOT / "docs/reference/figures.md").read_text()
    known = set(re.findall(r"^\| `(edl_\w+)` \|", page, re.MULTILINE))
    text = "\n".join([*queries(), (PROMETHEUS / "alerts.yml").read_text()])
    asked = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bedl_\w+", text)}
    assert len(asked) > 25
    assert asked <= known


def test_the_page_shows_the_files_commands():
    page = (ROOT / "docs/how-to/figures.md").read_text()
    alerts = re.findall(r"alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text())
    tests = (PROMETHEUS / "alerts_test.yml").read_text()
    assert len(alerts) == len(set(alerts)) > 10
    assert not [name for name in alerts if f"| `{name}` |" not in page]
    assert not [name for name in alerts if f"alertname: {name}\n" not in tests]


@installed
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(arguments):
    result = promtool(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout


# --- with everything running ---------------------------------------------------------------------


class Prometheus:
    """A real one, with the configuration of deploy/prometheus, and all that is commented out there.
    ``real``: what stands in the place of what is written there.
    """

    def __init__(self, directory, real):
        shutil.copy(PROMETHEUS / "alerts.yml", directory)
        text = (PROMETHEUS / "prometheus.yml").read_text()
        text = re.sub(r"^( +)# ( *(?:- )?[a-z_]+:)", r"\1\2", text, flags=re.MULTILINE)
        for written, value in real.items():
            assert written in text
            text = text.replace(written, str(value))
        (directory / "prometheus.yml").write_text(text)
        self.address = f"http://127.0.0.1:{free_port()}"
        self._process = subprocess.Popen(
            [
                *("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
                *(f"--web.listen-address={self.address[7:]}", "--log.level=error"),
            ],
            cwd=directory,
        )

    def get(self, path, **arguments):
        """The data of an answer of its API."""
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {error.read().decode()}") from error

    def ask(self, query):
        """The numbers that a query gives; those that are none are left out."""
        found = [float(each["value"][1]) for each in self.get("query", query=query)["result"]]
        return [value for value in found if not math.isnan(value)]

    def close(self):
        self._process.terminate()
        self._process.wait(20)


@contextmanager
def balancer_of(*where):
    """``edl balancer``, once it leads; the address of its metrics."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "edl.cli.main", "balancer", "--metrics-port", address[10:]]
    process = subprocess.Popen([*command, *where], cwd=ROOT, stdout=subprocess.DEVNULL)

    def leads():
        with suppress(OSError), urllib.request.urlopen(f"http://{address}/metrics") as answer:
            return f'edl_service_students{{service="{SERVICE}"}}' in answer.read().decode()

    eventually(leads, 30)
    yield address
    process.terminate()
    process.wait(20)


def batches(count):
    return [(np.full((ROWS, 3), number, "f4"), np.arange(ROWS)) for number in range(count)]


def read(reader, stop):
    """A student's loop: epochs until ``stop``."""
    with reader:
        while not stop.is_set():
            for _ in reader:
                if stop.wait(0.02):
                    break


def ask(pool, stop):
    """Somebody who asks what cannot be computed now and then."""
    with pool:
        while not stop.wait(0.2):
            pool.infer({"img": np.ones((ROWS, 3), "f4")})
            with suppress(BatchRefused):
                pool.infer({"img": np.full((ROWS, 3), -1, "f4")})


@pytest.fixture(scope="module")
def registry():
    """One with nobody in it but who is started here."""
    with EmbeddedEtcd() as server:
        yield server.endpoint


@pytest.fixture(scope="module")
def prometheus(registry, tmp_path_factory):
    directory, stop = tmp_path_factory.mktemp("prometheus"), threading.Event()
    address = f"etcd://{registry}/{SERVICE}"
    where = ("--etcd", registry, "--service", SERVICE)
    told = {"teachers": address, "metrics_port": 0}
    readers = [
        DistillReader(["img", "label"], ["prob"], batches(50), **options, **told)
        for options in ({}, {"store": directory / "labels"})
    ]
    loops = [
        *(threading.Thread(target=read, args=(reader, stop)) for reader in readers),
        threading.Thread(target=ask, args=(TeacherPool(["prob"], **told), stop)),
    ]
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(python_teacher("FragileModel", *where, verbose=False))
        authority = Authority(directory)
        cert, key = authority.issue("127.0.0.1")
        secured = ("--token", "secret", "--tls-cert", cert, "--tls-key", key)
        elsewhere = ("--etcd", registry, "--service", "secured")
        stack.enter_context(python_teacher("Sums", *elsewhere, *secured, verbose=False))
        balancer = stack.enter_context(balancer_of(*where))
        targets = stack.enter_context(Targets(registry))
        for loop in loops:
            loop.start()
            stack.callback(loop.join, 20)
        stack.callback(stop.set)
        (directory / "token").write_text("secret")
        real = {
            "http://127.0.0.1:9099": targets.address,
            "127.0.0.1:9098": balancer,
            "interval: 5s": "interval: 1s",
            "/etc/prometheus/edl-ca.pem": authority.ca,
            "/etc/prometheus/edl-token": directory / "token",
        }
        server = Prometheus(directory, real)
        yield stack.enter_context(closing(server))


@pytest.fixture(scope="module")
def scraped(prometheus):
    """The same, once everybody has been asked often enough for a rate."""

    def up():
        with suppress(OSError, AssertionError):
            roles = [target["labels"].get("role") for target in active(prometheus)]
            return sorted(roles, key=str) == [None, *["student"] * 3, *["teacher"] * 3]

    def counted():
        few = prometheus.ask("min(count_over_time(up[10m]))")
        return few and few[0] >= 3

    eventually(up, 60)
    eventually(counted, 60)
    return prometheus


def active(prometheus):
    return [
        target
        for target in prometheus.get("targets", state="active")["activeTargets"]
        if target["health"] == "up"
    ]


@installed
def test_teachers_and_students_are_found_with_their_labels(scraped):
    found = [target["labels"] for target in active(scraped)]
    teachers = [labels for labels in found if labels.get("role") == "teacher"]
    assert {labels["service"] for labels in found if "role" in labels} == {SERVICE, "secured"}
    assert {labels["job"] for labels in teachers} == {"edl-teachers"}
    assert "fragile" in {labels["model"] for labels in teachers}
    (students,) = scraped.ask("count(count by (student) (edl_student_rows_total))")
    assert students == 3


@installed
def test_a_teacher_with_tls_and_a_token_is_asked_with_both(scraped):
    (secured,) = [each for each in active(scraped) if each["labels"].get("service") == "secured"]
    assert secured["scrapeUrl"].startswith("https://127.0.0.1:")


@installed
def test_every_query_of_the_dashboard_has_data(scraped):
    asked = [without_thresholds(query) for query in queries()]
    assert len(asked) > 30
    empty = set(asked)

    def answered():
        empty.difference_update([query for query in empty if scraped.ask(query)])
        return not empty

    with suppress(AssertionError):
        eventually(answered, 30)
    assert not empty


@installed
def test_every_alert_has_data_and_none_is_raised_for_nothing(scraped):
    groups = scraped.get("rules", type="alert")["groups"]
    rules = {rule["name"]: rule["query"] for group in groups for rule in group["rules"]}
    assert len(rules) > 10
    assert not [name for name, query in rules.items() if not scraped.ask(without_thresholds(query))]
    raised = {name for name, query in rules.items() if scraped.ask(query)}
    # These students are slow, or the machine is, and one of them asks what cannot be computed.
    may_be = {"EdlTeachersIdle", "EdlStudentsWait", "EdlRequestsFail", "EdlTeacherFails"}
    assert raised <= may_be
    assert "EdlRequestsFail" in raised


@installed
def test_names_follow_the_conventions(scraped):
    plain = [target["scrapeUrl"] for target in active(scraped) if target["scrapeUrl"][4] == ":"]
    assert len(plain) == 6
    for url in plain:
        with urllib.request.urlopen(url, timeout=20) as answer:
            text = answer.read().decode()
        assert "edl_" in text
        result = promtool("check", "metrics", input=text)
        assert (result.returncode, result.stdout + result.stderr) == (0, ""), url
