"""Processes of the server that die, hang, or cannot be killed."""

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from edl.errors import WireError
from edl.serving.model.predictor import PredictorOptions
from edl.serving.wire.arena import Arena
from edl.serving.worker import control
from edl.serving.worker.child import Child, WorkerDied
from edl.serving.worker.handles import WorkerProcess
from edl.serving.worker.parser import Message, NoRoom, Parser
from tests.support.processes import alive, eventually

PREDICTOR = PredictorOptions(python="tests.support.predictors:Sums")


@pytest.fixture
def inputs():
    arena = Arena.create(64 << 20, "test")
    yield arena
    arena.close()


async def longest_stall(doing):
    """The longest that the loop was away while ``doing`` went on."""
    longest, task = 0.0, asyncio.ensure_future(doing)
    while not task.done():
        started = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - started)
    await task
    return longest


def test_a_worker_that_cannot_be_killed_blocks_nothing_and_is_left_behind(
    inputs, monkeypatch, caplog
):
    async def check():
        worker = WorkerProcess(PREDICTOR, inputs, 1 << 20)
        await worker.start(60)
        pid = worker.pid
        # A process in the kernel's uninterruptible sleep runs nothing, and SIGKILL does nothing.
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)
        running = asyncio.get_running_loop().create_future()
        worker.run([], [], running.set_result)
        await asyncio.sleep(0.05)
        worker.kill("the worker took more than 1 s")
        died = await asyncio.wait_for(running, 2)
        assert isinstance(died, WorkerDied)
        assert "took more than 1 s" in str(died)
        started = time.monotonic()
        assert await longest_stall(worker.stop(grace=0.0)) < 0.5
        assert time.monotonic() - started < 4
        assert "left behind" in caplog.text
        await worker.start(60)  # and another takes its place
        assert worker.pid not in (None, pid)
        monkeypatch.undo()
        await worker.stop()
        return pid

    pid = asyncio.run(check())
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))


def test_who_stops_a_process_that_leaves_by_itself_waits_no_longer_than_that(inputs):
    async def check():
        child = await Child.start("edl.serving.worker.parsing", (inputs.fd,))
        started = time.monotonic()
        await child.stop(grace=10)
        return time.monotonic() - started

    assert asyncio.run(check()) < 5


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("import sys; sys.exit(3)", "exited with status 3"),
        ("import os, sys, time; os.close(int(sys.argv[1])); time.sleep(60)", "closed its control"),
    ],
)
def test_what_a_process_died_of_is_said(tmp_path, monkeypatch, program, complaint):
    (tmp_path / "dies_early.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def check():
        child = await Child.start("dies_early", ())
        with pytest.raises(WorkerDied, match=complaint):
            await child.call({"load": {}})
        child.tell({"free": [0]}, soon=False)  # which nobody hears any longer
        await child.stop(grace=0.0)

    asyncio.run(check())


def message_of(inputs, body, is_json=True, compression=""):
    inputs.view(0, len(body))[:] = body
    return Message(0, len(body), is_json, compression, 16 << 20)


BODY = b'{"tensor": [{"float_data": [1, 2], "elem_type": 1, "shape": [2], "name": "x"}]}'


def test_a_parser_that_dies_takes_one_request_with_it_and_is_started_again(inputs):
    async def check():
        parser = Parser(inputs)
        message = message_of(inputs, BODY)
        request = await parser.parse(message, lambda size: 1 << 20)
        assert request.feeds["x"].tolist() == [1, 2]
        os.kill(parser.pid, signal.SIGSTOP)
        parsing = asyncio.ensure_future(parser.parse(message, lambda size: 1 << 20))
        waiting = asyncio.ensure_future(parser.parse(message, lambda size: 1 << 20))
        await asyncio.sleep(0.05)
        os.kill(parser.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await parsing
        assert (await waiting).feeds["x"].tolist() == [1, 2]
        await parser.stop()

    asyncio.run(check())


def test_a_parser_that_takes_too_long_is_replaced(inputs):
    async def check():
        parser = Parser(inputs, timeout=4.0)
        message = message_of(inputs, BODY)
        await parser.parse(message, lambda size: 1 << 20)
        os.kill(parser.pid, signal.SIGSTOP)
        with pytest.raises(WorkerDied, match=r"more than 4 s"):
            await parser.parse(message, lambda size: 1 << 20)
        assert (await parser.parse(message, lambda size: 1 << 20)).feeds["x"].tolist() == [1, 2]
        await parser.stop()

    asyncio.run(check())


def test_a_parser_goes_on_after_what_it_cannot_parse_and_what_has_no_room(inputs):
    async def check():
        parser = Parser(inputs)
        with pytest.raises(WireError, match="not JSON"):
            await parser.parse(message_of(inputs, b"{"), lambda size: 1 << 20)
        with pytest.raises(NoRoom):
            await parser.parse(message_of(inputs, BODY), lambda size: None)
        request = await parser.parse(message_of(inputs, BODY), lambda size: 1 << 20)
        assert request.feeds["x"].tolist() == [1, 2]
        await parser.stop()

    asyncio.run(check())


def test_a_parser_that_is_stopped_says_so_to_who_waits_for_it(inputs):
    async def check():
        parser = Parser(inputs)
        message = message_of(inputs, BODY)
        await parser.parse(message, lambda size: 1 << 20)
        os.kill(parser.pid, signal.SIGSTOP)
        parsing = asyncio.ensure_future(parser.parse(message, lambda size: 1 << 20))
        await asyncio.sleep(0.05)
        await parser.stop()
        with pytest.raises(WorkerDied, match="was stopped"):
            await parsing

    asyncio.run(check())


def test_who_waits_for_its_turn_at_a_parser_may_leave(inputs):
    async def check():
        parser = Parser(inputs)
        message = message_of(inputs, BODY)
        await parser.parse(message, lambda size: 1 << 20)
        os.kill(parser.pid, signal.SIGSTOP)
        parsing, leaves, stays = (
            asyncio.ensure_future(parser.parse(message, lambda size: 1 << 20)) for _ in range(3)
        )
        await asyncio.sleep(0.05)
        leaves.cancel()
        os.kill(parser.pid, signal.SIGCONT)
        for task in (parsing, stays):
            assert (await asyncio.wait_for(task, 20)).feeds["x"].tolist() == [1, 2]
        assert leaves.cancelled()
        await parser.stop()

    asyncio.run(check())


def test_who_leaves_at_the_moment_of_its_turn_passes_it_on(inputs):
    async def check():
        parser = Parser(inputs)
        message = message_of(inputs, BODY)
        parsing, leaves, stays = (
            asyncio.ensure_future(parser.parse(message, lambda size: 1 << 20)) for _ in range(3)
        )
        parsing.add_done_callback(lambda _: leaves.cancel())  # it has its turn, and not begun
        assert (await asyncio.wait_for(stays, 20)).feeds["x"].tolist() == [1, 2]
        assert leaves.cancelled()
        await parser.stop()

    asyncio.run(check())


def test_what_takes_more_memory_to_parse_than_is_allowed_is_refused(inputs):
    async def check():
        parser = Parser(inputs)
        await parser.parse(message_of(inputs, BODY), lambda size: 1 << 20)
        with open(f"/proc/{parser.pid}/status") as status:
            (used,) = (int(line.split()[1]) for line in status if line.startswith("VmData"))
        limit = (used << 10) + (8 << 20)
        hard = resource.prlimit(parser.pid, resource.RLIMIT_DATA)[1]
        resource.prlimit(parser.pid, resource.RLIMIT_DATA, (limit, hard))
        with pytest.raises(WireError, match=r"takes more than .* of memory"):
            await parser.parse(
                message_of(inputs, b'{"a": [' + b"[1]," * 500_000 + b"1]}"), lambda size: 1 << 20
            )
        request = await parser.parse(message_of(inputs, BODY), lambda size: 1 << 20)
        assert request.feeds["x"].tolist() == [1, 2]
        await parser.stop()

    asyncio.run(check())


@pytest.mark.parametrize("begun", [0, 7])
@pytest.mark.parametrize("module", ["worker.main", "worker.parsing"])
def test_a_process_whose_server_dies_with_an_answer_unread_ends_in_good_order(module, begun):
    (ours, theirs), (other, memories) = socket.socketpair(), socket.socketpair()
    arena = contextlib.closing(Arena.create(1 << 20, "test"))
    with arena as arena, ours, theirs, other, memories:
        fds = [theirs.fileno(), arena.fd, arena.fd, memories.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-m", f"edl.serving.{module}", *map(str, fds)], pass_fds=fds
        )
        theirs.close()
        load = {"load": asdict(PREDICTOR)}
        parse = {"parse": [0, 1], "json": True, "kind": "", "limit": 1}
        ours.sendall(control.pack(load if module == "worker.main" else parse))
        ours.sendall(control.pack(parse)[:begun])
        eventually(lambda: select.select([ours], [], [], 0)[0], 30)
        ours.close()  # the other side finds a connection that is reset
        assert process.wait(20) == 0


def test_shorter_messages_are_parsed_first(inputs):
    order = []

    async def check():
        parser = Parser(inputs)
        inputs.view(0, len(BODY))[:] = BODY

        async def parse(size):
            inputs.view(0, size)[:] = BODY + b" " * (size - len(BODY))
            await parser.parse(Message(0, len(BODY) + size, True, "", 1 << 20), lambda n: 1 << 20)
            order.append(size)

        await parse(200)
        order.clear()
        await asyncio.gather(*(parse(size) for size in (500, 3000, 1000, 2000)))
        await parser.stop()

    inputs.view(0, 10_000)[:] = b" " * 10_000
    asyncio.run(check())
    assert order == [500, 1000, 2000, 3000]


@pytest.mark.parametrize(("said", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_math_threads_sleep_while_there_is_no_work_unless_the_user_says_otherwise(
    inputs, monkeypatch, said, expected
):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if said:
        monkeypatch.setenv("OMP_WAIT_POLICY", said)

    async def check():
        worker = WorkerProcess(PREDICTOR, inputs, 1 << 20)
        await worker.start(60)
        environment = Path(f"/proc/{worker.pid}/environ").read_text().split("\0")
        await worker.stop()
        assert f"OMP_WAIT_POLICY={expected}" in environment

    asyncio.run(check())
