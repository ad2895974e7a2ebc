"""Taking the connections of one listening socket.

Shared by what serves forwarded ports in the switchboard and what serves them through the agent.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Acceptor"]

_PER_TURN: Final = 64  # of the loop; then others are served
_BREATH: Final = 0.1  # seconds until it is tried again where this computer had no room
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Hands over each connection; those that are not taken wait in the socket's queue.

    Args:
        listener: bound and listening; closed by `close`.
        take: called with each client's socket, which does not block; must not raise.
    """

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._take = take
        self._accepting = False
        listener.settimeout(0)
        self.resume()

    def pause(self) -> None:
        """Take no more for now."""
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._listener)

    def resume(self) -> None:
        """Take those that wait and come; nothing happens when it does, or is closed."""
        if not self._accepting and self._listener.fileno() >= 0:
            self._accepting = True
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop listening; what was handed over goes on."""
        self.pause()
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_PER_TURN):
            if not self._accepting:  # `take` has had enough
                return
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self.pause()
                    self._loop.call_later(_BREATH, self.resume)
                    return
                continue  # it was reset before we took it
            client.settimeout(0)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._take(client)
