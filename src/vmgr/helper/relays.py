"""Forwarded ports that lead through the agent: for what only a program in the machine reaches.

A socket of this computer, its connections, and for each a stream of the agent's channel. It takes
neither a tap nor an address in the machine, so it serves what listens on the machine's own
127.0.0.1 and machines without a network of ours. Its speed is the channel's; ports that can be had
directly are the switchboard's (`vmgr.switchboard.forwarder`).

Nothing is read that cannot be passed on: credit is granted as the client takes bytes, and the
client is read as the machine does. The ends of a stream and resets are passed on as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from vmgr.agent.flows import OUTPUT_WINDOW
from vmgr.agent.frames import MAX_DATA, STDOUT
from vmgr.errors import VmgrError
from vmgr.switchboard.acceptor import Acceptor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from vmgr.agent import AgentChannel, JobExit, Stream

__all__ = ["DatagramRelay", "StreamRelay"]

_MOST: Final = 100  # connections of one port; the rest wait to be accepted
_SESSIONS: Final = 32
_QUIET: Final = 60.0
_LARGEST: Final = 65_507
_RESET: Final = struct.pack("ii", 1, 0)

log = logging.getLogger(__name__)


class _Sink:
    """What the agent says of one stream; see `vmgr.agent.JobSink`."""

    def __init__(self) -> None:
        self.arrived: deque[bytes] = deque()
        self.ended = False
        self.over: VmgrError | bool = False
        """True: an orderly end; an error: a reset."""
        self.news = asyncio.Event()
        self.room = asyncio.Event()

    def started(self, job: object) -> None:
        """See `JobSink`; only jobs start."""

    def data(self, flow: int, data: bytes) -> None:
        if flow == STDOUT:
            self.arrived.append(data)
            self.news.set()

    def eof(self, flow: int) -> None:
        del flow
        self.ended = True
        self.news.set()

    def credit(self, acked: int, limit: int) -> None:
        del acked, limit
        self.room.set()

    def exit(self, result: JobExit) -> None:
        del result
        self._end(True)  # noqa: FBT003 (a state)

    def failed(self, error: VmgrError) -> None:
        self._end(error)

    def _end(self, over: VmgrError | bool) -> None:  # noqa: FBT001 (a state)
        self.over = over
        self.news.set()
        self.room.set()


class StreamRelay:
    """One listening socket and its connections.

    Args:
        listener: bound and listening.
        channel: the way into the machine as it is now; raises `VmgrError` where there is none.
        addresses: in the machine, packed, tried in this order.
        port: in the machine.
    """

    def __init__(
        self,
        listener: socket.socket,
        channel: Callable[[], Awaitable[AgentChannel]],
        addresses: Sequence[bytes],
        port: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._addresses = addresses
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor = Acceptor(listener, self._begin)

    @property
    def connected(self) -> bool:
        """Whether somebody is."""
        return bool(self._tasks)

    def close(self, *, reset: bool = False) -> None:
        """Stop listening; with `reset` the connections end too."""
        self._acceptor.close()
        if reset:
            for task in list(self._tasks):
                task.cancel()

    def _begin(self, client: socket.socket) -> None:
        task = self._loop.create_task(self._serve(client), name=f"port {self._port}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if len(self._tasks) >= _MOST:
            self._acceptor.pause()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a relayed connection failed", exc_info=error)
        self._acceptor.resume()

    async def _serve(self, client: socket.socket) -> None:
        sink = _Sink()
        stream: Stream | None = None
        whole = False
        try:
            stream = await (await self._channel()).connect_to(self._addresses, self._port, sink)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._there(client, stream, sink))
                both.create_task(self._back(client, stream, sink))
            whole = True
        except* (VmgrError, OSError, _Broken):
            pass  # whichever end broke, the other is told by a reset
        finally:
            if stream is not None:
                stream.close()
            if not whole:
                with contextlib.suppress(OSError):
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()

    async def _there(self, client: socket.socket, stream: Stream, sink: _Sink) -> None:
        """From the client to the machine, to its end."""
        while True:
            while not sink.over and not (room := min(stream.stdin_room, MAX_DATA)):
                sink.room.clear()
                await sink.room.wait()
            if sink.over:
                return
            data = await self._loop.sock_recv(client, room)
            if not data:
                stream.close_stdin()
                return
            await stream.send_stdin(data)

    async def _back(self, client: socket.socket, stream: Stream, sink: _Sink) -> None:
        """From the machine to the client; gives up the way there when the stream is over."""
        taken = granted = 0
        told = False
        while True:
            while sink.arrived:
                data = sink.arrived.popleft()
                await self._loop.sock_sendall(client, data)
                taken += len(data)
                if taken + OUTPUT_WINDOW // 2 > granted:
                    granted = taken + OUTPUT_WINDOW
                    stream.grant(STDOUT, taken, granted)
            if sink.ended and not told:
                told = True
                with contextlib.suppress(OSError):  # it has gone already
                    client.shutdown(socket.SHUT_WR)
            if sink.over is True:
                return
            if sink.over:
                raise _Broken
            sink.news.clear()
            await sink.news.wait()


class _Broken(Exception):  # noqa: N818 (not an error: the machine's end was reset)
    pass


class _Session:
    """One client of a UDP port."""

    def __init__(self, task: asyncio.Task[None], now: float) -> None:
        self.task = task
        self.used = now
        self.waiting: asyncio.Queue[bytes] = asyncio.Queue(64)


class DatagramRelay:
    """One bound UDP socket; each of its clients has a stream of its own. Arguments as above."""

    def __init__(
        self,
        sock: socket.socket,
        channel: Callable[[], Awaitable[AgentChannel]],
        addresses: Sequence[bytes],
        port: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._channel = channel
        self._addresses = addresses
        self._port = port
        self._sessions: dict[Any, _Session] = {}
        sock.settimeout(0)
        self._loop.add_reader(sock, self._from_clients)

    @property
    def connected(self) -> bool:
        """Whether somebody is."""
        return bool(self._sessions)

    def close(self, *, reset: bool = False) -> None:
        """End it, sessions too: a datagram promises nothing."""
        del reset
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        for session in list(self._sessions.values()):
            session.task.cancel()

    def _from_clients(self) -> None:
        for _ in range(64):
            try:
                data, client = self._sock.recvfrom(_LARGEST)
            except OSError:
                return
            session = self._sessions.get(client)
            if session is None:
                if len(self._sessions) >= _SESSIONS:
                    quietest = min(self._sessions, key=lambda one: self._sessions[one].used)
                    self._sessions.pop(quietest).task.cancel()
                task = self._loop.create_task(self._serve(client), name=f"port {self._port}/udp")
                session = self._sessions[client] = _Session(task, self._loop.time())
            session.used = self._loop.time()
            with contextlib.suppress(asyncio.QueueFull):  # datagrams get lost
                session.waiting.put_nowait(data)

    async def _serve(self, client: Any) -> None:
        sink = _Sink()
        stream: Stream | None = None
        session = self._sessions[client]
        try:
            stream = await (await self._channel()).connect_to(
                self._addresses, self._port, sink, datagrams=True
            )
            back = self._loop.create_task(self._back(client, stream, sink, session))
            try:
                while not sink.over:
                    try:
                        async with asyncio.timeout(_QUIET):
                            data = await session.waiting.get()
                    except TimeoutError:
                        if self._loop.time() - session.used >= _QUIET:
                            return
                        continue
                    if stream.stdin_room >= len(data) + 2:
                        await stream.send_stdin(struct.pack("<H", len(data)) + data)
            finally:
                back.cancel()
        except VmgrError:
            return  # nobody is there: the next datagram tries again
        finally:
            if stream is not None:
                stream.close()
            if self._sessions.get(client) is session:
                del self._sessions[client]

    async def _back(self, client: Any, stream: Stream, sink: _Sink, session: _Session) -> None:
        buffered = bytearray()
        taken = granted = 0
        while not sink.over:
            while sink.arrived:
                data = sink.arrived.popleft()
                buffered += data
                taken += len(data)
                if taken + OUTPUT_WINDOW // 2 > granted:
                    granted = taken + OUTPUT_WINDOW
                    stream.grant(STDOUT, taken, granted)
            while len(buffered) >= 2:  # noqa: PLR2004 (its length)
                end = 2 + int.from_bytes(buffered[:2], "little")
                if len(buffered) < end:
                    break
                with contextlib.suppress(OSError):
                    self._sock.sendto(bytes(buffered[2:end]), client)
                del buffered[:end]
                session.used = self._loop.time()
            sink.news.clear()
            await sink.news.wait()
        session.waiting.put_nowait(b"") if session.waiting.empty() else None
