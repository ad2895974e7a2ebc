"""What the network needs of this host."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from vmgr.api.models import Check
from vmgr.artifact.tools import missing_tools
from vmgr.doctor.host import good, warning
from vmgr.loopback import DOMAIN, names_address

if TYPE_CHECKING:
    from vmgr.doctor.host import Host

__all__ = ["egress", "names", "switchboard"]

_OTHER = "vmgr config set network.egress auto"
_RESOLVED, _MANAGER = "systemd-resolved", "NetworkManager"
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
    name = "internet"
    loop = asyncio.get_running_loop()
    missing = await loop.run_in_executor(host.executor, missing_tools, "slirp4netns", "pasta")
    wanted = str(host.config.get("network.egress"))
    install = host.as_root("apt-get install slirp4netns")
    if host.egress is not None:
        program, why = host.egress
        if why is not None:
            return warning(name, f"{program} leads there: {why}", _OTHER)
        return good(name, f"{program} leads there")
    if "slirp4netns" not in missing:
        if wanted == "pasta" and "pasta" in missing:
            return warning(name, "slirp4netns leads there: pasta is not installed", _OTHER)
        used = wanted if wanted != "auto" else "slirp4netns"
        return good(name, f"{used} is installed")
    if "pasta" in missing or wanted == "slirp4netns":
        summary = "slirp4netns is not installed, so machines have no internet"
        return warning(name, summary, install)
    return good(name, "pasta is installed, and is used where it works")


async def names(host: Host) -> Check:
    """Whether this computer's resolver asks us for machines: a convenience, so never wrong."""
    name = "names"
    port = int(host.config.get("names.port"))
    if not port:
        return good(name, "not answered on this computer (names.port is 0)")
    loop = asyncio.get_running_loop()
    at = names_address(host.uid)
    if (other := await loop.run_in_executor(host.executor, _whose, host, at, port)) is not None:
        return warning(
            name,
            f"{at}:{port}, where names of machines are answered, is taken by {host.name_of(other)}",
            f"vmgr config set names.port {port + 1} && vmgr helper restart",
        )
    kind, there = await loop.run_in_executor(host.executor, _resolver, host, at, port)
    if kind is None:
        summary = "no resolver here can be told of one domain; vmgr ip NAME shows addresses"
        return good(name, summary)
    if there:
        return good(name, f"NAME.{DOMAIN} resolves on this computer, through {kind}")
    return Check(
        name=name,
        status="ok",
        summary=f"to have NAME.{DOMAIN} resolve on this computer, tell {kind}",
        fix=_plug(host, kind, at, port),
    )


def _whose(host: Host, at: str, port: int) -> int | None:
    """The other user who holds an address for datagrams; None: nobody, or we do."""
    # sl, local address (as the bytes lie in memory), remote one, ..., uid: proc_net(5).
    wanted = f"{struct.unpack('=I', socket.inet_aton(at))[0]:08X}:{port:04X}"
    try:
        lines = (host.proc / "net/udp").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    held = {int(words[7]) for words in map(str.split, lines) if words[1:2] == [wanted]}
    return next(iter(held - {host.uid}), None)


def _resolver(host: Host, at: str, port: int) -> tuple[str | None, bool]:
    """Who resolves names here and takes one domain from us, and whether it does."""
    try:
        with (host.etc / "resolv.conf").open(encoding="utf-8", errors="replace") as file:
            servers = file.read(65_536)
    except OSError:
        servers = ""
    if "127.0.0.53" in servers or "127.0.0.54" in servers:
        kind, file_name, said = _RESOLVED, "systemd/resolved.conf.d/vmgr.conf", f"{at}:{port}"
    elif (host.etc / "NetworkManager").is_dir():
        kind, file_name, said = _MANAGER, "NetworkManager/dnsmasq.d/vmgr.conf", f"{at}#{port}"
    else:
        return None, False
    try:
        text = (host.etc / file_name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return kind, False
    return kind, said in text


def _plug(host: Host, kind: str, at: str, port: int) -> str:
    if kind == _RESOLVED:
        text = f"[Resolve]\nDNS={at}:{port}\nDomains=~{DOMAIN}\nDNSSEC=allow-downgrade\n"
        made = host.as_root("mkdir -p /etc/systemd/resolved.conf.d")
        wrote = host.write_as_root(
            text, "/etc/systemd/resolved.conf.d/vmgr.conf", "systemctl restart systemd-resolved"
        )
        return f"{made} && {wrote}"
    wrote = host.write_as_root("[main]\ndns=dnsmasq\n", "/etc/NetworkManager/conf.d/vmgr.conf")
    told = host.write_as_root(
        f"server=/{DOMAIN}/{at}#{port}\n",
        "/etc/NetworkManager/dnsmasq.d/vmgr.conf",
        "systemctl restart NetworkManager",
    )
    return f"{wrote} && {told}"
