"""This computer's own addresses, as they are and whenever they change (rtnetlink(7))."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AddressWatch", "host_addresses", "host_addresses6", "own_addresses"]

_NETLINK_ROUTE: Final = 0
_GROUPS: Final = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, linux/rtnetlink.h
_SETTLED: Final = 0.2  # seconds: addresses come in groups


class AddressWatch:
    """Tells of a change once it has settled.

    Args:
        on_change: called with all addresses.

    Raises:
        OSError: this kernel does not tell.
    """

    def __init__(self, on_change: Callable[[list[str]], None]) -> None:
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._known = own_addresses()
        self._timer: asyncio.TimerHandle | None = None
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE
        )
        try:
            self._sock.bind((0, _GROUPS))
        except OSError:
            self._sock.close()
            raise
        self._sock.settimeout(0)
        self._loop.add_reader(self._sock, self._read)

    def close(self) -> None:
        """End it."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> None:
        try:
            self._sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:  # some were lost: all the same to us
            pass
        if self._timer is None:
            self._timer = self._loop.call_later(_SETTLED, self._look)

    def _look(self) -> None:
        self._timer = None
        now = own_addresses()
        if now != self._known:
            self._known = now
            self._on_change(now)


def own_addresses() -> list[str]:
    """All that others than this computer may know it by."""
    return [*host_addresses(), *host_addresses6()]


def host_addresses(table: Path = Path("/proc/net/fib_trie")) -> list[str]:
    """This computer's own IPv4 addresses but those of its loopback, which nobody reaches anyway.

    The kernel's routing table lists each as a leaf, `|-- ADDRESS`, with `/32 host LOCAL` below it.
    """
    found: set[str] = set()
    address = ""
    try:
        text = table.read_text(encoding="ascii")  # procfs never blocks
    except OSError:
        return []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words == ["/32", "host", "LOCAL"] and not address.startswith("127."):
            found.add(str(ipaddress.IPv4Address(address)))
    return sorted(found)


def host_addresses6(table: Path = Path("/proc/net/if_inet6")) -> list[str]:
    """This computer's own IPv6 addresses but those of its loopback and of single links."""
    found: set[str] = set()
    try:
        lines = table.read_text(encoding="ascii").splitlines()  # procfs never blocks
    except OSError:
        return []
    for line in lines:
        address = ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))
        if not address.is_loopback and not address.is_link_local:
            found.add(str(address))
    return sorted(found)
