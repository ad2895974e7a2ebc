"""What a sandboxed process needs of this host. All that is not named here it does not get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NO_RIGHTS", "Need", "Rights"]


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
    empty: tuple[Path, ...] = ()
    """Directories that must be there, with nothing in them."""
    hidden: tuple[Path, ...] = ()
    """Directories within others that are seen empty, and cannot be written to."""

    def __add__(self, other: Need) -> Need:
        """What both need."""
        return Need(
            self.read_only + other.read_only,
            self.writable + other.writable,
            self.devices + other.devices,
            self.network or other.network,
            self.own_proc or other.own_proc,
            self.empty + other.empty,
            self.hidden + other.hidden,
        )


@dataclass(frozen=True)
class Rights:
    """What a sandboxed process is and may do. All of it counts in its user namespace alone."""

    user_namespace: bool = True
    """It gets one of its own; False: it was started in one that is not the host's already."""
    root: bool = False
    """It is user 0 there, for those who enter later; else the user's own number."""
    capabilities: tuple[str, ...] = ()


NO_RIGHTS: Final = Rights()
