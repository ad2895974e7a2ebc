"""What a sandboxed process needs of this host. All that is not named here it does not get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Need"]


@dataclass(frozen=True)
class Need:
    """Files, devices and the network of one process. fds that it is handed work anyway.

    Paths are absolute; each is seen under the same name as outside. A directory is seen with all
    that is in it.
    """

    read_only: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    """Device nodes, such as /dev/kvm."""
    network: bool = False
    """The host's network; without it there is not even a loopback of the host."""
    own_proc: bool = False
    """A /proc of its own namespace, with nobody but itself in it: to open what it holds an fd of by
    a name, /proc/self/fd/N."""

    def __add__(self, other: Need) -> Need:
        """What both need."""
        return Need(
            self.read_only + other.read_only,
            self.writable + other.writable,
            self.devices + other.devices,
            self.network or other.network,
            self.own_proc or other.own_proc,
        )
