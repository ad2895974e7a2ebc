"""QMP against a real QEMU without a guest, and against a peer that misbehaves."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from vmgr.errors import MachineError
from vmgr.spawner import Process, spawn
from vmgr.vmm.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmgr.vmm import Qemu

    from .conftest import Refused

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
                    "capabilities": []}}  # fmt: skip


@pytest.fixture
async def vmm(qemu: Qemu, directory: Path) -> AsyncIterator[tuple[Process, Path]]:
    """A QEMU that has no machine."""
    path = directory / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        fd = listener.fileno()
        process = await spawn(
            [qemu.program, "-machine", "none", "-nodefaults", "-display", "none",
             "-chardev", f"socket,id=qmp,fd={fd},server=on,wait=off", "-mon", "qmp,mode=control"],
            pass_fds=(fd,),
        )  # fmt: skip
    yield process, path
    process.kill()
    await process.wait()


async def connect(path: Path, events: list[tuple[str, Any]]) -> Qmp:
    return await Qmp.connect(path, "box", lambda name, data: events.append((name, data)))


async def test_commands_events_and_the_end(vmm: tuple[Process, Path]) -> None:
    process, path = vmm
    events: list[tuple[str, Any]] = []
    qmp = await connect(path, events)
    assert (await qmp.execute("query-status"))["running"] is True
    await qmp.execute("stop")
    await qmp.execute("cont")
    await qmp.execute("quit")
    await process.wait()
    await qmp.closed.wait()
    # It may have told of its own start as well.
    assert [name for name, _ in events][-3:] == ["STOP", "RESUME", "SHUTDOWN"]
    assert events[-1][1]["reason"] == "host-qmp-quit"
    assert not qmp._client.events.history
    assert qmp._client.events.empty()
    await qmp.close()


async def test_a_refusal_is_one_sentence(vmm: tuple[Process, Path], refused: Refused) -> None:
    qmp = await connect(vmm[1], [])
    error = await refused(qmp.execute("no-such-command"))
    assert isinstance(error, MachineError)
    assert error.message == (
        "the VMM of machine box refuses no-such-command: "
        "The command no-such-command has not been found"
    )
    assert error.details["class"] == "CommandNotFound"
    assert (await qmp.execute("query-status"))["status"] == "running"
    await qmp.close()


async def test_a_connection_can_be_made_again(vmm: tuple[Process, Path]) -> None:
    for _ in range(3):
        qmp = await connect(vmm[1], [])
        assert await qmp.execute("query-name") == {}
        await qmp.close()
        assert qmp.closed.is_set()


async def test_the_vmm_dies_with_commands_under_way(
    vmm: tuple[Process, Path], refused: Refused
) -> None:
    process, path = vmm
    qmp = await connect(path, [])
    waiting = [asyncio.create_task(refused(qmp.execute("query-qmp-schema"))) for _ in range(5)]
    await asyncio.sleep(0)
    process.kill()
    errors = await asyncio.gather(*waiting)
    assert {e.message for e in errors} == {"the VMM of machine box is gone"}
    await qmp.closed.wait()
    assert (await refused(qmp.execute("stop"))).message == "the VMM of machine box is gone"
    await qmp.close()


class Peer:
    """Something else than QEMU at the other end."""

    def __init__(self, path: Path, *lines: bytes) -> None:
        self.path, self._lines = path, lines
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Path:
        self._server = await asyncio.start_unix_server(self._talk, str(self.path))
        return self.path

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        for line in self._lines:
            writer.write(line + b"\n")
            await reader.read(4_096)


async def test_one_that_greets_and_never_answers(directory: Path, refused: Refused) -> None:
    greeting = json.dumps(GREETING).encode()
    async with Peer(directory / "s", greeting, b'{"return": {}, "id": "x"}') as path:
        qmp = await connect(path, [])
        error = await refused(qmp.execute("stop", deadline=0.05))
        assert error.message == "the VMM of machine box did not answer stop within 0.05 s"
        assert error.next_step == "end it with: vmgr kill box"
        await qmp.close()


@pytest.mark.parametrize("line", [b"hello", b"[]", b"{}", b"\xff" * 100, b"x" * (1 << 21)])
async def test_one_that_does_not_speak_qmp(directory: Path, refused: Refused, line: bytes) -> None:
    async with Peer(directory / "s", line) as path:
        error = await refused(connect(path, []))
        assert isinstance(error, MachineError)
        assert error.message.startswith("the VMM of machine box cannot be reached: ")


async def test_one_that_says_nothing(directory: Path, refused: Refused) -> None:
    async with Peer(directory / "s") as path:
        error = await refused(Qmp.connect(path, "box", lambda _n, _d: None, deadline=0.05))
        assert error.message == "the VMM of machine box cannot be reached: it does not answer"


async def test_none_at_all(directory: Path, refused: Refused) -> None:
    error = await refused(connect(directory / "none", []))
    assert error.message.startswith("the VMM of machine box cannot be reached: ")


async def test_an_event_before_the_greeting(directory: Path) -> None:
    """QEMU tells of what happens between its accepting a connection and its noticing that."""
    event = b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}'
    both = event + b"\n" + json.dumps(GREETING).encode()
    events: list[tuple[str, Any]] = []
    async with Peer(directory / "s", both, b'{"return": {}}') as path:
        qmp = await connect(path, events)
        assert events == [("RESUME", {})]
        await qmp.close()


async def test_an_event_before_the_first_answer(directory: Path) -> None:
    """A restored machine begins to run while its VMM is being greeted."""
    greeting = json.dumps(GREETING).encode()
    event = b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}'
    turns = [(greeting, event), (greeting, event), (greeting, b'{"return": {}}')]

    class InTurn(Peer):
        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._lines = turns.pop(0)
            await super()._talk(reader, writer)

    async with InTurn(directory / "s") as path:
        qmp = await connect(path, [])
        assert turns == []
        await qmp.close()


async def test_events_for_ever_before_the_first_answer(directory: Path, refused: Refused) -> None:
    greeting = json.dumps(GREETING).encode()
    event = b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}'
    async with Peer(directory / "s", greeting, event) as path:
        error = await refused(connect(path, []))
        assert error.message.startswith("the VMM of machine box cannot be reached: ")
