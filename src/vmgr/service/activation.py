"""What systemd hands a service: listening sockets, a place to report to, a watchdog's interval.

The protocols are sd_listen_fds(3) and sd_notify(3), both a few lines that need no library: numbers
of fds in the environment, and datagrams to a unix socket. Read once, at the very beginning, and
taken out of the environment, so that no child answers in our place.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.errors import StateError
from vmgr.service.environment import SERVICE_MANAGER

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

__all__ = ["Activation", "Notifier", "listening_socket", "take_activation"]

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_MOST: Final = 64
_LONGEST: Final = 256


class Notifier:
    """Tells the service manager how we do. Quiet where there is none, and it never fails or waits.

    Args:
        address: what NOTIFY_SOCKET says; None: there is nobody to tell.
    """

    def __init__(self, address: str | None) -> None:
        self._address = None
        if address is not None and address[:1] in {"/", "@"} and len(address) > 1:
            # An address of the abstract name space begins with a zero byte.
            self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket: socket.socket | None = None

    @property
    def listened_to(self) -> bool:
        """Somebody is told."""
        return self._address is not None

    def ready(self) -> None:
        """We serve; those who are ordered after us may begin."""
        self._say("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._say(f"STATUS={text.splitlines()[0][:_LONGEST] if text else ''}")

    def stopping(self) -> None:
        """We have begun to stop, by ourselves or because we were asked to."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """The watchdog's ping."""
        self._say("WATCHDOG=1")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._address = None

    def _say(self, line: str) -> None:
        if self._address is None:
            return
        # A manager that is being replaced, or is too busy to read, is no reason to fail.
        with contextlib.suppress(OSError):
            if self._socket is None:
                made = socket.socket(
                    socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                )
                self._socket = made
            self._socket.sendto(line.encode(errors="replace"), self._address)


@dataclass(frozen=True)
class Activation:
    """How this process was started by a service manager, if it was."""

    fds: tuple[int, ...]
    """The sockets that were handed over."""
    notifier: Notifier
    watchdog: float | None
    """Seconds without a ping after which we are taken for hung; None: nobody watches."""

    @property
    def managed(self) -> bool:
        """A service manager started us, and will see us end."""
        return bool(self.fds) or self.notifier.listened_to


def take_activation(environ: MutableMapping[str, str], pid: int) -> Activation:
    """Read what is meant for process `pid`, and take all of it out of the environment."""
    told = {name: environ.pop(name) for name in SERVICE_MANAGER if name in environ}
    count = _number(told.get("LISTEN_FDS")) or 0
    ours = _number(told.get("LISTEN_PID")) == pid
    usec = _number(told.get("WATCHDOG_USEC"))
    watched = told.get("WATCHDOG_PID")
    if watched is not None and _number(watched) != pid:
        usec = None
    return Activation(
        fds=tuple(range(_FIRST, _FIRST + min(count, _MOST))) if ours else (),
        notifier=Notifier(told.get("NOTIFY_SOCKET")),
        watchdog=usec / 1e6 if usec else None,
    )


def listening_socket(activation: Activation, path: Path) -> socket.socket | None:
    """The socket at `path` that systemd listens on for us; None when it handed over nothing.

    Raises:
        StateError: what was handed over is something else.
    """
    if not activation.fds:
        return None
    wrong = StateError(
        f"the service manager did not hand over a socket that listens on {path}",
        next_step="write the units anew with: vmgr helper install",
    )
    if len(activation.fds) != 1:
        raise wrong
    os.set_inheritable(activation.fds[0], False)  # noqa: FBT003 (the call takes no keyword)
    try:
        handed = socket.socket(fileno=activation.fds[0])
    except OSError:
        raise wrong from None
    if not _listens_on(handed, path):
        handed.close()
        raise wrong
    handed.settimeout(0)
    return handed


def _listens_on(handed: socket.socket, path: Path) -> bool:
    if (handed.family, handed.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        return False
    if not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    name = handed.getsockname()
    return isinstance(name, str) and os.path.realpath(name) == os.path.realpath(path)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
