"""The machines' ends: a tap each, with an address of the gateway and one route to the machine.

There is no bridge. Each machine is alone on its link, and all it sends is routed: machines cannot
forge what they cannot reach (each other's ARP, neighbour discovery, hardware addresses), and one
table of rules sees every packet (docs/decisions/0006-network.md).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Final

from pyroute2 import AsyncIPRoute

from vmgr.switchboard.namespace import INTERFACE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["GATEWAY4", "GATEWAY6", "HOST4", "HOST6", "Links"]

GATEWAY4: Final = "198.19.0.1"
GATEWAY6: Final = "fd76:6d67:7200::1"
LINK_GATEWAY6: Final = "fe80::1"
GATEWAY_MAC: Final = "02:76:6d:67:72:01"
HOST4: Final = "198.19.0.2"
HOST6: Final = "fd76:6d67:7200::2"
"""What stands for this computer's loopback, where a machine may reach some of it."""

_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_SCOPE_LINK: Final = 253
_AF_INET6: Final = 10
_IFA_F_NODAD: Final = 0x02  # linux/if_addr.h
_EGRESS4: Final = "198.19.255.100"
_EGRESS6: Final = "fd00::100"
_EGRESS_GATEWAY4: Final = "198.19.255.2"
_EGRESS_MTU: Final = 65_520
_EGRESS_GATEWAY6: Final = "fd00::2"  # of slirp4netns, unchangeable


class Links:
    """Taps by name. One at a time: callers hold a lock."""

    def __init__(self) -> None:
        self._netlink = asyncio.new_event_loop()
        self._count = 0

    async def open(self) -> None:
        """Bring loopback up, with the gateway's addresses and the host's."""
        threading.Thread(target=self._netlink.run_forever, name="netlink", daemon=True).start()
        await self._there(self._open())

    async def _there(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something on the loop of netlink.

        pyroute2 makes transports of netlink sockets, which asyncio's own loop has and the quick one
        of this process has not.
        """
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._netlink))

    async def _open(self) -> None:
        self._ip = AsyncIPRoute()
        (lo,) = await self._ip.link_lookup(ifname="lo")
        await self._ip.link("set", index=lo, state="up")
        for address, length in ((GATEWAY4, 32), (GATEWAY6, 128), (HOST4, 32), (HOST6, 128)):
            # An earlier switchboard may have done it. Nobody else has them, and without that said
            # the IPv6 one cannot be bound to until the kernel's worker has come to it.
            nodad = {"flags": _IFA_F_NODAD} if ":" in address else {}
            await self._ip.addr("replace", index=lo, address=address, prefixlen=length, **nodad)

    async def close(self) -> None:
        """Let go of netlink."""
        await self._there(self._ip.close())
        self._netlink.call_soon_threadsafe(self._netlink.stop)

    def names(self) -> list[str]:
        """Taps that there are: those of an earlier switchboard too."""
        # Not from /sys, which shows the network in which it was mounted: the host's.
        names = [name for _, name in socket.if_nameindex()]
        return [name for name in names if name.startswith(INTERFACE_PREFIX)]

    def make(self, taken: set[str]) -> tuple[str, int]:
        """A new tap, down; its name and fd. It is gone when the last copy of the fd is closed.

        Offloads are in the packets' headers (VNET_HDR): without, throughput halves.

        Raises:
            OSError: /dev/net/tun cannot be used.
        """
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            while True:
                self._count += 1
                name = f"{INTERFACE_PREFIX}{self._count}"
                if name in taken:
                    continue
                flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
                try:
                    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
                except OSError as error:
                    if error.errno == 16:  # noqa: PLR2004 (EBUSY: of an earlier switchboard)
                        continue
                    raise
                return name, fd
        except BaseException:
            os.close(fd)
            raise

    async def raise_link(self, name: str, mac: bytes, address4: str, address6: str) -> None:
        """Let the machine behind a tap be reached; the rules about it stand already."""
        await self._there(self._raise_link(name, mac, address4, address6))

    async def _raise_link(self, name: str, mac: bytes, address4: str, address6: str) -> None:
        (index,) = await self._ip.link_lookup(ifname=name)
        ip = self._ip
        await ip.addr("replace", index=index, address=GATEWAY4, prefixlen=32)
        # One for all: a machine that comes back from a save knows its gateway by it.
        await ip.link("set", index=index, address=GATEWAY_MAC, state="up")
        await ip.addr("replace", index=index, address=LINK_GATEWAY6, prefixlen=64, family=_AF_INET6)
        await ip.route("replace", dst=f"{address4}/32", oif=index, scope=_SCOPE_LINK)
        await ip.route("replace", family=_AF_INET6, dst=f"{address6}/128", oif=index)
        # Known for good: no waiting for ARP, and nobody to be told otherwise by.
        lladdr = ":".join(f"{byte:02x}" for byte in mac)
        for address in (address4, address6):
            await ip.neigh("replace", dst=address, lladdr=lladdr, ifindex=index, state="permanent")

    async def lead_out(self, name: str) -> None:
        """Give the egress its addresses and routes: pasta configures none, slirp4netns IPv4's.

        Its router advertisements are not listened to: in here no router but us is believed.
        """
        await self._there(self._lead_out(name))

    async def _lead_out(self, name: str) -> None:
        found = await self._ip.link_lookup(ifname=name)
        if not found:
            return
        (index,) = found
        ip = self._ip
        await ip.link("set", index=index, mtu=_EGRESS_MTU, state="up")
        await ip.addr("replace", index=index, address=_EGRESS4, prefixlen=24)
        await ip.route("replace", dst="default", gateway=_EGRESS_GATEWAY4, oif=index)
        if socket.has_ipv6:
            await ip.addr("replace", index=index, address=_EGRESS6, prefixlen=64, family=_AF_INET6)
            await ip.route(
                "replace", family=_AF_INET6, dst="default", gateway=_EGRESS_GATEWAY6, oif=index
            )

    async def remove(self, name: str) -> None:
        """Remove a tap whose machine may still hold its end."""
        await self._there(self._remove(name))

    async def _remove(self, name: str) -> None:
        found = await self._ip.link_lookup(ifname=name)
        for index in found:
            await self._ip.link("del", index=index)
