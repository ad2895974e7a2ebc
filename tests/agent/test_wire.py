from __future__ import annotations

import asyncio
import random
import socket
from typing import TYPE_CHECKING

import pytest

from vmgr.agent.wire import HIGH_WATER, MAX_QUEUED, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Ends:
    """A wire, what it was told, and the socket at its other end."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.settimeout(0)
        self.received = bytearray()
        self.ended: list[str] = []
        self.told = asyncio.Event()
        self.wire = Wire(ours, on_data=self._data, on_end=self._end)

    def _data(self, data: bytes) -> None:
        self.received += data
        self.told.set()

    def _end(self, why: str) -> None:
        self.ended.append(why)
        self.told.set()

    async def read(self, count: int) -> bytes:
        data = bytearray()
        async with asyncio.timeout(30):
            while len(data) < count:
                data += await asyncio.get_running_loop().sock_recv(self.peer, 7_001)
        return bytes(data)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.wire.close()
    ends.peer.close()


async def test_parts_of_any_size_arrive_whole_and_in_order(ends: Ends) -> None:
    """More than the socket takes at once, so that sends end in the middle of parts."""
    chance = random.Random(3)  # noqa: S311 (data for a test)
    parts = [chance.randbytes(chance.choice((0, 1, 12, 5_000, 250_000))) for _ in range(60)]

    async def send() -> None:
        for at in range(0, len(parts), 3):
            await ends.wire.room()
            ends.wire.send(parts[at : at + 3])

    stream = b"".join(parts)
    sending = asyncio.create_task(send())
    assert await ends.read(len(stream)) == stream
    await sending
    assert ends.wire.queued == 0


async def test_many_small_parts(ends: Ends) -> None:
    parts = [bytes([n % 256]) * (n % 5) for n in range(1_000)]
    ends.wire.send(parts)
    assert await ends.read(2_000) == b"".join(parts)


async def test_room_waits_for_the_reader(ends: Ends) -> None:
    ends.wire.send([bytes(MAX_QUEUED - 1)])
    assert ends.wire.queued > HIGH_WATER
    waiting = asyncio.create_task(ends.wire.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await ends.read(MAX_QUEUED - 1)
    await waiting
    assert ends.wire.queued <= HIGH_WATER


async def test_closing_ends_the_wait_for_room(ends: Ends) -> None:
    ends.wire.send([bytes(MAX_QUEUED - 1)])
    waiting = asyncio.create_task(ends.wire.room())
    await asyncio.sleep(0)
    ends.wire.close()
    await waiting
    assert ends.ended == []


async def test_too_much_for_a_reader_that_does_not_read(ends: Ends) -> None:
    for _ in range(40):
        ends.wire.send([bytes(MAX_QUEUED // 16)])
    assert ends.ended == ["it does not read what is sent to it"]
    assert ends.wire.closed
    assert ends.wire.queued == 0


async def test_the_other_end_closes(ends: Ends) -> None:
    ends.peer.sendall(b"last words")
    ends.peer.close()
    async with asyncio.timeout(30):
        while not ends.ended:
            ends.told.clear()
            await ends.told.wait()
    assert bytes(ends.received) == b"last words"
    assert ends.ended == ["the VMM closed the connection"]
    ends.wire.send([b"nobody hears this"])
    ends.wire.close()


async def test_the_other_end_is_gone_when_something_is_sent(ends: Ends) -> None:
    ends.peer.close()
    ends.wire.send([b"x"])
    assert ends.ended == ["its connection broke (Broken pipe)"]


async def test_pausing_leaves_the_bytes_in_the_socket(ends: Ends) -> None:
    ends.wire.pause()
    ends.wire.pause()
    ends.peer.sendall(b"x")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not ends.received
    ends.wire.resume()
    async with asyncio.timeout(30):
        await ends.told.wait()
    assert bytes(ends.received) == b"x"
