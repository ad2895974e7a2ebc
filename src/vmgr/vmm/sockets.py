"""The VMM's sockets: we bind and listen, it gets the listening fds.

So the sockets are there before the VMM is, a connection made at once is simply served once it is
up, and there is nothing to poll for. They have names, so that another helper can connect after this
one has died.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmgr.errors import ResourceError, StateError
from vmgr.paths import ensure_private_directory
from vmgr.vmm.commandline import SocketFds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmgr.paths import MachinePaths

__all__ = ["Listeners", "listening"]


@dataclass(frozen=True)
class Listeners:
    """Three bound sockets that listen."""

    qmp: socket.socket
    agent: socket.socket
    console: socket.socket

    @property
    def fds(self) -> SocketFds:
        """Their numbers, as the VMM's command line names them."""
        return SocketFds(self.qmp.fileno(), self.agent.fileno(), self.console.fileno())


@contextlib.contextmanager
def listening(paths: MachinePaths) -> Iterator[Listeners]:
    """Make the sockets of a machine in its 0700 directory; they are ours to close, not to unlink.

    Raises:
        StateError: the directory cannot be used.
        ResourceError: a socket cannot be made.
    """
    ensure_private_directory(paths.runtime)
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(_listener(path))
            for path in (paths.qmp_socket, paths.agent_socket, paths.console_socket)
        ]
        yield Listeners(*made)


def _listener(path: Path) -> socket.socket:
    # Of a VMM that has ended: nothing listens there, since the caller runs one VMM for a machine.
    path.unlink(missing_ok=True)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ResourceError(
            f"cannot make a socket: {error.strerror}",
            next_step="raise the limit of open files (ulimit -n)",
        ) from error
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise StateError(
            f"cannot make the socket {path}: {error.strerror or error}",
            next_step="check that its directory is writable and the disk is not full",
        ) from error
    return listener
