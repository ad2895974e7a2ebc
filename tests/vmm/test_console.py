"""The console against a peer that writes what a guest may write."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from vmgr.errors import MachineError
from vmgr.vmm.console import CHUNK, TAIL, Console

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path


class Serial:
    """A VMM's end of a console."""

    def __init__(self, directory: Path) -> None:
        self.path, self.log = directory / "console.sock", directory / "console.log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(1)

    async def connect(self, executor: ThreadPoolExecutor) -> tuple[Console, socket.socket]:
        console = await Console.connect(self.path, self.log, executor)
        peer, _ = self._listener.accept()
        peer.setblocking(False)  # noqa: FBT003 (its only argument)
        return console, peer

    def close(self) -> None:
        self._listener.close()


async def said(directory: Path, executor: ThreadPoolExecutor, *chunks: bytes) -> Console:
    serial = Serial(directory)
    console, peer = await serial.connect(executor)
    for chunk in chunks:
        await asyncio.get_running_loop().sock_sendall(peer, chunk)
    peer.close()
    serial.close()
    await console.ended.wait()
    await console.close()
    return console


async def test_the_log_has_every_byte(directory: Path, executor: ThreadPoolExecutor) -> None:
    everything = bytes(range(256)) * 1000
    console = await said(directory, executor, everything)
    assert (directory / "console.log").read_bytes() == everything
    assert console.spoke.is_set()


async def test_the_tail_is_for_people(directory: Path, executor: ThreadPoolExecutor) -> None:
    text = b"\x1b[2J\x1b[1;31mred\x1b[0m\r\nbell\x07 \x9b31m\xff\r\n\r\nlast\ttab"
    console = await said(directory, executor, text)
    assert console.tail() == "red\nbell \ufffd31m\ufffd\nlast\ttab"


async def test_memory_is_bounded(directory: Path, executor: ThreadPoolExecutor) -> None:
    console = await said(directory, executor, b"x" * (8 * CHUNK))
    assert len(console._tail) <= 2 * TAIL
    assert len(console.tail()) == TAIL


@pytest.mark.parametrize(
    "chunks",
    [
        (b"[    1.5] Kernel panic - not syncing: VFS: no root\r\n",),
        (b"Kernel panic - not syncing: VFS: no root\n",),
        (b"fine\n[ 1.5] Kernel pa", b"nic - not syncing: VFS: ", b"no root\r\n[ 1.6] more\r\n"),
        (b"x" * (2 * TAIL + 5) + b"\n[ 1] Kernel pa", b"nic - not syncing: VFS: no root\n"),
    ],
)
async def test_a_panic_is_noticed(
    directory: Path, executor: ThreadPoolExecutor, chunks: tuple[bytes, ...]
) -> None:
    console = await said(directory, executor, *chunks)
    assert console.panic == "VFS: no root"


@pytest.mark.parametrize(
    "text",
    [
        b"I fear a Kernel panic - not syncing: x\n",
        b"Kernel panic - not syncing: never ends",
        b"Kernel panic - not syncing: " + b"x" * 300 + b"\n",
    ],
)
async def test_other_talk_is_no_panic(
    directory: Path, executor: ThreadPoolExecutor, text: bytes
) -> None:
    assert (await said(directory, executor, text)).panic is None


async def test_closing_lets_go_of_a_machine_that_runs(
    directory: Path, executor: ThreadPoolExecutor
) -> None:
    serial = Serial(directory)
    console, peer = await serial.connect(executor)
    await asyncio.get_running_loop().sock_sendall(peer, b"hello\n")
    await console.spoke.wait()
    await console.close()
    assert console.ended.is_set()
    assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""
    again, other = await serial.connect(executor)
    await asyncio.get_running_loop().sock_sendall(other, b"again\n")
    other.close()
    await again.ended.wait()
    await again.close()
    assert (directory / "console.log").read_bytes() == b"hello\nagain\n"
    peer.close()
    serial.close()


async def test_a_log_that_cannot_be_written_costs_only_the_log(
    directory: Path, executor: ThreadPoolExecutor
) -> None:
    (directory / "console.log").mkdir()
    console = await said(directory, executor, b"one\n", b"two\n")
    assert console.tail() == "one\ntwo"


async def test_nothing_listens(directory: Path, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(MachineError, match="the machine's console cannot be reached"):
        await Console.connect(directory / "none", directory / "log", executor)
