"""Entering the namespaces that the holder keeps, and what they are set to."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

__all__ = ["INTERFACE_PREFIX", "enter", "prepare"]

_CLONE_NEWUSER: Final = 0x10000000  # linux/sched.h
_CLONE_NEWNET: Final = 0x40000000
INTERFACE_PREFIX: Final = "vm"

_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # Thousands of connections to one port of a machine: waiting ones cost milliseconds each.
    "net/ipv4/tcp_tw_reuse": "1",
    "net/ipv4/ip_local_port_range": "1024 65535",
    # A machine that claims to be elsewhere is not believed, and no router but us is.
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
    # Addresses that only we give: nobody to find duplicates with.
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv4/ip_unprivileged_port_start": "0",
}


def enter(pid: int) -> None:
    """Join the user and network namespace of process `pid`. This process must have one thread.

    Raises:
        OSError: the process is gone, or not ours.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Both are opened before the first is joined: afterwards /proc may be out of reach.
    opened = [
        (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind)
        for name, kind in (("user", _CLONE_NEWUSER), ("net", _CLONE_NEWNET))
    ]
    try:
        for fd, kind in opened:
            if libc.setns(fd, kind) != 0:
                code = ctypes.get_errno()
                raise OSError(code, f"cannot join the namespace: {os.strerror(code)}")
    finally:
        for fd, _ in opened:
            os.close(fd)


def prepare() -> list[str]:
    """Set the namespace's sysctls; gives those that this kernel does not let us set."""
    refused = []
    for name, value in _SYSCTLS.items():
        try:
            Path("/proc/sys", name).write_text(value, encoding="ascii")
        except OSError:
            refused.append(name)
    return refused
