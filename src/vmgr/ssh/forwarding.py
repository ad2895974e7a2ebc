"""Connections through the machine: ports and sockets of its, for the client, and the other way.

Each connection is a job of its own (the agent's `connect` and `accept`), so it has its own windows.
A listener is a job too: it tells of connections, and each is fetched by another job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, cast

import asyncssh

from vmgr.errors import VmgrError
from vmgr.ssh.jobs import LineReader, connected_job
from vmgr.ssh.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmgr.ssh.jobs import StartedJob, Target
    from vmgr.ssh.pump import Channel

__all__ = ["AgentListener", "Connection", "RemoteListener"]

# Connections that one listener has at the same time; the agent's jobs are counted too.
_CONNECTIONS_MAX: Final = 128
_DELIVERED_WITHIN: Final = 30.0  # seconds that a peer which does not read keeps a connection
_DIGITS_MAX: Final = 5
_PORT_MAX: Final = 0xFFFF
_ACCEPTED: Final = 4  # "accepted ID HOST PORT"
_LISTENING: Final = 3  # "listening WHERE TOKEN"

log = logging.getLogger(__name__)


class Connection(asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """One forwarded connection: a channel and a job."""

    def __init__(self, started: StartedJob, first: bytes) -> None:
        self._started = started
        self._first = first
        self._pump = Pump()
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self.ended = asyncio.Event()

    @classmethod
    async def to(cls, target: Target, *where: str) -> Connection:
        """Connect from within the machine.

        Raises:
            ChannelOpenError: it could not be done; the client is told why.
        """
        try:
            return cls(*await connected_job(target, "connect", *where))
        except VmgrError as error:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, error.message) from None

    def connection_made(self, chan: object) -> None:
        """See `asyncssh.SSHTCPSession`."""
        self._channel = cast("asyncssh.SSHTCPChannel[bytes]", chan)
        self._pump.opened(cast("Channel", chan))

    def session_started(self) -> None:
        """See `asyncssh.SSHTCPSession`."""
        self._task = asyncio.create_task(self._run(), name="ssh connection")

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002
        """See `asyncssh.SSHTCPSession`."""
        self._pump.received(data)

    def eof_received(self) -> bool:
        """See `asyncssh.SSHTCPSession`. The other direction goes on."""
        self._ended = True
        self._pump.received_end()
        return True

    def pause_writing(self) -> None:
        """See `asyncssh.SSHTCPSession`."""
        self._pump.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncssh.SSHTCPSession`."""
        self._pump.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncssh.SSHTCPSession`. What was sent before an orderly end still arrives."""
        if self._task is None:
            self.drop()
        elif exc is None and self._ended:
            self._last = asyncio.create_task(self._deliver(), name="last bytes of a connection")
        else:
            self._task.cancel()

    def drop(self) -> None:
        """End it where it never got a channel."""
        self._started.job.close()
        self.ended.set()

    async def _deliver(self) -> None:
        assert self._task is not None  # noqa: S101 (it is connected)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DELIVERED_WITHIN):
                await self._pump.delivered()
        self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._pump.run(self._started, first=self._first, pass_end=True)
        except VmgrError as error:
            log.info("a forwarded connection ended: %s", error)
        finally:
            self._channel.close()
            self.ended.set()


class RemoteListener(asyncssh.SSHListener):
    """A listening socket in the machine, whose connections go to the client.

    Args:
        hand_on: opens a channel to the client for a connection and where that came from.
    """

    def __init__(
        self,
        target: Target,
        hand_on: Callable[[Connection, tuple[str, int]], Awaitable[object]],
    ) -> None:
        super().__init__()
        self._target = target
        self._hand_on = hand_on
        self._task: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.path = ""

    async def open(self, *where: str) -> None:
        """Listen.

        Raises:
            VmgrError: it could not be done.
        """
        started = await self._target.start_builtin("listen", *where)
        try:
            reader = LineReader(started)
            words = await reader.line_of("listening", _LISTENING)
        except BaseException:
            started.job.close()
            raise
        self.path, token = words[1], words[2]
        self._task = asyncio.create_task(
            self._serve(started, reader, token), name=f"ssh listener in {self._target.machine}"
        )

    def get_port(self) -> int:
        """See `asyncssh.SSHListener`."""
        return _port(self.path) or 0

    def close(self) -> None:
        """See `asyncssh.SSHListener`."""
        if self._task is not None:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """See `asyncssh.SSHListener`."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _serve(self, started: StartedJob, reader: LineReader, token: str) -> None:
        try:
            while (words := await reader.line()) is not None:
                if len(words) != _ACCEPTED or (port := _port(words[3])) is None:
                    break
                if len(self._connections) >= _CONNECTIONS_MAX:
                    continue  # nobody fetches it, and it is closed
                task = asyncio.create_task(
                    self._connect(token, words[1], (words[2], port)),
                    name="forwarded connection",
                )
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
        except VmgrError as error:
            log.info("a listener in %s ended: %s", self._target.machine, error)
        finally:
            started.job.close()

    async def _connect(self, token: str, number: str, peer: tuple[str, int]) -> None:
        try:
            connection = Connection(*await connected_job(self._target, "accept", token, number))
        except VmgrError as error:
            log.info("a connection to %s was lost: %s", self._target.machine, error)
            return
        try:
            await self._hand_on(connection, peer)
        except (asyncssh.Error, OSError) as error:
            log.info("the client does not take a connection: %s", error)
            connection.drop()
            return
        await connection.ended.wait()


def _port(text: str) -> int | None:
    """A port's number, which a machine says."""
    plain = text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
    return int(text) if plain and int(text) <= _PORT_MAX else None


class AgentListener(RemoteListener):
    """A socket in the machine that leads to the client's ssh-agent."""

    def __init__(self, target: Target, connection: asyncssh.SSHServerConnection) -> None:
        def hand_on(session: Connection, _peer: tuple[str, int]) -> Awaitable[object]:
            return connection.create_agent_connection(lambda: session)

        super().__init__(target, hand_on)

    def close(self) -> None:
        """See `RemoteListener`; nothing waits for it."""
        with contextlib.suppress(RuntimeError):
            super().close()
