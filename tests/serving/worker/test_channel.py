"""Control messages: in whatever pieces they come, all at once, and to nobody."""

import asyncio
import socket

from hypothesis import given
from hypothesis import strategies as st

from edl.serving.worker import control
from edl.serving.worker.channel import Channel

messages = st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=3), max_size=8)


@given(messages, st.lists(st.integers(1, 40), min_size=1))
def test_messages_are_the_same_in_whatever_pieces_they_come(sent, sizes):
    data = b"".join(map(control.pack, sent))
    inbox, received = control.Inbox(), []
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        inbox.feed(data[at : at + size])
        at, turn = at + size, turn + 1
        while (message := inbox.next()) is not None:
            received.append(message)
    assert received == sent
    assert inbox.next() is None


def run(check):
    async def both():
        ours, theirs = socket.socketpair()
        with theirs:
            received, ends = [], []
            channel = Channel(ours, received.append, lambda: ends.append(True))
            await check(channel, theirs, received, ends)
            channel.close()

    asyncio.run(both())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_what_is_held_back_goes_with_the_next_message():
    async def check(channel, theirs, received, ends):
        theirs.setblocking(False)
        channel.hold({"one": 1})
        channel.hold({"two": 2})
        try:
            early = theirs.recv(100)
        except BlockingIOError:
            early = b""
        assert not early
        channel.send({"three": 3})
        inbox = control.Inbox()
        inbox.feed(theirs.recv(1000))
        assert [inbox.next() for _ in range(3)] == [{"one": 1}, {"two": 2}, {"three": 3}]

    run(check)


def test_what_the_socket_has_no_room_for_follows_in_order():
    async def check(channel, theirs, received, ends):
        for number in range(2000):
            channel.send({"number": number, "padding": "x" * 500})
        front = control.Front(theirs)

        def read():
            return [front.receive()["number"] for _ in range(2000)]

        assert await asyncio.get_running_loop().run_in_executor(None, read) == list(range(2000))
        channel.send({"number": 2000})
        assert front.receive() == {"number": 2000}

    run(check)


def test_many_messages_in_one_packet_are_all_heard_and_the_end_once():
    async def check(channel, theirs, received, ends):
        theirs.sendall(b"".join(control.pack({"n": number}) for number in range(5)))
        await until(lambda: len(received) == 5)
        assert received == [{"n": number} for number in range(5)]
        theirs.close()
        await until(lambda: ends)
        channel.send({"nobody": 1})
        channel.close()
        await asyncio.sleep(0.01)
        assert ends == [True]

    run(check)
