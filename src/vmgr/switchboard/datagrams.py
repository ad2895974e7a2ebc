"""Forwarded UDP ports: each client of a port has a session, a socket of its own to the machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final

__all__ = ["DatagramForwarder"]

_SESSIONS: Final = 1_024  # per port; the one that was quiet longest makes room
_QUIET: Final = 60.0  # seconds without a datagram that end a session
_LARGEST: Final = 65_535
_TURNS: Final = 64


class DatagramForwarder:
    """One bound socket and its sessions.

    Args:
        sock: bound, in the host's namespace.
        target: address and port in this namespace.
    """

    def __init__(self, sock: socket.socket, target: tuple[str, int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._target = target
        self._family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        self._sessions: dict[Any, tuple[socket.socket, float]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        sock.settimeout(0)
        self._loop.add_reader(sock, self._from_clients)

    def close(self, *, reset: bool = False) -> None:
        """End it, sessions too: a datagram promises nothing."""
        del reset
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        for client in list(self._sessions):
            self._drop(client)
        if self._sweep is not None:
            self._sweep.cancel()

    def _from_clients(self) -> None:
        for _ in range(_TURNS):
            try:
                data, client = self._sock.recvfrom(_LARGEST)
            except OSError:
                return
            session = self._session(client)
            if session is not None:
                with contextlib.suppress(OSError):  # full, or nobody listens: datagrams get lost
                    session.send(data)

    def _session(self, client: Any) -> socket.socket | None:
        now = self._loop.time()
        # Taken out and put in again: the order is that of use.
        if (found := self._sessions.pop(client, None)) is not None:
            self._sessions[client] = (found[0], now)
            return found[0]
        if len(self._sessions) >= _SESSIONS:
            self._drop(next(iter(self._sessions)))
        try:
            sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            return None
        try:
            sock.connect(self._target)
        except OSError:
            sock.close()
            return None
        self._sessions[client] = (sock, now)
        self._loop.add_reader(sock, self._from_machine, client, sock)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_QUIET, self._end_quiet)
        return sock

    def _from_machine(self, client: Any, sock: socket.socket) -> None:
        for _ in range(_TURNS):
            try:
                data = sock.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:  # nobody listens there: the next datagram tries again
                return
            with contextlib.suppress(OSError):
                self._sock.sendto(data, client)
        self._session(client)

    def _end_quiet(self) -> None:
        self._sweep = None
        before = self._loop.time() - _QUIET
        for client, (_, used) in list(self._sessions.items()):
            if used <= before:
                self._drop(client)
        if self._sessions:
            self._sweep = self._loop.call_later(_QUIET, self._end_quiet)

    def _drop(self, client: Any) -> None:
        sock, _ = self._sessions.pop(client)
        self._loop.remove_reader(sock)
        sock.close()
