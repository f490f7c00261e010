"""The teacher server as processes: what clients see, and what survives."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from edl.errors import RequestRefused, TeacherFailed, TeacherUnavailable
from edl.serving import TeacherClient, TensorSpec, serve
from edl.serving.wire import frame
from edl.serving.wire.messages import METHOD, SERVICE, encode_request
from tests.support.predictors import Echo
from tests.support.processes import alive, children_of, eventually, python_teacher
from tests.support.reference import Response

IMG = {"img": np.arange(6, dtype="f4").reshape(2, 3)}
SUMS = [[3, 6], [12, 24]]


@pytest.fixture
def client(sums_teacher):
    with TeacherClient(sums_teacher.endpoint) as client:
        yield client


def test_a_teacher_says_what_it_serves(client):
    description = client.describe()
    assert description.feeds == {"img": TensorSpec((-1,), "float32")}
    assert description.fetches == {"prob": TensorSpec((2,), "float32")}


def test_outputs_are_those_of_the_inputs(client):
    assert client.infer(IMG, ["prob"])["prob"].tolist() == SUMS


@pytest.mark.parametrize(
    ("feeds", "fetches", "complaint"),
    [
        ({"image": IMG["img"]}, [], r"unknown feed 'image'; this teacher's feeds: 'img'"),
        ({}, [], r"feed 'img' is missing; this teacher needs 'img'"),
        (IMG, ["pro"], r"unknown fetch 'pro'; this teacher's fetches: 'prob'"),
        ({"img": IMG["img"].astype("f8")}, [], r"feed 'img': expected dtype float32, got float64"),
        (
            {"img": np.zeros((2, 3, 4), "f4")},
            [],
            r"'img': expected shape \(rows, any\), got \(2, 3",
        ),
        ({"img": np.zeros((), "f4")}, [], r"'img': expected shape \(rows, any\), got \(\)"),
    ],
)
def test_a_wrong_request_is_answered_with_the_culprit_and_the_connection_lives_on(
    client, feeds, fetches, complaint
):
    with pytest.raises(RequestRefused, match=complaint):
        client.infer(feeds, fetches)
    assert client.infer(IMG)["prob"].tolist() == SUMS


def test_no_rows_are_answered_with_no_rows(client):
    assert client.infer({"img": np.zeros((0, 3), "f4")})["prob"].shape == (0, 2)


@pytest.mark.parametrize(
    ("meta", "payload", "code"),
    [
        (frame.RequestMeta("Other", METHOD, 7), [], frame.ENOSERVICE),
        (frame.RequestMeta(SERVICE, "other", 7), [], frame.ENOMETHOD),
        (frame.RequestMeta(SERVICE, METHOD, 7), [b"\xff\xff"], frame.EREQUEST),
        (frame.RequestMeta(SERVICE, METHOD, 7, compress_type=2), [], frame.EREQUEST),
    ],
)
def test_a_well_framed_request_that_makes_no_sense_gets_an_error_answer(
    sums_teacher, meta, payload, code
):
    with socket.create_connection(("127.0.0.1", sums_teacher.port)) as sock:
        sock.sendall(b"".join(frame.encode_frame(meta, payload)))
        header = sock.recv(12, socket.MSG_WAITALL)
        body_size, meta_size = frame.parse_header(header)
        body = memoryview(sock.recv(body_size, socket.MSG_WAITALL))
        answer, _ = frame.parse_body(body, meta_size)
    assert (answer.correlation_id, answer.error_code) == (7, code)


@pytest.mark.parametrize("garbage", [b"GARBAGE GARBAGE", b"PRPC" + b"\xff" * 8, b"PR", b""])
def test_garbage_closes_its_connection_and_no_other(sums_teacher, client, garbage):
    with socket.create_connection(("127.0.0.1", sums_teacher.port)) as sock:
        sock.sendall(garbage)
        if len(garbage) >= 12:
            sock.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
    assert client.infer(IMG)["prob"].tolist() == SUMS


def test_every_dtype_goes_through_a_worker_and_back():
    generator = np.random.default_rng(0)
    specs = Echo.description.feeds
    feeds = {
        name: generator.integers(0, 2, (3, 5)).astype(spec.dtype) for name, spec in specs.items()
    }
    feeds["in_int64"][0, 0] = -(2**63)
    with python_teacher("Echo") as teacher, TeacherClient(teacher.endpoint) as client:
        outputs = client.infer(feeds)
    for name, array in feeds.items():
        echoed = outputs[name.replace("in_", "out_")]
        assert echoed.dtype == array.dtype
        assert (echoed == array).all()


def test_waiting_requests_are_merged_into_one_batch_and_each_gets_its_own_rows():
    delay = 0.2
    with python_teacher("Sums", delay=delay) as teacher, TeacherClient(teacher.endpoint) as client:
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            inputs = [np.full((1 + i % 3, 4), i, "f4") for i in range(16)]
            answers = list(pool.map(lambda x: client.infer({"img": x})["prob"], inputs))
        elapsed = time.monotonic() - started
    for x, prob in zip(inputs, answers):
        assert (prob[:, 0] == x.sum(axis=1)).all()
    assert elapsed < 8 * delay, "16 requests of one batch each would take 16 delays"


def test_requests_that_cannot_be_merged_are_still_answered(sums_teacher, client):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        inputs = [np.full((2, 1 + i % 4), i, "f4") for i in range(40)]
        answers = list(pool.map(lambda x: client.infer({"img": x})["prob"], inputs))
    assert all((prob[:, 0] == x.sum(axis=1)).all() for x, prob in zip(inputs, answers))


def test_a_failing_request_does_not_take_others_in_its_batch_down():
    with python_teacher("Fragile", delay=0.1) as teacher, TeacherClient(teacher.endpoint) as client:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            inputs = [np.full((1, 2), value, "f4") for value in (1, 2, -1, 3, np.nan, 4)]
            futures = [pool.submit(client.infer, {"img": x}) for x in inputs]
        for x, future in zip(inputs, futures):
            if (x > 0).all():
                assert future.result()["prob"][0, 0] == x.sum()
        with pytest.raises(TeacherFailed, match="negative input"):
            futures[2].result()
        with pytest.raises(TeacherFailed, match="rows"):
            futures[4].result()


def test_a_worker_that_dies_is_restarted_and_its_request_answered():
    with python_teacher("Fragile") as teacher, TeacherClient(teacher.endpoint) as client:
        with pytest.raises(TeacherFailed, match="killed by SIGKILL while computing this request"):
            client.infer({"img": np.full((1, 2), np.inf, "f4")})
        assert client.infer(IMG, timeout=20)["prob"].tolist() == SUMS


def test_sigterm_answers_what_was_accepted_and_exits_with_status_0():
    with python_teacher("Sums", delay=0.4) as teacher, TeacherClient(teacher.endpoint) as client:
        answers = []
        for number in range(3):
            client.submit({"img": np.full((1, 2 + number), 1, "f4")}, [], answers.append)
        time.sleep(0.1)
        teacher.kill(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(TeacherUnavailable, match="shutting down"):
            client.infer(IMG)
        assert teacher.wait() == 0
        assert [answer["prob"][0, 0] for answer in answers] == [2, 3, 4]


def test_a_sigterm_for_the_whole_process_group_drains_all_the_same():
    with python_teacher("Sums", delay=0.5) as teacher, TeacherClient(teacher.endpoint) as client:
        answers = []
        client.submit(IMG, [], answers.append)
        time.sleep(0.1)
        for pid in children_of(teacher.process.pid):
            os.kill(pid, signal.SIGTERM)
        teacher.kill(signal.SIGTERM)
        assert teacher.wait() == 0
        assert answers[0]["prob"].tolist() == SUMS


def test_a_second_signal_stops_at_once():
    with python_teacher("Sums", delay=30) as teacher, TeacherClient(teacher.endpoint) as client:
        client.submit(IMG, [], lambda answer: None)
        time.sleep(0.2)
        workers = children_of(teacher.process.pid)
        teacher.kill(signal.SIGTERM)
        time.sleep(0.2)
        assert teacher.process.poll() is None
        teacher.kill(signal.SIGTERM)
        assert teacher.wait() == 1
        eventually(lambda: not any(alive(pid) for pid in workers))


def test_killing_the_front_process_ends_its_workers():
    with python_teacher("Sums", "--workers", 2) as teacher:
        workers = children_of(teacher.process.pid)
        assert len(workers) == 2
        teacher.kill(signal.SIGKILL)
        eventually(lambda: not any(alive(pid) for pid in workers))


def test_a_client_that_leaves_while_its_request_runs_harms_nobody():
    with python_teacher("Sums", delay=0.2) as teacher:
        with TeacherClient(teacher.endpoint) as leaver:
            leaver.submit(IMG, [], lambda answer: None)
            time.sleep(0.05)
        with TeacherClient(teacher.endpoint) as client:
            assert client.infer(IMG)["prob"].tolist() == SUMS


def test_request_memory_is_given_back():
    big = {"img": np.ones((4, 1 << 20), "f4")}
    with python_teacher("Sums") as teacher, TeacherClient(teacher.endpoint) as client:
        for _ in range(200):  # 3.2 GB through an arena of 2 GiB
            assert client.infer(big)["prob"][0, 0] == 1 << 20


def test_a_connection_that_stalls_in_mid_frame_costs_no_other_anything(sums_teacher, client):
    whole = b"".join(
        frame.encode_frame(frame.RequestMeta(SERVICE, METHOD, 1), encode_request(IMG, []))
    )
    with socket.create_connection(("127.0.0.1", sums_teacher.port)) as sock:
        sock.sendall(whole[: len(whole) // 2])
        assert client.infer(IMG)["prob"].tolist() == SUMS


def test_open_files_do_not_grow_with_connections(sums_teacher):
    def open_files():
        return len(os.listdir(f"/proc/{sums_teacher.process.pid}/fd"))

    before = open_files()
    for _ in range(50):
        with TeacherClient(sums_teacher.endpoint) as client:
            client.infer(IMG)
    eventually(lambda: open_files() <= before + 2)


def test_the_official_brpc_client_decodes_our_answer():
    """What its C++ part does with an answer (general_model.cpp): the tensors of each output by
    their position among the fetches it asked for, their values from the field of their type.
    """
    request = (Path(__file__).parents[2] / "vectors/official_client_request.bin").read_bytes()

    def compute(img, ids):
        return img.reshape(len(img), 4), ids.sum(axis=1, keepdims=True)

    feeds = {"img": ((1, 2, 2), "float32"), "ids": ((3,), "int64")}
    fetches = {"prob": ((4,), "float32"), "total": ((1,), "int64")}
    with serve(compute, feeds, fetches) as teacher:
        with socket.create_connection(teacher.endpoint.split(":")) as sock:
            sock.sendall(request)
            body_size, meta_size = frame.parse_header(sock.recv(12, socket.MSG_WAITALL))
            body = sock.recv(body_size, socket.MSG_WAITALL)
    meta, payload = frame.parse_body(memoryview(body), meta_size)
    asked, _ = frame.parse_body(memoryview(request)[12:], request[11])
    assert (meta.error_code, meta.correlation_id) == (0, asked.correlation_id)
    (output,) = Response.FromString(bytes(payload)).outputs
    assert output.engine_name
    for position, name in enumerate(["prob"]):
        tensor = output.tensor[position]
        assert tensor.alias_name == name
        assert list(tensor.shape) == [2, 4]
        assert list(tensor.float_data) == [number / 8 for number in range(8)]
        assert not tensor.tensor_content
