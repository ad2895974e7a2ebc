"""`host.vmgr.internal` for TCP: ports of this computer's loopback, for machines that have them.

The rules let a machine's connection through to a listener here. It goes on from a socket of the
host's network. Those cannot be made from inside the namespace, so the helper sends a stock of them;
one whose connection has ended is disconnected (connect(2), AF_UNSPEC) and used again, so it works
while there is no helper. More connections at once than there are sockets are reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from vmgr.switchboard.forwarder import Connection
from vmgr.switchboard.links import HOST4, HOST6
from vmgr.switchboard.resolver import disconnect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmgr.switchboard.messages import Plug

__all__ = ["HostAccess"]

_STOCK: Final = 256
_EACH: Final = 64  # of one address; a machine has two, and there are 256 in all
_ACCEPTS: Final = 16
_CLOSED: Final = 7  # TCP_CLOSE, linux/tcp.h
_DRAIN_AGAIN: Final = 0.5
_DRAIN_ROUNDS: Final = 120
_NO_LINGER: Final = struct.pack("ii", 0, 0)

log = logging.getLogger(__name__)


class HostAccess:
    """Listeners for all ports that any machine was given.

    Args:
        addresses: where machines find the host.
        live: connections of all forwarders.
    """

    def __init__(
        self,
        live: set[Connection],
        addresses: tuple[str, ...] = (HOST4, HOST6),
        target: str = "127.0.0.1",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._free: list[socket.socket] = []
        self._stocked = 0
        self._live = live
        self._addresses = addresses
        self._target = target
        self._listeners: dict[int, list[socket.socket]] = {}
        self._permitted: Mapping[str, frozenset[int]] = {}
        self._open: dict[Connection, tuple[str, int]] = {}

    def stock(self, socks: list[socket.socket]) -> None:
        """Sockets of the host's network (TCP, IPv4), unconnected; they stay the caller's."""
        # Each helper sends some; one stock is enough.
        for given in socks[: max(0, _STOCK - self._stocked)]:
            sock = socket.socket(fileno=os.dup(given.fileno()))
            sock.settimeout(0)
            self._free.append(sock)
            self._stocked += 1

    def permit(self, plugs: list[Plug]) -> None:
        """These machines there are; connections that are no longer permitted end.

        Raises:
            OSError: a port cannot be listened on.
        """
        self._permitted = {
            address: frozenset(plug.host_ports)
            for plug in plugs
            for address in (plug.address4, plug.address6)
        }
        for connection, (client, port) in list(self._open.items()):
            if port not in self._permitted.get(client, ()):
                connection.abort()
        wanted = {port for plug in plugs for port in plug.host_ports}
        for port in self._listeners.keys() - wanted:
            self._close(port)
        for port in wanted - self._listeners.keys():
            self._listen(port)

    def close(self) -> None:
        """End all."""
        for port in list(self._listeners):
            self._close(port)
        for connection in list(self._open):
            connection.abort()

    def _listen(self, port: int) -> None:
        listeners = self._listeners[port] = []
        for address in self._addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            listeners.append(listener)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, port))
                listener.listen(128)
            except OSError:
                self._close(port)
                raise
            self._loop.add_reader(listener, self._accept, listener, port)

    def _close(self, port: int) -> None:
        for listener in self._listeners.pop(port):
            self._loop.remove_reader(listener)
            listener.close()

    def _accept(self, listener: socket.socket, port: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                client, address = listener.accept()
            except BlockingIOError:
                return
            except OSError:
                continue
            of_it = sum(1 for at, _ in self._open.values() if at == address[0])
            if port not in self._permitted.get(address[0], ()) or of_it >= _EACH or not self._free:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                continue
            client.settimeout(0)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._begin(client, address[0], port)

    def _begin(self, client: socket.socket, address: str, port: int) -> None:
        kept = self._free.pop()
        # The connection closes a copy; the socket itself stays ours.
        used = kept.dup()
        used.settimeout(0)
        used.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ended(connection: Connection) -> None:
            self._live.discard(connection)
            self._open.pop(connection, None)
            self._take_back(kept)

        connection = Connection(self._loop, client, used, ended)
        self._live.add(connection)
        self._open[connection] = (address, port)
        connection.connect((self._target, port))

    def _take_back(self, sock: socket.socket, rounds: int = 0) -> None:
        """Use a socket again once what was written to it has arrived, or nobody takes it."""
        linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        aborted = struct.unpack("ii", linger)[0] != 0
        if not aborted and rounds < _DRAIN_ROUNDS and _state(sock) != _CLOSED:
            self._loop.call_later(_DRAIN_AGAIN, self._take_back, sock, rounds + 1)
            return
        disconnect(sock)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._free.append(sock)


def _state(sock: socket.socket) -> int:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]
    except OSError as error:
        if error.errno in {errno.ENOTCONN, errno.EINVAL}:
            return _CLOSED
        raise
