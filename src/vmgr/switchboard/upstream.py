"""Sockets of the host's network, for a process that lives in another.

Whoever starts the switchboard makes them: in its own network it could only make sockets of that.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["UpstreamSockets"]

_UPSTREAM: Final = 8  # sockets per family and kind: each has a port of its own


class UpstreamSockets:
    """Unconnected sockets, by family.

    Args:
        received: fds of sockets that another process has made; None: they are made here.
    """

    def __init__(self, received: Iterable[int] | None = None) -> None:
        self.datagram: dict[int, list[socket.socket]] = {}
        self.stream: dict[int, list[socket.socket]] = {}
        if received is not None:
            for fd in received:
                sock = socket.socket(fileno=fd)
                sock.settimeout(0)
                kind = self.datagram if sock.type == socket.SOCK_DGRAM else self.stream
                kind.setdefault(sock.family, []).append(sock)
            return
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):  # a host without IPv6
                self.datagram[family] = [
                    socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                    for _ in range(_UPSTREAM)
                ]
                self.stream[family] = [
                    socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                    for _ in range(_UPSTREAM)
                ]

    def fds(self) -> list[int]:
        """Of all of them."""
        return [sock.fileno() for sock in self._all()]

    def close(self) -> None:
        """Close them."""
        for sock in self._all():
            sock.close()

    def _all(self) -> list[socket.socket]:
        kinds = (self.datagram, self.stream)
        return [sock for kind in kinds for socks in kind.values() for sock in socks]
