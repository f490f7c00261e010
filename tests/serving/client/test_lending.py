"""What a client lends to a teacher on its machine: where requests lie, and when that is free."""

import gc
import resource
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edl._machine import boot_id
from edl.errors import TeacherTimeout, WireError
from edl.serving import Description, ServerOptions, TeacherClient, TensorSpec, serve
from edl.serving.client.lending import Lending
from edl.serving.client.local import connect_nearer, socket_of
from edl.serving.client.teacher import SHARED_MEMORY, TCP, UNIX_SOCKET
from edl.serving.wire.local import DESCRIBED
from tests.support.processes import eventually, python_teacher

BIG = np.arange(1 << 16, dtype="f4").reshape(16, 4096)
SPECS = {"x": ((-1,), "float32")}, {"y": ((-1,), "float32")}


class Taker:
    """A teacher that takes what it is handed, or does not."""

    def __init__(self, takes=True):
        self.takes = takes
        self.sizes = []

    def __call__(self, number, fd, then):
        self.sizes.append(number)
        then(self.takes)


def lending(takes=True):
    taker = Taker(takes)
    return Lending(taker), taker


def test_small_requests_do_not_take_the_detour():
    lends, taker = lending()
    assert lends.lend({"x": np.zeros((2, 3), "f4")}, ["y"]) is None
    assert not taker.sizes
    assert not lends.in_use


def test_the_first_large_request_is_sent_while_memory_is_handed_over_for_the_next():
    lends, taker = lending()
    assert lends.lend({"x": BIG}, ["y"]) is None
    assert lends.in_use
    loan = lends.lend({"x": BIG, "few": np.arange(3)}, ["y"])
    assert loan.places["x"][1] != loan.places["few"][1]
    for name, array in (("x", BIG), ("few", np.arange(3))):
        number, offset = loan.places[name]
        view = loan.arenas[number].view(offset, array.nbytes)
        assert (np.frombuffer(view, array.dtype).reshape(array.shape) == array).all()
    assert taker.sizes == [1]


def test_who_refuses_is_not_asked_again():
    lends, taker = lending(takes=False)
    for _ in range(3):
        assert lends.lend({"x": BIG}, ["y"]) is None
    assert taker.sizes == [1]
    assert not lends.in_use


def test_room_for_an_answer_is_as_large_as_the_ones_before_it():
    lends, _ = lending()
    lends.lend({"x": BIG}, ["y"])
    assert lends.lend({"x": BIG}, ["y"]).room is None
    lends.answered(None, ["y"], 16, {"y": np.zeros((16, 1000), "f4")})
    room = lends.lend({"x": BIG}, ["y"]).room
    assert 64_000 <= room.size < 66_000
    assert 40_000 <= lends.lend({"x": BIG[:10]}, ["y"]).room.size < 41_000
    assert lends.lend({"x": np.repeat(BIG[:2], 20, 1)}, ["y"]).room is None, "so little is sent"
    assert lends.lend({"x": BIG}, ["other"]).room is None
    few = {"x": np.zeros((64, 2), "f4")}
    assert lends.lend(few, ["y"]).room.size > 250_000, "a large answer is worth it alone"


def test_what_is_free_is_used_again_and_what_does_not_fit_is_sent():
    lends, taker = lending()
    lends.lend({"x": BIG}, ["y"])
    loans = []
    while (loan := lends.lend({"x": BIG}, ["y"])) is not None:
        loans.append(loan)
    assert len({loan.offset for loan in loans}) == len(loans) >= 12
    assert taker.sizes == [1, 2], "more is handed over at once"
    assert lends.lend({"x": BIG}, ["y"]).memory is not loans[0].memory
    loans[0].free()
    again = [lends.lend({"x": BIG}, ["y"]) for _ in range(40)]
    assert all(again)


def test_a_request_of_more_than_all_of_it_is_sent():
    lends, taker = lending()
    endless = np.lib.stride_tricks.as_strided(BIG, (1 << 15, 1 << 14), (0, 0))  # 2 GiB
    assert lends.lend({"x": endless}, ["y"]) is None
    assert not taker.sizes


def test_strings_and_what_has_no_rows_are_sent():
    lends, taker = lending()
    assert lends.lend({"x": BIG, "s": np.array(["a"] * 16)}, ["y"]) is None
    assert lends.lend({"x": BIG, "s": np.float32(1.0)[()].reshape(())}, ["y"]) is None
    assert lends.lend({}, ["y"]) is None
    assert not taker.sizes
    with pytest.raises(WireError, match="complex"):
        lends.lend({"x": BIG.astype("c8")}, ["y"])


def test_memory_in_which_the_first_request_fails_is_not_used_again():
    lends, taker = lending()
    lends.lend({"x": BIG}, ["y"])
    lends.failed(lends.lend({"x": BIG}, ["y"]))
    assert lends.lend({"x": BIG}, ["y"]) is None
    assert taker.sizes == [1]


def test_memory_in_which_one_was_answered_is_used_whatever_fails_later():
    lends, _ = lending()
    lends.lend({"x": BIG}, ["y"])
    lends.answered(lends.lend({"x": BIG}, ["y"]), ["y"], 16, {"y": BIG})
    lends.failed(lends.lend({"x": BIG}, ["y"]))
    assert lends.lend({"x": BIG}, ["y"]) is not None


def test_where_no_memory_can_be_made_requests_are_sent():
    lends, taker = lending()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        assert lends.lend({"x": BIG}, ["y"]) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert lends.lend({"x": BIG}, ["y"]) is None
    assert not taker.sizes


@pytest.fixture
def model():
    """Doubles, when it may."""

    class Model:
        go = threading.Event()

        def __call__(self, x):
            self.go.wait(20)
            return 2 * x

    model = Model()
    model.go.set()
    return model


def local_client(teacher):
    with TeacherClient(teacher.endpoint) as client:
        description = client.describe()
    path = socket_of(teacher.endpoint, description)
    return connect_nearer(teacher.endpoint, path, description, "", 3.0)


@pytest.fixture
def client(model):
    with serve(model, *SPECS) as teacher, local_client(teacher) as client:
        yield client


def test_it_is_said_which_way_tensors_go(client):
    assert client.way == UNIX_SOCKET
    client.infer({"x": BIG})
    eventually(lambda: client.way == SHARED_MEMORY)
    with TeacherClient(client.endpoint) as other:
        assert other.way == TCP


@pytest.mark.parametrize(
    "x",
    [
        BIG,
        BIG[::-1],
        BIG.T[:, :16],
        BIG.astype(">f4"),
        np.broadcast_to(BIG[:1], BIG.shape),
        np.asfortranarray(BIG),
        BIG[:, :0],
    ],
)
def test_arrays_of_any_layout_arrive(client, x):
    for _ in range(3):
        assert (client.infer({"x": x})["y"] == 2 * x).all()
        assert not len(client.infer({"x": x[:0]})["y"])
        client.infer({"x": BIG})


def test_answers_are_ones_own(client):
    for _ in range(3):
        client.infer({"x": BIG})
    answers = [client.infer({"x": BIG + number})["y"] for number in range(40)]
    for number, answer in enumerate(answers):
        assert (answer == 2 * (BIG + number)).all()
        assert answer.flags.writeable


def test_many_threads_share_one_connection(client):
    wrong = []

    def ask(seed):
        generator = np.random.default_rng(seed)
        for _ in range(30):
            x = generator.random((generator.integers(1, 40), 4096), dtype="f4")
            if not (client.infer({"x": x})["y"] == 2 * x).all():
                wrong.append(seed)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(4)))
    assert not wrong
    assert client.way == SHARED_MEMORY


def used(client):
    return client._lending._memory._allocator.used


def test_memory_of_a_forgotten_request_is_free_when_its_answer_has_come(client, model):
    for _ in range(3):
        client.infer({"x": BIG})
    assert used(client) == 0
    model.go.clear()
    with pytest.raises(TeacherTimeout):
        client.infer({"x": BIG}, timeout=0.05)
    assert used(client) > 0, "the teacher still looks there"
    model.go.set()
    assert (client.infer({"x": BIG})["y"] == 2 * BIG).all()
    eventually(lambda: used(client) == 0)
    assert not client._late


def test_memory_of_a_refused_request_is_free(client):
    for _ in range(3):
        client.infer({"x": BIG})
    wrong = []
    client.submit({"z": BIG}, [], wrong.append)
    eventually(lambda: wrong)
    assert "unknown feed 'z'" in str(wrong[0])
    assert used(client) == 0


def description(**local):
    said = {"boot": boot_id(), "port": 9292, "socket": "/tmp/edl-teacher-none/socket", **local}
    specs = {"x": TensorSpec((2,), "float32")}
    return Description(specs, specs, extra={DESCRIBED: said})


def test_only_a_teacher_of_this_machine_asked_at_its_own_port_is_used_by_its_socket():
    assert socket_of("10.0.0.1:9292", description()) == "/tmp/edl-teacher-none/socket"
    assert socket_of("10.0.0.1:9293", description()) == "", "by way of a proxy"
    assert socket_of("10.0.0.1:9292", description(boot="another")) == ""
    assert socket_of("10.0.0.1:9292", description(boot="")) == ""
    assert socket_of("10.0.0.1:9292", description(socket="/etc/passwd")) == ""


def test_a_socket_that_is_not_there_is_not_used():
    assert connect_nearer("127.0.0.1:9292", "/tmp/edl-teacher-none/socket", None, "", 1.0) is None


def test_a_socket_behind_which_there_is_another_teacher_is_not_used(model):
    with serve(model, *SPECS) as one, serve(model, *SPECS) as other:
        with TeacherClient(one.endpoint) as client:
            said_by_one = client.describe()
        with TeacherClient(other.endpoint) as client:
            path = socket_of(other.endpoint, client.describe())
        assert connect_nearer(one.endpoint, path, said_by_one, "", 3.0) is None


def test_a_socket_that_wants_another_token_is_not_used(model):
    with serve(model, *SPECS, options=ServerOptions(token="secret")) as teacher:
        with TeacherClient(teacher.endpoint, token="secret") as client:
            said = client.describe()
        path = socket_of(teacher.endpoint, said)
        assert connect_nearer(teacher.endpoint, path, said, "wrong", 3.0) is None
        with connect_nearer(teacher.endpoint, path, said, "secret", 3.0) as client:
            assert (client.infer({"x": BIG})["y"] == 2 * BIG).all()


def mapped():
    with open("/proc/self/maps") as lines:
        return sum("edl-student" in line for line in lines)


@pytest.mark.parametrize("sending", [False, True])
def test_memory_is_free_when_the_connection_ends_and_not_when_garbage_is_collected(sending):
    gc.collect()
    before, wrong = mapped(), []
    gc.disable()
    try:
        with python_teacher("Sums") as teacher:
            client = local_client(teacher)
            while client.way != SHARED_MEMORY:
                client.infer({"img": BIG})
            assert mapped() == before + 1
            if sending:  # it is found out by who sends
                teacher.kill(signal.SIGSTOP)
                client._socket.shutdown(socket.SHUT_WR)
                client.submit({"img": BIG}, [], wrong.append)
                eventually(lambda: wrong)
                assert "sending failed" in str(wrong[0])
            else:
                teacher.kill()
        eventually(lambda: client._broken is not None)
        client = None
        eventually(lambda: mapped() == before)
    finally:
        gc.enable()
