"""A teacher's Unix socket, the memory that students hand over there, and hostile ones."""

import contextlib
import os
import signal
import socket
import stat
import threading
import time

import numpy as np
import pytest

from edl.errors import AccessDenied, TeacherFailed, TeacherUnreachable
from edl.serving import ServerOptions, TeacherClient, serve
from edl.serving.client.teacher import SHARED_MEMORY, UNIX_SOCKET
from edl.serving.wire import frame
from edl.serving.wire.arena import Arena
from edl.serving.wire.local import SHARE_METHOD, SHARE_SERVICE, encode_share, said
from edl.serving.wire.messages import Room, decode_response, encode_request
from tests.support.processes import children_of, eventually, python_teacher
from tests.support.wire import connect, read_rpc, receive, rpc, until_closed

FEEDS, FETCHES = {"x": ((-1,), "float32")}, {"y": ((-1,), "float32")}
X = np.arange(24, dtype="f4").reshape(2, 12)
SIZE = 1 << 20


@pytest.fixture(scope="module")
def teacher():
    with serve(lambda x: 2 * x, FEEDS, FETCHES) as teacher:
        yield teacher


@pytest.fixture
def memory():
    with contextlib.closing(Arena.create_fixed(SIZE, "edl-test")) as arena:
        arena.view(64, X.nbytes)[:] = X.tobytes()
        yield arena


def path_of(teacher, token=""):
    with TeacherClient(teacher.endpoint, token=token) as client:
        local = said(client.describe())
    return local.socket if local is not None else ""


def connect_locally(teacher, token=""):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(path_of(teacher, token))
    return sock


def share(sock, fds, number=1, **meta):
    payload = b"".join(encode_share(number))
    message = rpc(payload, service=SHARE_SERVICE, method=SHARE_METHOD, **meta)
    if fds:
        socket.send_fds(sock, [message], fds)
    else:
        sock.sendall(message)


def ask(sock, place=(1, 64), room=None, x=X):
    sock.sendall(rpc(b"".join(encode_request({"x": x}, [], {"x": place}, room))))
    return read_rpc(sock)


def open_files(pid="self"):
    return len(os.listdir(f"/proc/{pid}/fd"))


def maps(pid, name):
    with open(f"/proc/{pid}/maps") as lines:
        return sum(name in line for line in lines)


def budget_of(teacher):
    return teacher._server._service.memory.budget


@contextlib.contextmanager
def nothing_is_left(teacher):
    """Of what is done within it in this process, which serves."""
    files = open_files()
    yield
    eventually(lambda: open_files() <= files)
    budget = budget_of(teacher)
    eventually(lambda: budget.shared == budget.blocks == budget.loose == 0)


def test_a_request_lies_in_the_clients_memory_and_its_answer_is_laid_there(teacher, memory):
    with nothing_is_left(teacher), connect_locally(teacher) as sock:
        share(sock, [memory.fd])
        assert read_rpc(sock)[0].error_code == 0
        sock.sendall(
            rpc(b"".join(encode_request({"x": X}, [], {"x": (1, 64)}, Room(1, 4096, 4096))))
        )
        body_size, meta_size = frame.parse_header(sock.recv(12))
        body = sock.recv(body_size, socket.MSG_WAITALL)
        assert body_size < 100, "it says where, not what"
        assert frame.parse_body(memoryview(body), meta_size)[0].error_code == 0
        laid = np.frombuffer(memory.view(4096, X.nbytes), "f4").reshape(X.shape)
        assert (laid == 2 * X).all()


def test_an_answer_that_does_not_fit_its_room_travels_through_the_socket(teacher, memory):
    with nothing_is_left(teacher), connect_locally(teacher) as sock:
        share(sock, [memory.fd])
        read_rpc(sock)
        meta, response = ask(sock, room=Room(1, 4096, 64))
        assert meta.error_code == 0
        assert (response.outputs["y"] == 2 * X).all()


def test_memory_that_is_refused_harms_nobody(teacher, memory):
    unsealed = os.memfd_create("edl-test")
    os.ftruncate(unsealed, SIZE)
    reads, writes = os.pipe()
    with nothing_is_left(teacher), connect_locally(teacher) as sock:
        for fds, words in [
            ([], "no memory came with"),
            ([unsealed], "not sealed"),
            ([reads], "no memfd"),
        ]:
            share(sock, fds, 7)
            meta, _ = read_rpc(sock)
            assert meta.error_code == frame.EREQUEST
            assert words in meta.error_text
        meta, _ = ask(sock, place=(7, 64))
        assert (meta.error_code, "no memory 7" in meta.error_text) == (frame.EREQUEST, True)
        share(sock, [memory.fd])
        assert read_rpc(sock)[0].error_code == 0
        assert ask(sock)[0].error_code == 0, "the connection lives on"
    for fd in (unsealed, reads, writes):
        os.close(fd)


def test_memory_that_was_never_written_reads_as_zeros(teacher, memory):
    with connect_locally(teacher) as sock:
        share(sock, [memory.fd])
        read_rpc(sock)
        meta, response = ask(sock, place=(1, SIZE // 2))
        assert meta.error_code == 0
        assert not response.outputs["y"].any()


def test_one_connection_hands_over_four_pieces_and_none_twice(teacher, memory):
    with nothing_is_left(teacher), connect_locally(teacher) as sock:
        for number in (1, 2, 3, 4):
            share(sock, [memory.fd], number)
            assert read_rpc(sock)[0].error_code == 0
        for number in (1, 5):
            share(sock, [memory.fd], number)
            assert "one too many" in read_rpc(sock)[0].error_text
        assert budget_of(teacher).shared == 4 * SIZE
        assert ask(sock, place=(3, 64))[0].error_code == 0


def test_file_descriptors_that_nobody_asked_for_do_not_pile_up(teacher, memory):
    with nothing_is_left(teacher), connect_locally(teacher) as sock:
        sock.sendall(rpc(b"".join(encode_request({"x": X}, []))))
        read_rpc(sock)
        before = open_files()
        for _ in range(50):
            socket.send_fds(sock, [rpc(b"".join(encode_request({"x": X}, [])))], [memory.fd] * 100)
            assert read_rpc(sock)[0].error_code == 0
        assert open_files() <= before + 1
        for octet in rpc(b"".join(encode_request({"x": X}, []))):
            socket.send_fds(sock, [bytes([octet])], [memory.fd] * 3)
        assert read_rpc(sock)[0].error_code == 0
        assert open_files() <= before + 1
        share(sock, [memory.fd] * 100)
        assert read_rpc(sock)[0].error_code == 0, "the first one counts"
        assert ask(sock)[0].error_code == 0


@pytest.mark.parametrize(
    ("place", "room", "x", "words"),
    [
        ((1, SIZE), None, X, "outside the arena"),
        ((1, SIZE - 64), None, X, "outside the arena"),
        ((1, 1 << 60), None, X, "outside the arena"),
        ((1, 65), None, X, "multiple of 64"),
        ((2, 64), None, X, "no memory 2"),
        ((1, 64), Room(1, SIZE - 64, 128), X, "outside the arena"),
        ((1, 64), Room(9, 0, 64), X, "no memory 9"),
        ((1, 64), None, np.lib.stride_tricks.as_strided(X, (1 << 20, 1 << 20), (0, 0)), "outside"),
    ],
)
def test_wrong_places_are_refused_and_the_connection_lives_on(
    teacher, memory, place, room, x, words
):
    with nothing_is_left(teacher), connect_locally(teacher) as sock:
        share(sock, [memory.fd])
        read_rpc(sock)
        meta, _ = ask(sock, place, room, x)
        assert meta.error_code == frame.EREQUEST
        assert words in meta.error_text
        assert ask(sock)[0].error_code == 0


def test_memory_cannot_be_handed_over_or_meant_on_a_tcp_connection(teacher, memory):
    with nothing_is_left(teacher), connect(teacher) as sock:
        share(sock, [])
        assert "no memory came" in read_rpc(sock)[0].error_text
        meta, _ = ask(sock)
        assert (meta.error_code, "no memory 1" in meta.error_text) == (frame.EREQUEST, True)


def test_one_clients_memory_is_not_anothers(teacher, memory):
    with connect_locally(teacher) as one, connect_locally(teacher) as other:
        share(one, [memory.fd])
        read_rpc(one)
        assert "no memory 1" in ask(other)[0].error_text


def test_who_leaves_in_the_middle_leaves_nothing(teacher, memory):
    with nothing_is_left(teacher):
        message = rpc(b"".join(encode_share(1)), service=SHARE_SERVICE, method=SHARE_METHOD)
        for size in (1, 12, len(message) - 1, len(message)):
            with connect_locally(teacher) as sock:
                socket.send_fds(sock, [message[:size]], [memory.fd])
        for _ in range(5):
            with connect_locally(teacher) as sock:
                share(sock, [memory.fd])
                read_rpc(sock)
                sock.sendall(rpc(b"".join(encode_request({"x": X}, [], {"x": (1, 64)}))))


def test_what_is_handed_over_is_limited_for_each_and_for_all():
    options = ServerOptions(shared_bytes=8 * SIZE)
    with contextlib.ExitStack() as stack:
        teacher = stack.enter_context(serve(lambda x: 2 * x, FEEDS, FETCHES, options=options))
        memory = Arena.create_fixed(SIZE, "edl-test")
        large = Arena.create_fixed(2 * SIZE + 4096, "edl-test")
        socks = [stack.enter_context(connect_locally(teacher)) for _ in range(5)]
        share(socks[0], [large.fd])
        assert "at most 2097152 are taken" in read_rpc(socks[0])[0].error_text
        for sock in socks[:4]:
            for number in (1, 2):
                share(sock, [memory.fd], number)
                assert read_rpc(sock)[0].error_code == 0
        for sock in (socks[0], socks[4]):
            share(sock, [memory.fd], 3)
            assert "maps no more memory" in read_rpc(sock)[0].error_text
        socks[0].close()
        eventually(lambda: budget_of(teacher).shared == 6 * SIZE)
        share(socks[4], [memory.fd])
        assert read_rpc(socks[4])[0].error_code == 0


def test_the_token_comes_first(memory):
    with serve(lambda x: 2 * x, FEEDS, FETCHES, options=ServerOptions(token="secret")) as teacher:
        with nothing_is_left(teacher):
            with connect_locally(teacher, "secret") as sock:
                share(sock, [memory.fd])
                assert read_rpc(sock)[0].error_code == frame.ERPCAUTH
                assert until_closed(sock) == b""
            with connect_locally(teacher, "secret") as sock:
                share(sock, [memory.fd], authentication=b"secret")
                assert read_rpc(sock)[0].error_code == 0
        path = path_of(teacher, "secret")
        with TeacherClient(teacher.endpoint, path=path) as client, pytest.raises(AccessDenied):
            client.infer({"x": X})


def test_whole_numbers_are_those_that_were_looked_at_first():
    """A client that changes them while they are computed."""
    began, changed = threading.Event(), threading.Event()
    seen = []

    def model(ids):
        seen.append(ids.copy())
        began.set()
        changed.wait(20)
        seen.append(ids.copy())
        return ids.astype("f4")

    ids = np.arange(16, dtype="i8").reshape(2, 8)
    memory = Arena.create_fixed(SIZE, "edl-test")
    memory.view(64, ids.nbytes)[:] = ids.tobytes()
    with serve(model, {"ids": ((8,), "int64")}, {"y": ((8,), "float32")}) as teacher:
        with connect_locally(teacher) as sock:
            share(sock, [memory.fd])
            read_rpc(sock)
            sock.sendall(rpc(b"".join(encode_request({"ids": ids}, [], {"ids": (1, 64)}))))
            assert began.wait(20)
            memory.view(64, ids.nbytes)[:] = b"\xff" * ids.nbytes
            changed.set()
            assert (read_rpc(sock)[1].outputs["y"] == ids).all()
    assert (seen[1] == ids).all()


def test_an_output_that_is_a_part_of_its_request_is_sent_whole(memory):
    with serve(lambda x: x[:, ::2], FEEDS, FETCHES) as teacher:
        for room in (None, Room(1, 4096, 4096), Room(1, 0, SIZE)):
            memory.view(64, X.nbytes)[:] = X.tobytes()
            with connect_locally(teacher) as sock:
                share(sock, [memory.fd])
                read_rpc(sock)
                sock.sendall(rpc(b"".join(encode_request({"x": X}, [], {"x": (1, 64)}, room))))
                body_size, meta_size = frame.parse_header(receive(sock, 12))
                _, payload = frame.parse_body(memoryview(receive(sock, body_size)), meta_size)
                outputs = decode_response(payload, {1: memory}).outputs
                assert (outputs["y"] == X[:, ::2]).all()


def test_a_request_in_memory_counts_as_if_it_had_been_sent():
    options = ServerOptions(input_bytes=1 << 20)
    memory = Arena.create_fixed(4 << 20, "edl-test")
    with serve(lambda x: x[:, :1], FEEDS, FETCHES, options=options) as teacher:
        with connect_locally(teacher) as sock:
            share(sock, [memory.fd])
            read_rpc(sock)
            assert ask(sock, x=np.zeros((2, 16 << 10), "f4"))[0].error_code == 0
            meta, _ = ask(sock, x=np.zeros((2, 64 << 10), "f4"))
            assert "beyond this teacher's limit" in meta.error_text


def test_the_socket_is_its_users_and_goes_with_the_teacher():
    with serve(lambda x: x, FEEDS, FETCHES) as teacher:
        path = path_of(teacher)
        mode = os.stat(os.path.dirname(path)).st_mode
        assert stat.S_IMODE(mode) == 0o700
    assert not os.path.exists(os.path.dirname(path))
    with pytest.raises(TeacherUnreachable):
        TeacherClient(teacher.endpoint, path=path)


def test_a_teacher_may_have_none():
    options = ServerOptions(local=False)
    with serve(lambda x: x, FEEDS, FETCHES, options=options) as teacher:
        assert path_of(teacher) == ""


def test_a_teacher_that_cannot_have_one_goes_without(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    (tmp_path / ("x" * 100)).mkdir()
    with serve(lambda x: x, FEEDS, FETCHES) as teacher:
        assert path_of(teacher) == ""
    assert "students on this machine, they use TCP" in caplog.text


def test_what_a_killed_teacher_leaves_is_removed_by_the_next(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with python_teacher("Sums") as one, python_teacher("Sums") as living:
        paths = [path_of(one), path_of(living)]
        one.kill()
        one.wait()
        (tmp_path / "edl-teacher-other").write_text("a file")
        for path in paths:
            os.utime(os.path.dirname(path), (time.time() - 100, time.time() - 100))
        with serve(lambda x: x, FEEDS, FETCHES):
            assert not os.path.exists(os.path.dirname(paths[0]))
            assert os.path.exists(paths[1])
        with TeacherClient(living.endpoint, path=paths[1]) as client:
            client.describe()
    assert (tmp_path / "edl-teacher-other").exists()


IMAGES = np.random.default_rng(0).random((8, 4096), dtype="f4")


def warmed_up(client, x=IMAGES):
    """Once the client's memory is in use."""
    client.infer({"img": x})
    eventually(lambda: client.way == SHARED_MEMORY)
    assert client.infer({"img": x})["prob"][:, 0] == pytest.approx(x.sum(axis=1), rel=1e-3)


def test_a_worker_maps_the_memory_until_its_client_has_gone():
    with python_teacher("Sums") as teacher:
        pids = [teacher.process.pid, *children_of(teacher.process.pid)]
        client = TeacherClient(teacher.endpoint, path=path_of(teacher))
        files = [open_files(pid) for pid in pids]
        warmed_up(client)
        assert all(maps(pid, "edl-student") for pid in pids)
        client.close()
        eventually(lambda: not any(maps(pid, "edl-student") for pid in pids))
        eventually(lambda: [open_files(pid) for pid in pids] <= files)


def test_a_worker_that_takes_the_place_of_one_that_died_maps_it_too():
    with python_teacher("Fragile") as teacher:
        with TeacherClient(teacher.endpoint, path=path_of(teacher)) as client:
            warmed_up(client)
            with pytest.raises(TeacherFailed, match="killed by SIGKILL"):
                client.infer({"img": np.full_like(IMAGES, np.inf)})
            assert client.way == SHARED_MEMORY
            warmed_up(client)


def test_a_student_that_is_killed_leaves_nothing():
    with python_teacher("Sums", delay=0.2) as teacher:
        path = path_of(teacher)
        pids = [teacher.process.pid, *children_of(teacher.process.pid)]
        files = [open_files(pid) for pid in pids]
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                client = TeacherClient(teacher.endpoint, path=path)
                while True:
                    client.infer({"img": IMAGES})
            os._exit(1)
        eventually(lambda: all(maps(each, "edl-student") for each in pids))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        eventually(lambda: not any(maps(each, "edl-student") for each in pids))
        eventually(lambda: [open_files(each) for each in pids] <= files)


def test_requests_of_both_ways_share_a_batch():
    with python_teacher("Sums", "--max-wait-ms", 200, "--max-batch-rows", 16) as teacher:
        near = TeacherClient(teacher.endpoint, path=path_of(teacher))
        far = TeacherClient(teacher.endpoint)
        with near, far:
            warmed_up(near)
            answers = []
            for client in (near, far):
                client.submit({"img": IMAGES}, [], answers.append)
            eventually(lambda: len(answers) == 2)
            for answer in answers:
                assert answer["prob"][:, 0] == pytest.approx(IMAGES.sum(axis=1), rel=1e-3)


def test_a_client_whose_memory_is_refused_uses_the_socket_alone():
    options = ServerOptions(shared_bytes=0)
    with serve(lambda x: 2 * x, FEEDS, FETCHES, options=options) as teacher:
        with TeacherClient(teacher.endpoint, path=path_of(teacher)) as client:
            for _ in range(3):
                assert (client.infer({"x": IMAGES})["y"] == 2 * IMAGES).all()
            assert client.way == UNIX_SOCKET


def test_sparse_labels_are_the_same_either_way():
    x = np.random.default_rng(0).normal(size=(64, 4096)).astype("f4")
    feeds = {
        "x": x,
        "labels.seed": np.arange(64, dtype="i8"),
        "labels.target": np.arange(64, dtype="i8") * 7,
    }
    fetches = ["y?top_k=64&samples=16&target"]
    shapes = {"x": ((4096,), "float32")}, {"y": ((4096,), "float32")}
    with serve(lambda x: 2 * x, *shapes) as teacher:
        with TeacherClient(teacher.endpoint) as far:
            expected = far.infer(feeds, fetches)
        with TeacherClient(teacher.endpoint, path=path_of(teacher)) as near:
            for _ in range(4):
                answer = near.infer(feeds, fetches)
                assert answer.keys() == expected.keys()
                for name, array in answer.items():
                    assert array.dtype == expected[name].dtype
                    assert (array == expected[name]).all()
            assert near.way == SHARED_MEMORY
