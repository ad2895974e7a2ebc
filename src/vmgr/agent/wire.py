"""A non-blocking stream socket on the event loop, with bounded reads and a bounded queue.

asyncio's own transports queue without bound and copy what they join; this one sends the parts as
they are, gives callers room to wait for, and reads only so much per turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

__all__ = ["HIGH_WATER", "MAX_QUEUED", "Wire"]

HIGH_WATER: Final = 131_072
"""Bytes queued beyond which `room` waits: what a signal for one job may find before it."""
MAX_QUEUED: Final = 1_048_576
"""Bytes queued beyond which the other end counts as not reading."""
_READ_SIZE: Final = 131_072
_MAX_PARTS: Final = 64  # per sendmsg; far below Linux's UIO_MAXIOV of 1,024


class Wire:
    """Owns `sock`, from now until `close`.

    Args:
        sock: connected.
        on_data: called with each read's bytes, at most 128 KiB.
        on_end: called once, with the reason, when the other end is gone or does not read. Not after
            `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_data: Callable[[bytes], None],
        on_end: Callable[[str], None],
    ) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._on_data = on_data
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._writing = False
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False
        self.resume()

    @property
    def queued(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self._queued

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Read as bytes come."""
        if not self.closed:
            self._loop.add_reader(self._sock, self._read)

    def send(self, parts: Iterable[bytes]) -> None:
        """Send, or queue what the socket does not take."""
        if self.closed:
            return
        for part in parts:
            self._queue.append(memoryview(part))
            self._queued += len(part)
        if self._queue and not self._writing:
            self._write()
        if self._queued > MAX_QUEUED:
            self._fail("it does not read what is sent to it")

    async def room(self) -> None:
        """Wait until little is queued; returns at once when closed."""
        while self._queued > HIGH_WATER:
            self._room.clear()
            await self._room.wait()

    def close(self) -> None:
        """Close the socket and drop what is queued. Does nothing a second time."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._queue.clear()
        self._queued = 0
        self._room.set()

    def _fail(self, why: str) -> None:
        if not self.closed:
            self.close()
            self._on_end(why)

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(f"its connection broke ({error.strerror})")
            return
        if data:
            self._on_data(data)
        else:
            self._fail("the VMM closed the connection")

    def _write(self) -> None:
        """Send until the socket is full; one turn's work is bounded by its buffer."""
        while self._queue:
            try:
                sent = self._sock.sendmsg(list(islice(self._queue, _MAX_PARTS)))
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._fail(f"its connection broke ({error.strerror})")
                return
            self._queued -= sent
            while self._queue and sent >= len(self._queue[0]):
                sent -= len(self._queue.popleft())
            if sent:
                self._queue[0] = self._queue[0][sent:]
        if self._queued <= HIGH_WATER:
            self._room.set()
        if bool(self._queue) is not self._writing:
            self._writing = bool(self._queue)
            if self._writing:
                self._loop.add_writer(self._sock, self._write)
            else:
                self._loop.remove_writer(self._sock)
