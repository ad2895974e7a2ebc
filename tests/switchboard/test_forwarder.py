"""Real sockets on loopback: the forwarder does not care in which namespace they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from vmgr.switchboard.datagrams import DatagramForwarder
from vmgr.switchboard.forwarder import Connection, Forwarder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE = 30


@contextlib.asynccontextmanager
async def forwarded(serve: object) -> AsyncIterator[tuple[str, int, set[Connection]]]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
    listener = socket.create_server(("127.0.0.1", 0))
    live: set[Connection] = set()
    target = server.sockets[0].getsockname()
    forwarder = Forwarder(listener, target, live)
    try:
        async with asyncio.timeout(DEADLINE):
            yield (*listener.getsockname(), live)
    finally:
        forwarder.close(reset=True)
        server.close()
        assert not live


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_pass_in_both_directions() -> None:
    blob = os.urandom(8 << 20)
    async with forwarded(echo) as (host, port, live):
        reader, writer = await asyncio.open_connection(host, port)
        sending = asyncio.create_task(_send(writer, blob))
        assert await reader.readexactly(len(blob)) == blob
        await sending
        assert len(live) == 1
        writer.close()
        await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, blob: bytes) -> None:
    writer.write(blob)
    await writer.drain()


async def test_a_half_closed_connection_goes_on_the_other_way() -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()  # to its end
        writer.write(b"after your end: " + asked)
        writer.close()

    async with forwarded(late) as (host, port, live):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read() == b"after your end: question"
        writer.close()
        await writer.wait_closed()
        assert not live


@pytest.mark.parametrize("who", ["client", "machine"])
async def test_a_reset_reaches_the_other_end(who: str) -> None:
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def reset(writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        if who == "machine":
            reset(writer)
            return
        writer.write(b"y")
        try:
            await reader.readexactly(1)
        except (ConnectionResetError, asyncio.IncompleteReadError) as error:
            ended.set_result(error)
        writer.close()

    async with forwarded(serve) as (host, port, _):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"x")
        if who == "machine":
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        else:
            assert await reader.readexactly(1) == b"y"
            reset(writer)
            assert isinstance(await ended, ConnectionResetError)
        writer.transport.abort()


async def test_nobody_listening_is_a_reset_and_nothing_stays() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        target = gone.getsockname()
    listener = socket.create_server(("127.0.0.1", 0))
    live: set[Connection] = set()
    forwarder = Forwarder(listener, target, live)
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
    assert not live
    forwarder.close()


async def test_a_reader_that_is_slow_holds_its_writer() -> None:
    release = asyncio.Event()
    received = bytearray()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        while data := await reader.read(1 << 20):
            received.extend(data)
        writer.close()

    blob = os.urandom(32 << 20)
    async with forwarded(slow) as (host, port, _):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(blob)
        sending = asyncio.create_task(writer.drain())
        done, _ = await asyncio.wait({sending}, timeout=0.5)
        assert not done, "32 MiB are in nobody's memory"
        release.set()
        await sending
        writer.write_eof()
        assert await reader.read() == b""
        assert received == blob
        writer.close()


async def test_many_short_connections_leave_nothing() -> None:
    async with forwarded(echo) as (host, port, live):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

        async def one(number: int) -> None:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"%d" % number)
            writer.write_eof()
            assert await reader.read() == b"%d" % number
            writer.close()
            await writer.wait_closed()

        for start in range(0, 2_000, 100):
            await asyncio.gather(*(one(start + k) for k in range(100)))
        assert not live
        assert len(os.listdir("/proc/self/fd")) <= before + 4 + 2 * 16  # spare pipes  # noqa: PTH208


async def test_datagrams_of_two_clients_come_back_to_each() -> None:
    loop = asyncio.get_running_loop()
    machine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    machine.bind(("127.0.0.1", 0))
    machine.settimeout(0)
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port.bind(("127.0.0.1", 0))
    address = port.getsockname()
    forwarder = DatagramForwarder(port, machine.getsockname())
    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    try:
        async with asyncio.timeout(DEADLINE):
            for number, client in enumerate(clients):
                client.settimeout(0)
                client.sendto(b"from %d" % number, address)
                data, session = await loop.sock_recvfrom(machine, 100)
                assert data == b"from %d" % number
                machine.sendto(b"to %d" % number, session)
            for number, client in enumerate(clients):
                assert await loop.sock_recv(client, 100) == b"to %d" % number
    finally:
        forwarder.close()
        for sock in (machine, *clients):
            sock.close()
