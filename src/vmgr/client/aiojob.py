"""A command's streams for asyncio: the twin of `vmgr.client.job`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from vmgr.api import streams as s
from vmgr.client.job import Completed
from vmgr.client.jobstream import Output
from vmgr.client.websocket import Stream
from vmgr.errors import HelperUnavailableError, ResourceError

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from vmgr.client.core import Notes
    from vmgr.client.jobstream import JobEvent, JobStream

__all__ = ["AsyncJob"]

_READ_SIZE: Final = 65_536
_ATTEMPTS: Final = 3


class AsyncJob:
    """One command and its streams; see `vmgr.client.job.Job`.

    Made by `AsyncClient`. One task reads its events; others may write through `stream` and `flush`.
    """

    def __init__(
        self,
        stream: JobStream,
        connect: Callable[[], Awaitable[socket.socket]],
        on_notes: Callable[[Notes], None],
    ) -> None:
        self.stream = stream
        self._connect = connect
        self._on_notes = on_notes
        self._attempts = 0
        self._socket: socket.socket | None = None
        self._sending = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def open(self, operation: str, path: dict[str, object]) -> None:
        """Connect to the operation that starts the command, or takes it up again."""
        self._opening = (operation, path)
        self._channel = Stream(operation, path)
        self._socket = await self._connect()
        self.stream.connected()
        await self.flush()

    async def flush(self) -> None:
        """Send all that `stream` has to say."""
        async with self._sending:  # bytes of two messages must not mix
            if self._socket is None:  # a lost helper is being replaced: what is said then is kept
                return
            if self._channel.opened:
                for message in self.stream.take_outgoing():
                    self._channel.send(message)
            data = self._channel.take_outgoing()
            if data:
                # When it is gone, what it said before is still to be read.
                with contextlib.suppress(OSError):
                    await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def wait_events(self) -> list[JobEvent]:
        """Wait for something to happen; a lost helper is replaced on the way.

        Raises:
            VmgrError: the command could not be started, or its machine failed.
        """
        assert self._socket is not None  # noqa: S101 (an open job has one)
        await self.flush()
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, _READ_SIZE)
        except ConnectionError:
            data = b""
        opened = self._channel.opened
        try:
            messages = self._channel.receive(data)
        except HelperUnavailableError:
            # A helper that was stopping took the connection but not the upgrade, before which
            # nothing is asked of it: the next one can be asked the same.
            if data:
                raise
            messages = []
        if self._channel.opened and not opened:
            self._on_notes(self._channel.notes)
        events = [event for message in messages for event in self.stream.receive(message)]
        if self.stream.started:
            self._attempts = 0
        if self._channel.closed and self.stream.exit is None:
            await self._reconnect(again=not self._channel.opened)
        await self.flush()
        return events

    async def communicate(self, stdin: bytes = b"", *, limit: int = 64 * 1024**2) -> Completed:
        """Give the command `stdin` and collect its output until it ends.

        Args:
            stdin: all its input.
            limit: the most bytes of output that are kept.

        Raises:
            ResourceError: it said more than `limit`; it has been hung up.
            VmgrError: it could not be started, or its machine failed.
        """
        unwritten = memoryview(stdin)
        outputs = {s.STDOUT: bytearray(), s.STDERR: bytearray()}
        try:
            while self.stream.exit is None:
                room = self.stream.input_room
                if unwritten and room:
                    self.stream.write(bytes(unwritten[:room]))
                    unwritten = unwritten[room:]
                if not unwritten and room:
                    self.stream.end_input()
                for event in await self.wait_events():
                    if isinstance(event, Output):
                        outputs[event.flow] += event.data
                        if sum(map(len, outputs.values())) > limit:
                            raise ResourceError(f"the command said more than {limit} bytes")
                        self.stream.taken(event.flow, len(event.data))
        finally:
            self.close()
        return Completed(
            exit=self.stream.exit,
            stdout=bytes(outputs[s.STDOUT]),
            stderr=bytes(outputs[s.STDERR]),
        )

    def close(self) -> None:
        """Close the connection: after the exit a receipt, before it the command is hung up."""
        if self._socket is None:
            return
        self._channel.close()
        with contextlib.suppress(OSError):  # it closed first, or takes no more now
            self._socket.send(self._channel.take_outgoing())
        self._socket.close()
        self._socket = None

    async def _reconnect(self, *, again: bool) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if not again:
            self.stream.disconnected()
            self._opening = ("attach", {"machine": self.stream.machine, "job": self.stream.job})
        self._attempts += 1
        if self._attempts > _ATTEMPTS:
            raise HelperUnavailableError(
                "the helper ends again and again", next_step='see "vmgr helper logs"'
            )
        await self.open(*self._opening)
