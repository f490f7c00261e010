"""``edl bench`` against real teachers."""

import importlib
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from edl.cli.bench import _notes, _show
from edl.errors import ConfigError, TeacherError
from edl.serving import TeacherClient, TensorSpec
from edl.serving.client.measure import Speed, given_rows, measure, random_rows, read_counters
from tests.support.processes import ROOT, edl, python_teacher

NOTHING_COUNTED = {"edl_queue_seconds_count": 0.0, "edl_compute_seconds_count": 0.0}

QUICK = ("--seconds", "0.2", "--batch", "1,8", "--clients", "1,2")
CLIENT = ("--clients", "1")
IMG = ("--feed", "img:float32:4")


def bench(*arguments):
    return edl("bench", *arguments)


def json_of(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def slow_teacher():
    """A teacher that computes for 20 ms."""
    with python_teacher(delay=0.02) as teacher:
        yield teacher


def test_a_teacher_is_measured_by_batch_size_and_clients(slow_teacher):
    results = json_of(bench(slow_teacher.endpoint, *IMG, *QUICK, "--json"))
    assert [(one["clients"], one["batch"]) for one in results] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    for one in results:
        assert one["endpoint"] == slow_teacher.endpoint
        assert one["requests"] >= one["clients"]
        assert 0.02 <= one["p50"] <= one["p99"]
        assert 0 < one["rows_per_second"] <= one["batch"] * one["clients"] / 0.02
        assert one["compute"] >= 0.02  # where the time of this teacher goes
        assert min(one["queue"], one["wire"]) >= 0
        assert 1 <= one["merged"] <= 16
        assert one["foreign"] == 0


def test_for_people_it_is_a_table_and_without_a_terminal_no_bar(slow_teacher):
    result = bench(slow_teacher.endpoint, *IMG, *QUICK)
    assert result.returncode == 0
    assert not [line for line in result.stderr.splitlines() if "INFO" not in line]
    for word in (slow_teacher.endpoint, "rows/s", "p99", "queue", "compute", "wire"):
        assert word in result.stdout


def test_no_figure_is_cut_off_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    speed = Speed(1000000, 300, 9, 62854123.4, 3.00483, 4.5, 0.1, 0.001, 3.00321, 0.0012, 1000000.0)
    _show([("127.0.0.1:9292", speed)])
    shown = capsys.readouterr().out
    for figure in ("1000000 ", "62,854,123", "3004.83", "3003.21", "1000000.0", "merged"):
        assert figure in shown


def test_what_it_feeds_it_learns_from_the_teacher(paddle_model):
    from tests.support.processes import Teacher

    with Teacher("--model", paddle_model) as teacher:
        (one,) = json_of(bench(teacher.endpoint, *("--batch", "2", "--clients", "1"), *QUICK[:2],
                               "--json"))  # fmt: skip
        assert one["rows_per_second"] > 0
        refused = bench(teacher.endpoint, "--feed", "image:float32:3")
        assert refused.returncode == 1
        assert "--feed image: the teacher's feeds are img" in refused.stderr


def test_given_data_is_sent_as_it_is(sums_teacher, tmp_path):
    np.savez(tmp_path / "rows.npz", img=np.ones((5, 3)), label=np.zeros(5))
    (one,) = json_of(bench(sums_teacher.endpoint, *("--data", tmp_path / "rows.npz"),
                           *("--batch", "4", "--clients", "1"), *QUICK[:2], "--json"))  # fmt: skip
    assert one["batch"] == 4
    (tmp_path / "text.npz").write_text("no arrays")
    refused = bench(sums_teacher.endpoint, "--data", tmp_path / "text.npz")
    assert refused.returncode == 1
    assert "text.npz is not an .npz file of arrays" in refused.stderr


def test_a_size_that_the_teacher_leaves_open_is_asked_for(sums_teacher):
    result = bench(sums_teacher.endpoint)
    assert result.returncode == 1
    assert "feed 'img' has no fixed size" in result.stderr
    assert "img:float32:128" in result.stderr


def test_sparse_labels_are_measured_by_the_name_that_asks_for_them():
    fetches = ("--fetch", "logits?top_k=8&samples=2&target")
    sizes = ("--feed", "ids:int64:5", "--feed", "labels.target:int64:5")
    with python_teacher("Tokens") as teacher:
        [result] = json_of(
            bench(teacher.endpoint, *sizes, *fetches, *QUICK[:2], "--batch", "2", *CLIENT, "--json")
        )
        assert result["requests"] > 0
        refused = bench(teacher.endpoint, *sizes, "--fetch", "logits?top_k=0", *QUICK)
        unknown = bench(teacher.endpoint, *sizes, "--fetch", "other", *QUICK)
    assert refused.returncode == unknown.returncode == 1
    assert "top_k must be from 1 to 65536" in refused.stderr
    assert "unknown fetch 'other'; this teacher's fetches: 'logits'" in unknown.stderr


@pytest.mark.parametrize("text", ["", "0", "1,x", "1,,2"])
def test_numbers_that_are_none_are_usage_errors(text):
    result = bench("127.0.0.1:1", "--batch", text)
    assert result.returncode == 2
    assert "is not a list of numbers" in result.stderr


def test_a_server_that_is_not_there_is_named():
    result = bench("127.0.0.1:1")
    assert (result.returncode, "127.0.0.1:1" in result.stderr) == (1, True)


def test_a_token_opens_the_teacher_and_its_figures():
    with python_teacher("Sums", "--token", "secret") as teacher:
        refused = bench(teacher.endpoint, *IMG)
        assert refused.returncode == 1
        results = json_of(bench(teacher.endpoint, *IMG, *QUICK, "--token", "secret", "--json"))
        assert all(one["queue"] is not None for one in results)


def test_a_picture_is_drawn(sums_teacher, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("speed.svg", "speed.png"):
        result = bench(sums_teacher.endpoint, *IMG, *QUICK, "--plot", tmp_path / name)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / name).stat().st_size > 5000
    svg = (tmp_path / "speed.svg").read_text()
    assert "rows per second" in svg
    wrong = bench(sums_teacher.endpoint, *IMG, *QUICK, "--plot", tmp_path / "speed.txt")
    assert wrong.returncode == 1
    assert "cannot draw" in wrong.stderr


def test_without_matplotlib_that_is_said_before_anything_is_measured(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib.figure'] = None\n"
        "import edl.cli.main as m\n"
        f"sys.argv = ['edl', 'bench', '127.0.0.1:1', '--plot', {str(tmp_path / 'a.png')!r}]\n"
        "m.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "pip install 'paddle-edl[plot]'" in result.stderr


# --- a Paddle Serving ------------------------------------------------------------------------


CONF = """
feed_var { name: "x" alias_name: "img" is_lod_tensor: false feed_type: 1 shape: 3 }
fetch_var { name: "y" alias_name: "prob" is_lod_tensor: false fetch_type: 1 shape: 2 }
"""


def answers(conn, meta, feeds):
    from edl.serving.wire.messages import encode_response
    from tests.distill.test_bad_teachers import respond, right

    respond(conn, meta, encode_response({"prob": right(feeds)}))


#: That server is asked for its figures over HTTP, which it does not speak.
speaks_no_http = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def serving(monkeypatch):
    """A server of the original kind: it neither describes itself nor counts."""
    from edl.serving.wire import frame
    from edl.serving.wire.description import DESCRIBE_SERVICE

    bad_teachers = importlib.import_module("tests.distill.test_bad_teachers")
    respond = bad_teachers.respond

    def refuse_to_describe(conn, meta, payload, code=0, text=""):
        if meta.service == DESCRIBE_SERVICE:
            payload, code, text = [], frame.ENOSERVICE, "Fail to find service"
        respond(conn, meta, payload, code, text)

    monkeypatch.setattr(bad_teachers, "respond", refuse_to_describe)
    teacher = bad_teachers.BadTeacher(answers)
    yield teacher
    teacher.close()


@speaks_no_http
def test_a_paddle_serving_is_measured_by_its_conf_or_by_given_feeds(serving, tmp_path):
    without = bench(serving.endpoint)
    assert without.returncode == 1
    assert "--conf" in without.stderr
    conf = tmp_path / "serving_client_conf.prototxt"
    conf.write_text(CONF)
    for how in (["--conf", conf], ["--feed", "img:float32:3"]):
        results = json_of(bench(serving.endpoint, *how, *QUICK, "--json"))
        assert all(one["rows_per_second"] > 0 for one in results)
        assert all(one["queue"] is None for one in results)
    shown = bench(serving.endpoint, "--conf", conf, *QUICK)
    assert "does not say where the time goes" in shown.stdout


# --- the measuring ---------------------------------------------------------------------------


def test_figures_add_up_and_requests_of_others_are_noticed(slow_teacher):
    stop = threading.Event()

    def other():
        with TeacherClient(slow_teacher.endpoint) as client:
            while not stop.is_set():
                client.infer({"img": np.ones((1, 2), "f4")})

    thread = threading.Thread(target=other)
    thread.start()
    try:
        speed = measure(
            lambda: TeacherClient(slow_teacher.endpoint),
            {"img": np.ones((3, 2), "f4")},
            ["prob"],
            batch=2,
            clients=1,
            seconds=0.5,
            counters=lambda: read_counters(slow_teacher.endpoint),
        )
    finally:
        stop.set()
        thread.join()
    assert speed.foreign > 0
    assert "they share these figures" in _notes([speed])[0]


def test_an_error_of_the_teacher_ends_it():
    with (
        python_teacher("Fragile") as teacher,
        pytest.raises(TeacherError, match="negative input"),
    ):
        measure(
            lambda: TeacherClient(teacher.endpoint),
            {"img": np.array([[1.0], [1.0], [-9.0]], "f4")},
            [],
            batch=2,
            clients=1,
            seconds=5,
        )


def test_a_measuring_process_that_is_busy_itself_says_so():
    speed = Speed(1, 1, 10, 1.0, 0.1, 0.1, busy=0.99, queue=0.0)
    assert "it may be what was measured" in _notes([speed])[0]
    assert _notes([Speed(1, 1, 10, 1.0, 0.1, 0.1, busy=0.2, queue=0.0)]) == []


@speaks_no_http
def test_a_server_that_counts_nothing_is_no_error(serving):
    assert read_counters("127.0.0.1:1") is None
    assert read_counters(serving.endpoint) is None


def test_figures_of_another_server_than_the_one_that_answered_say_nothing(sums_teacher):
    """As behind a load balancer."""
    speed = measure(
        lambda: TeacherClient(sums_teacher.endpoint),
        {"img": np.ones((1, 2), "f4")},
        [],
        batch=1,
        clients=1,
        seconds=0.05,
        counters=lambda: NOTHING_COUNTED,
    )
    assert speed.rows_per_second > 0
    assert speed.queue is None


def test_random_rows_are_what_the_teacher_wants():
    specs = {"img": TensorSpec((2, 2), "float32"), "ids": TensorSpec((3,), "int64"),
             "on": TensorSpec((), "bool")}  # fmt: skip
    rows = random_rows(specs, 4)
    assert all(not spec.mismatch(rows[name]) for name, spec in specs.items())
    assert len(np.unique(rows["img"])) == 16
    assert set(np.unique(rows["ids"])) <= {0, 1}
    with pytest.raises(ConfigError, match=r"feed 'text' is text, .*: give data"):
        random_rows({"text": TensorSpec((1,), "str")}, 1)
    with pytest.raises(ConfigError, match=r"'ids' has no fixed size.* as in ids:int64:128,3, or"):
        random_rows({"ids": TensorSpec((-1, 3), "int64")}, 1)


@pytest.mark.parametrize(
    ("data", "culprit"),
    [
        ({}, "has nothing, but no 'a'"),
        ({"a": np.ones((2, 3))}, "no 'b'"),
        ({"a": np.ones((2, 3)), "b": np.ones((1, 3))}, "same number of rows"),
        ({"a": np.ones((0, 3)), "b": np.ones((0, 3))}, "same number of rows"),
        ({"a": np.ones((2, 4)), "b": np.ones((2, 3))}, "data 'a'"),
        ({"a": np.array(["x", "y"]), "b": np.ones((2, 3))}, "data 'a'"),
    ],
)
def test_data_that_does_not_fit_is_named(data, culprit):
    specs = {name: TensorSpec((3,), "float32") for name in "ab"}
    with pytest.raises(ConfigError, match=culprit):
        given_rows(specs, data)


def test_narrower_tensors_are_measured_where_the_server_knows_them(sums_teacher):
    narrow = ("--feed", "img:float16:4", "--fetch", "prob?dtype=float16", "--seconds", "0.2")
    result = edl("bench", sums_teacher.endpoint, "--batch", "2", *narrow)
    assert result.returncode == 0, result.stderr
    result = edl("bench", sums_teacher.endpoint, "--fetch", "prob?dtype=int8")
    assert result.returncode == 1
    assert "the dtype must be one of float16, bfloat16" in result.stderr
