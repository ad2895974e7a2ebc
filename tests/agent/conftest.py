"""A channel and, at the other end of its socket, a script or the real agent."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from vmgr.agent.channel import AgentChannel
from vmgr.agent.frames import Frame, FrameBuffer, FrameType
from vmgr.agent.keys import KEY_SIZE, MemoryKeyStore

from .peer import agent_frame, hello_map, unpack

if TYPE_CHECKING:
    from vmgr.agent import messages as m
    from vmgr.agent.job import Job
    from vmgr.errors import VmgrError

LOGGER = logging.getLogger("test.agent")

# Tests say nothing about wall-clock time, and the computer may be busy.
settings.register_profile("vmgr", deadline=None)
settings.load_profile("vmgr")


class Script:
    """The agent's end of the socket, in the test's hands."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self.sock = sock
        self._buffer = FrameBuffer()
        self._marker = 0

    async def frame(self) -> Frame:
        """The next frame of the host."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            while True:
                if self._marker == KEY_SIZE and (frame := self._buffer.next()) is not None:
                    return frame
                data = await loop.sock_recv(self.sock, 65_536)
                if not data:
                    raise EOFError
                skip = min(KEY_SIZE - self._marker, len(data))
                self._marker += skip
                self._buffer.feed(data[skip:])

    async def greet(self, hello: dict[str, Any] | None = None) -> None:
        frame = await self.frame()
        assert frame.type is FrameType.HELLO
        await self.send(
            unpack(frame.payload)["nonce"], agent_frame(FrameType.HELLO, hello or hello_map())
        )

    async def request(self) -> tuple[int, dict[str, Any]]:
        """The next OPEN, and its channel."""
        frame = await self.frame()
        assert frame.type is FrameType.OPEN
        return frame.channel, unpack(frame.payload)

    async def started(self, job: int = 1) -> int:
        """Answer the next exec."""
        channel, request = await self.request()
        assert request["op"] == "exec"
        await self.send(agent_frame(FrameType.OPENED, {"job": job, "pid": 99}, channel=channel))
        return channel

    async def send(self, *parts: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(parts))


@dataclass
class Recorder:
    """A sink that writes down what it is told and grants as it is told to."""

    window: int = 0
    """Granted beyond what has come; 0: nothing beyond the initial credit."""
    log: list[tuple[Any, ...]] = field(default_factory=list)
    received: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})
    job: Job | None = None
    error: VmgrError | None = None
    result: m.JobExit | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def started(self, job: Job) -> None:
        assert not self.log
        self.job = job
        self.log.append(("started", job.id))

    def data(self, flow: int, data: bytes) -> None:
        self.received[flow] += data
        self.log.append(("data", flow, len(data)))
        if self.window and self.job:
            start = (0, self.job.stdout_from, self.job.stderr_from)[flow]
            acked = start + len(self.received[flow])
            self.job.grant(flow, acked, acked + self.window)
        self.changed.set()

    def eof(self, flow: int) -> None:
        self.log.append(("eof", flow))
        self.changed.set()

    def credit(self, acked: int, limit: int) -> None:
        self.log.append(("credit", acked, limit))
        self.changed.set()

    def exit(self, result: m.JobExit) -> None:
        self.result = result
        self.log.append(("exit",))
        self.ended.set()
        self.changed.set()

    def failed(self, error: VmgrError) -> None:
        self.error = error
        self.log.append(("failed",))
        self.ended.set()
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


Scripted = Callable[..., Awaitable[tuple[AgentChannel, Script]]]


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    """Makes pairs of a channel and the script at its other end."""
    channels: list[AgentChannel] = []
    scripts: list[Script] = []

    async def make(*, greet: bool = True, **options: Any) -> tuple[AgentChannel, Script]:
        ours, theirs = socket.socketpair()
        keys = options.pop("keys", None) or MemoryKeyStore()
        options = {
            "machine": "box", "host_version": "test", "on_event": lambda _: None,
            "logger": LOGGER, **options,
        }  # fmt: skip
        script = Script(theirs)
        scripts.append(script)
        channel = await AgentChannel.over(ours, keys, **options)
        channels.append(channel)
        if greet:
            await script.greet()
            await channel.hello()
        return channel, script

    yield make
    for channel in channels:
        await channel.aclose()
    for script in scripts:
        script.sock.close()
