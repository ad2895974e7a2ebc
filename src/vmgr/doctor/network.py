"""What the network needs of this host."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from typing import TYPE_CHECKING

from vmgr.artifact.tools import missing_tools
from vmgr.doctor.host import good, warning

if TYPE_CHECKING:
    from vmgr.api.models import Check
    from vmgr.doctor.host import Host

__all__ = ["egress", "switchboard"]

_LOST = "machines get no names, no addresses of their own and no internet"


async def switchboard(host: Host) -> Check:
    """Whether taps and rules can be had; `user namespaces` is a check of its own."""
    name = "network"
    loop = asyncio.get_running_loop()
    tun = host.dev / "net/tun"
    try:
        os.close(await loop.run_in_executor(host.executor, os.open, tun, os.O_RDWR))
    except FileNotFoundError:
        return warning(name, f"there is no {tun}, so {_LOST}", host.as_root("modprobe tun"))
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM}:
            return warning(name, f"{tun} does not work ({error.strerror}), so {_LOST}")
        rule = 'KERNEL=="tun", MODE="0666", OPTIONS+="static_node=net/tun"\n'
        return warning(
            name,
            f"{tun} may not be opened by {host.user}, so {_LOST}",
            host.write_as_root(rule, "/etc/udev/rules.d/60-vmgr-tun.rules", f"chmod 0666 {tun}"),
        )
    try:
        await loop.run_in_executor(host.executor, ctypes.CDLL, "libnftables.so.1")
    except OSError:
        return warning(
            name, f"libnftables is not installed, so {_LOST}",
            host.as_root("apt-get install nftables"),
        )  # fmt: skip
    return good(name, "taps and rules can be made")


async def egress(host: Host) -> Check:
    """Whether machines can reach the internet."""
    loop = asyncio.get_running_loop()
    if await loop.run_in_executor(host.executor, missing_tools, "slirp4netns"):
        return warning(
            "internet",
            "slirp4netns is not installed, so machines have no internet",
            host.as_root("apt-get install slirp4netns"),
        )
    return good("internet", "slirp4netns is installed")
