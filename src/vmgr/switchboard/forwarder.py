"""Forwarded TCP ports: what a client of this computer writes goes to a machine, and back.

Bytes are spliced from socket to pipe to socket and never enter this process. The ends are told each
other's: end of stream to end of stream (a half-closed connection stays open the other way), a reset
to a reset. Nothing is read that cannot be written: a reader that is slow holds its writer.

Callbacks rather than coroutines, since this is where time counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from vmgr.switchboard.acceptor import Acceptor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Forwarder"]

_PIPE: Final = 262_144  # bytes; smaller pipes cost more CPU, larger ones memory of the kernel
_SPLICE: Final = os.SPLICE_F_NONBLOCK if hasattr(os, "SPLICE_F_NONBLOCK") else 2  # fcntl.h
_SPLICE_MOVE: Final = 1
_TURNS: Final = 16  # splices in one direction per turn
_LIVE: Final = 16_384  # connections of all ports
_CONNECT_DEADLINE: Final = 20.0
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close() sends RST

_SPARE: Final = 16

_spare: list[tuple[int, int]] = []
"""Empty pipes for whoever has something to carry next: making one costs more than a splice."""


class Forwarder:
    """One listening socket and its connections.

    Args:
        listener: bound and listening, in the host's namespace.
        target: address and port in this namespace.
        live: the connections of all forwarders.
    """

    def __init__(
        self, listener: socket.socket, target: tuple[str, int], live: set[Connection]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._target = target
        self._live = live
        self._own: set[Connection] = set()
        self._family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        self._acceptor = Acceptor(listener, self._begin)

    @property
    def connected(self) -> bool:
        """Whether somebody is connected."""
        return bool(self._own)

    def close(self, *, reset: bool = False) -> None:
        """Stop listening; with `reset` the connections end too."""
        self._acceptor.close()
        if reset:
            for connection in list(self._own):
                connection.abort()

    def _begin(self, client: socket.socket) -> None:
        if len(self._live) >= _LIVE:
            _reset(client)
            return
        try:
            machine = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            _reset(client)
            return
        machine.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self._loop, client, machine, self._ended)
        self._live.add(connection)
        self._own.add(connection)
        connection.connect(self._target)

    def _ended(self, connection: Connection) -> None:
        self._live.discard(connection)
        self._own.discard(connection)


class Connection:
    """A client's socket and a machine's."""

    __slots__ = ("_client", "_deadline", "_loop", "_machine", "_on_end", "_ways")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.socket,
        machine: socket.socket,
        on_end: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._client = client
        self._machine = machine
        self._on_end = on_end
        self._ways: list[_Way] = []
        self._deadline: asyncio.TimerHandle | None = None

    def connect(self, target: tuple[str, int]) -> None:
        """Begin to connect to the machine."""
        code = self._machine.connect_ex(target)
        if code not in {0, errno.EINPROGRESS}:
            self.abort()
            return
        self._deadline = self._loop.call_later(_CONNECT_DEADLINE, self.abort)
        self._loop.add_writer(self._machine, self._connected)

    def _connected(self) -> None:
        self._loop.remove_writer(self._machine)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._machine.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort()
            return
        there, back = (
            _Way(self, self._loop, self._client, self._machine),
            _Way(self, self._loop, self._machine, self._client),
        )
        self._ways = [there, back]
        there.start()
        if self._ways:
            back.start()

    def done(self) -> None:
        """A direction has ended; with both the connection has."""
        if all(way.over for way in self._ways):
            self._close()

    def abort(self) -> None:
        """End it with a reset both ways."""
        for sock in (self._client, self._machine):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _close(self) -> None:
        if self._client.fileno() < 0:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        for sock in (self._client, self._machine):
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
        for way in self._ways:
            way.close()
        self._ways = []
        self._client.close()
        self._machine.close()
        self._on_end(self)


class _Way:
    """One direction.

    The pipe is made when there is something to carry, and goes when it is empty and nothing comes:
    thousands of idle connections hold none.
    """

    __slots__ = ("_connection", "_from", "_held", "_loop", "_pipe", "_reading", "_to", "over")

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        from_: socket.socket,
        to: socket.socket,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._from = from_
        self._to = to
        self._pipe: tuple[int, int] | None = None
        self._held = 0
        self._reading = False
        self.over = False

    def start(self) -> None:
        self._reading = True
        self._loop.add_reader(self._from, self._move)

    def close(self) -> None:
        if self._pipe is not None:
            if not self._held and len(_spare) < _SPARE:
                _spare.append(self._pipe)
            else:
                for fd in self._pipe:
                    os.close(fd)
            self._pipe = None

    def _move(self) -> None:
        try:
            self._carry()
        except BlockingIOError:
            pass
        except OSError:
            self._connection.abort()

    def _carry(self) -> None:
        """Move what can be moved, then wait for the end that holds us up."""
        for _ in range(_TURNS):
            if self._held:
                if not self._write():
                    return
                continue
            if self._pipe is None:
                try:
                    self._pipe = _pipe()
                except OSError as error:
                    if error.errno not in {errno.EMFILE, errno.ENFILE}:
                        raise
                    self._connection.abort()
                    return
            try:
                count = os.splice(
                    self._from.fileno(), self._pipe[1], _PIPE, flags=_SPLICE | _SPLICE_MOVE
                )
            except BlockingIOError:
                self.close()
                return
            if count == 0:
                self._end()
                return
            self._held = count

    def _write(self) -> bool:
        assert self._pipe is not None  # noqa: S101 (what is held is in it)
        try:
            self._held -= os.splice(
                self._pipe[0], self._to.fileno(), self._held, flags=_SPLICE | _SPLICE_MOVE
            )
        except BlockingIOError:
            if self._reading:
                self._reading = False
                self._loop.remove_reader(self._from)
                self._loop.add_writer(self._to, self._move)
            return False
        if not self._held and not self._reading:
            self._loop.remove_writer(self._to)
            self._reading = True
            self._loop.add_reader(self._from, self._move)
        return True

    def _end(self) -> None:
        """The sender has said all: say so, and go on listening to the other."""
        self._loop.remove_reader(self._from)
        self.close()
        self.over = True
        with contextlib.suppress(OSError):  # it has gone already
            self._to.shutdown(socket.SHUT_WR)
        self._connection.done()


def _pipe() -> tuple[int, int]:
    if _spare:
        return _spare.pop()
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with contextlib.suppress(OSError):  # the user's share of pipe memory is used up: a small one
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE)
    return ends


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
