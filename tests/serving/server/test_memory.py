"""Request memory as the server's loop sees it: who waits, who gets it, and that all comes back."""

import asyncio

import pytest

from edl.serving.server import memory as module
from edl.serving.server.gate import Guest
from edl.serving.server.memory import RequestMemory
from edl.serving.wire.arena import ALIGNMENT, Arena

MIB = 1 << 20


class Server:
    """Request memory of 16 MiB, and who was thrown out for it."""

    def __init__(self):
        self.arena = Arena.create(16 * MIB, "test")
        self.thrown_out = []
        self.memory = RequestMemory(self.arena, 1.0, self.throw_out)

    def throw_out(self, guest, reason):
        self.thrown_out.append(guest.peer)
        self.memory.forget(guest)

    def unused(self):
        budget = self.memory.budget
        return budget.blocks == budget.loose == budget.newcomers == 0


@pytest.fixture
def server():
    server = Server()
    yield server
    server.arena.close()


TRUSTED = Guest("student", trusted=True)


def test_room_that_is_there_only_in_pieces_is_none(server):
    memory = server.memory
    blocks = [memory.try_block(TRUSTED, 4 * MIB) for _ in range(4)]
    assert memory.try_block(TRUSTED, ALIGNMENT) is None
    for block in blocks[::2]:
        memory.free(block)
    assert memory.try_block(TRUSTED, 8 * MIB) is None
    whole = memory.try_block(TRUSTED, 4 * MIB)
    for block in (whole, *blocks[1::2]):
        memory.free(block)
    assert server.unused()
    assert memory.try_block(TRUSTED, 16 * MIB) == 0


def test_who_leaves_at_the_moment_of_getting_its_block_gives_it_back(server):
    async def check():
        first = server.memory.try_block(TRUSTED, 16 * MIB)
        waits = asyncio.ensure_future(server.memory.block(TRUSTED, MIB))
        await asyncio.sleep(0)
        server.memory.free(first)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits

    asyncio.run(check())
    assert server.unused()


def test_who_leaves_while_its_body_is_copied_gives_the_block_back(server):
    async def check():
        arrival = server.memory.begin(TRUSTED, 6 * MIB)
        copying = asyncio.ensure_future(server.memory.finish(arrival, bytearray(6 * MIB)))
        await asyncio.sleep(0)
        assert not server.unused()
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        server.memory.drop(arrival)

    asyncio.run(check())
    assert server.unused()


def test_newcomers_that_fill_their_part_send_no_student_away(server, monkeypatch):
    """A student's body stands still, but it is not what newcomers wait for."""
    monkeypatch.setattr(module, "PRESSURE_AFTER", 0.05)

    async def check():
        memory = server.memory
        slow = memory.begin(TRUSTED, 2 * MIB)
        await memory.take(slow, MIB)
        newcomers = [memory.begin(Guest(f"newcomer {number}"), 4 * MIB) for number in range(2)]
        await memory.take(newcomers[0], 3 * MIB)
        with pytest.raises(ConnectionAbortedError, match="newcomer 1 was sent away"):
            await asyncio.gather(
                memory.take(newcomers[1], 2 * MIB), send_away(newcomers[1].guest, after=0.5)
            )
        for arrival in (slow, *newcomers):
            memory.drop(arrival)

    async def send_away(guest, after):
        await asyncio.sleep(after)
        server.memory.forget(guest)

    asyncio.run(check())
    assert "newcomer 0" in server.thrown_out
    assert "student" not in server.thrown_out


def test_who_was_slow_while_nobody_waited_is_not_judged_by_it(server, monkeypatch):
    monkeypatch.setattr(module, "PRESSURE_AFTER", 0.05)

    async def check():
        memory = server.memory
        idle = memory.begin(TRUSTED, MIB)
        first = memory.try_block(TRUSTED, 16 * MIB)
        waits = asyncio.ensure_future(memory.block(TRUSTED, MIB))
        await asyncio.sleep(0.06)  # it is looked at for the first time
        memory.free(first)
        memory.free(await waits)
        await asyncio.sleep(0.2)  # and forgotten, since nobody waits
        second = memory.try_block(TRUSTED, 16 * MIB)
        waits = asyncio.ensure_future(memory.block(TRUSTED, MIB))
        await asyncio.sleep(0.06)
        assert server.thrown_out == [], "once is not enough to tell"
        memory.free(second)
        memory.free(await waits)
        memory.drop(idle)

    asyncio.run(check())
    assert server.unused()
