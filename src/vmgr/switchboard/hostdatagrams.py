"""`host.vmgr.internal` for UDP: ports of this computer's loopback, for machines that have them.

As with TCP (`hostaccess`), the sockets that lead there are of the host's network and come from the
helper, a stock of them that is used again and again. Each port of a machine that sends to one of
this computer's has a session, one of those sockets connected to it, until it is quiet for long or
its socket is needed: a machine that has too many loses the one that was quiet longest, and where no
socket is left the machine with the most gives one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmgr.switchboard.links import HOST4, HOST6
from vmgr.switchboard.resolver import disconnect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmgr.switchboard.messages import Plug

__all__ = ["HostDatagrams"]

_STOCK: Final = 128
_EACH: Final = 32  # sessions of one address; a machine has two
_QUIET: Final = 60.0  # seconds without a datagram that end a session
_LARGEST: Final = 65_535
_TURNS: Final = 64


@dataclass
class _Session:
    """What one port of a machine says to one of this computer's."""

    listener: socket.socket
    client: Any
    """Its address as the socket has it."""
    port: int
    sock: socket.socket
    used: float

    @property
    def key(self) -> tuple[int, Any]:
        return (self.port, self.client)


class HostDatagrams:
    """Listeners for all UDP ports that any machine was given.

    Args:
        addresses: where machines find the host.
    """

    def __init__(
        self,
        addresses: tuple[str, ...] = (HOST4, HOST6),
        target: str = "127.0.0.1",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._addresses = addresses
        self._target = target
        self._free: list[socket.socket] = []
        self._stocked = 0
        self._listeners: dict[int, list[socket.socket]] = {}
        self._permitted: Mapping[str, frozenset[int]] = {}
        # The order is that of use.
        self._sessions: dict[tuple[int, Any], _Session] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def stock(self, socks: list[socket.socket]) -> None:
        """Sockets of the host's network (UDP, IPv4), unconnected; they stay the caller's."""
        # Each helper sends some; one stock is enough.
        for given in socks[: max(0, _STOCK - self._stocked)]:
            sock = socket.socket(fileno=os.dup(given.fileno()))
            sock.settimeout(0)
            self._free.append(sock)
            self._stocked += 1

    def permit(self, plugs: list[Plug]) -> None:
        """These machines there are; sessions that are no longer permitted end.

        Raises:
            OSError: a port cannot be listened on.
        """
        self._permitted = {
            address: frozenset(plug.host_udp_ports)
            for plug in plugs
            for address in (plug.address4, plug.address6)
        }
        for session in list(self._sessions.values()):
            if session.port not in self._permitted.get(session.client[0], ()):
                self._end(session)
        wanted = {port for plug in plugs for port in plug.host_udp_ports}
        for port in self._listeners.keys() - wanted:
            self._close(port)
        for port in wanted - self._listeners.keys():
            self._listen(port)

    def close(self) -> None:
        """End all."""
        for session in list(self._sessions.values()):
            self._end(session)
        for port in list(self._listeners):
            self._close(port)
        for sock in self._free:
            sock.close()
        self._free.clear()
        if self._sweep is not None:
            self._sweep.cancel()

    def _listen(self, port: int) -> None:
        listeners = self._listeners[port] = []
        for address in self._addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            listeners.append(listener)
            try:
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, port))
            except OSError:
                self._close(port)
                raise
            self._loop.add_reader(listener, self._from_machines, listener, port)

    def _close(self, port: int) -> None:
        for listener in self._listeners.pop(port):
            self._loop.remove_reader(listener)
            listener.close()

    def _from_machines(self, listener: socket.socket, port: int) -> None:
        for _ in range(_TURNS):
            try:
                data, client = listener.recvfrom(_LARGEST)
            except OSError:
                return
            if port not in self._permitted.get(client[0], ()):
                continue
            session = self._session(listener, client, port)
            if session is not None:
                with contextlib.suppress(OSError):  # full, or nobody listens: datagrams get lost
                    session.sock.send(data)

    def _session(self, listener: socket.socket, client: Any, port: int) -> _Session | None:
        now = self._loop.time()
        # Taken out and put in again: the order is that of use.
        if (found := self._sessions.pop((port, client), None)) is not None:
            found.used = now
            self._sessions[found.key] = found
            return found
        self._make_room(client[0])
        if not self._free:
            return None
        sock = self._free.pop()
        try:
            sock.connect((self._target, port))
        except OSError:
            self._free.append(sock)
            return None
        session = _Session(listener, client, port, sock, now)
        self._sessions[session.key] = session
        self._loop.add_reader(sock, self._from_host, session)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_QUIET, self._end_quiet)
        return session

    def _make_room(self, address: str) -> None:
        """End a session where this address has too many, or none is left for it."""
        counts = Counter(session.client[0] for session in self._sessions.values())
        if counts[address] >= _EACH:
            most = address
        elif not self._free and counts:
            most = counts.most_common(1)[0][0]
        else:
            return
        self._end(next(s for s in self._sessions.values() if s.client[0] == most))

    def _from_host(self, session: _Session) -> None:
        for _ in range(_TURNS):
            try:
                data = session.sock.recv(_LARGEST)
            except OSError:  # none left, or nobody listens there: the next datagram tries again
                return
            with contextlib.suppress(OSError):
                session.listener.sendto(data, session.client)
            self._sessions.pop(session.key)
            session.used = self._loop.time()
            self._sessions[session.key] = session

    def _end_quiet(self) -> None:
        self._sweep = None
        before = self._loop.time() - _QUIET
        for session in list(self._sessions.values()):
            if session.used <= before:
                self._end(session)
        if self._sessions:
            self._sweep = self._loop.call_later(_QUIET, self._end_quiet)

    def _end(self, session: _Session) -> None:
        del self._sessions[session.key]
        self._loop.remove_reader(session.sock)
        disconnect(session.sock)
        # What came for this session is not for the next.
        with contextlib.suppress(OSError):
            while True:
                session.sock.recv(1)
        self._free.append(session.sock)
