"""The programs that can lead to the internet: slirp4netns and pasta, and how each is started.

Both make a tap in the holder's network namespace and speak for what comes out of it from sockets
of this computer's network. Neither leads to this computer's loopback or forwards names: the
switchboard does that, by its rules.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vmgr.network import confined

if TYPE_CHECKING:
    from vmgr.sandbox import Need

__all__ = ["GATEWAY4", "EgressProgram", "Invocation", "find_program"]

_INTERFACE: Final = "egress"  # these as vmgr.switchboard.firewall and .links have them
_NETWORK: Final = "198.19.255.0/24"
_ADDRESS4, _ADDRESS6 = "198.19.255.100", "fd00::100"
GATEWAY4, _GATEWAY6 = "198.19.255.2", "fd00::2"
_HAS_IPV6: Final = Path("/proc/net/if_inet6")

Name = Literal["slirp4netns", "pasta"]


@dataclass(frozen=True)
class Invocation:
    """How one is started."""

    argv: list[str]
    stdin: int | None = None
    stdout: int | None = None
    """None: nothing."""
    pass_fds: tuple[int, ...] = ()


@dataclass(frozen=True)
class EgressProgram:
    """One that is installed."""

    name: Name
    path: Path

    @property
    def ready(self) -> re.Pattern[str]:
        """What it says when it leads out; until then it says nothing there."""
        return re.compile("1" if self.name == "slirp4netns" else "[0-9]+")

    @property
    def whole(self) -> bytes:
        """What ends that: slirp4netns says no more than the one letter."""
        return b"1" if self.name == "slirp4netns" else b"\n"

    async def need(self) -> Need:
        """What it reads, with the directories that its own sandbox takes."""
        return await confined.egress_need(self.path)

    async def invocation(self, namespace: int, say: int, *, on_trial: bool = False) -> Invocation:
        """The command.

        Args:
            namespace: an fd of the network namespace. In a sandbox, a process number is nobody's.
            say: where it says that it is ready.
            on_trial: set up the interface too, and lead to this computer's 127.0.0.1 at the
                gateway's address.
        """
        # Whether it finds a way out over IPv6 shows when somebody connects.
        ipv6 = await asyncio.to_thread(_HAS_IPV6.exists)
        if self.name == "slirp4netns":
            return self._slirp4netns(namespace, say, ipv6=ipv6, on_trial=on_trial)
        return self._pasta(namespace, say, ipv6=ipv6 and not on_trial, on_trial=on_trial)

    def _slirp4netns(self, namespace: int, say: int, *, ipv6: bool, on_trial: bool) -> Invocation:
        return Invocation(
            [
                str(self.path), "--configure", "--mtu=65520", f"--cidr={_NETWORK}",
                *([] if on_trial else ["--disable-host-loopback"]), "--disable-dns",
                "--enable-seccomp", "--enable-sandbox", *(["--enable-ipv6"] if ipv6 else []),
                f"--ready-fd={say}", "--netns-type=path", f"/proc/self/fd/{namespace}", _INTERFACE,
            ],
            pass_fds=(say, namespace),
        )  # fmt: skip

    def _pasta(self, namespace: int, say: int, *, ipv6: bool, on_trial: bool) -> Invocation:
        # It closes all fds but the standard ones before it looks at what it was told.
        addresses = ["--address", _ADDRESS4, "--netmask", "24", "--gateway", GATEWAY4]
        addresses += ["--address", _ADDRESS6, "--gateway", _GATEWAY6] if ipv6 else ["--ipv4-only"]
        return Invocation(
            [
                str(self.path), "--foreground", "--quiet", "--netns", "/proc/self/fd/0",
                "--netns-only", "--no-netns-quit", "--ns-ifname", _INTERFACE,
                "--pid", "/proc/self/fd/1", *addresses, "--mtu", "65520",
                # Neither ports of this computer for machines nor the other way round: all others'.
                "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none",
                "--udp-ns", "none",
                "--dns", "none", "--no-dhcp", "--no-dhcpv6", "--no-ra",
                *(["--config-net"] if on_trial else ["--no-map-gw"]),
            ],
            stdin=namespace, stdout=say,
        )  # fmt: skip


async def find_program(name: Name) -> EgressProgram | None:
    """The program of that name, where it is installed."""
    path = await asyncio.to_thread(confined.which, name)
    return None if path is None else EgressProgram(name, path)
