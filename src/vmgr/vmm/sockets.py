"""The VMM's sockets: we bind and listen, it gets the listening fds.

So the sockets are there before the VMM is, a connection made at once is simply served once it is
up, and there is nothing to poll for. They have names, so that another helper can connect after this
one has died.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmgr.errors import ConflictError, ResourceError, StateError
from vmgr.paths import ensure_private_directory
from vmgr.vmm.commandline import SocketFds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmgr.paths import MachinePaths

__all__ = ["Listeners", "listening"]


@dataclass(frozen=True)
class Listeners:
    """Bound sockets that listen."""

    qmp: socket.socket
    agent: socket.socket
    console: socket.socket
    shares: tuple[socket.socket, ...] = ()

    @property
    def fds(self) -> SocketFds:
        """Their numbers, as the VMM's command line names them."""
        return SocketFds(
            self.qmp.fileno(), self.agent.fileno(), self.console.fileno(),
            tuple(share.fileno() for share in self.shares),
        )  # fmt: skip


@contextlib.contextmanager
def listening(paths: MachinePaths, share_ports: int = 0) -> Iterator[Listeners]:
    """Make the sockets of a machine in its 0700 directory; they are ours to close, not to unlink.

    Args:
        share_ports: how many of them are for shares.

    Raises:
        StateError: the directory cannot be used.
        ConflictError: a VMM of this machine still listens.
        ResourceError: a socket cannot be made.
    """
    ensure_private_directory(paths.runtime)
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(_listener(path))
            for path in (paths.qmp_socket, paths.agent_socket, paths.console_socket)
        ]
        shares = [
            stack.enter_context(_listener(paths.share_socket(slot))) for slot in range(share_ports)
        ]
        qmp, agent, console = made
        yield Listeners(qmp, agent, console, tuple(shares))


def _listener(path: Path) -> socket.socket:
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ResourceError(
            f"cannot make a socket: {error.strerror}",
            next_step="raise the limit of open files (ulimit -n)",
        ) from error
    try:
        _clear(path)
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise StateError(
            f"cannot make the socket {path}: {error.strerror or error}",
            next_step="check that its directory is writable and the disk is not full",
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Remove the socket of a VMM that has ended; one that runs would lose its only way in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        answer = probe.connect_ex(os.fspath(path))
    if answer in {0, errno.EAGAIN}:
        raise ConflictError(
            f"a VMM still listens at {path}",
            next_step="end it with: vmgr kill, or restart the helper, which finds it again",
        )
    path.unlink(missing_ok=True)
