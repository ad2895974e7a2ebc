"""A machine's way into the network: its VMM's end, and what its agent is told.

Without a switchboard (this host denies user namespaces or /dev/net/tun) QEMU's own network stands
in. Whatever fails here, the machine starts; its row says what it lacks.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from vmgr.agent import Network
from vmgr.errors import UnsupportedError, VmgrError
from vmgr.helper.policy import reach_of
from vmgr.helper.resolving import RESOLV_CONF, read_resolution
from vmgr.loopback import DOMAIN
from vmgr.network.addresses import GATEWAY4, GATEWAY6, identity_of
from vmgr.vmm import VmmNetwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmgr.agent import AgentChannel
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine

__all__ = ["Plugging"]

MTU: Final = 1_500  # slirp4netns loses throughput with larger ones
_USER_MODE_ADDRESS: Final = ipaddress.IPv4Address("10.0.2.15")
_USER_MODE_GATEWAY: Final = ipaddress.IPv4Address("10.0.2.2")
_USER_MODE_RESOLVER: Final = ipaddress.IPv4Address("10.0.2.3")

log = logging.getLogger(__name__)


class Plugging:
    """Plugs machines in."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    @contextlib.asynccontextmanager
    async def place(self, machine: Machine) -> AsyncIterator[VmmNetwork]:
        """What the machine's network device is plugged into, while its VMM is being started."""
        row = machine.row
        assert row.number is not None  # noqa: S101 (given when it was made or found)
        mac = identity_of(row.id, row.number).mac.hex(":")
        reach = reach_of(row)
        plugged = await self._helper.network.plug(row.id, row.name, row.number, reach)
        if plugged.interface is None and reach.needs_switchboard:
            raise UnsupportedError(
                f"machine {row.name} has an allow-list or host access, which only vmgr's own "
                f"network enforces, and that cannot be had: {plugged.problem}",
                next_step="see the exact fix with: vmgr doctor; or do without: "
                f"vmgr net set {row.name} --allow-any --host-access none",
            )
        problem = plugged.problem
        machine.egress_problem = self._helper.policies.egress_problem(row)
        user_mode: Any = None
        if plugged.interface is None and row.access != "none":
            user_mode = str((await self._helper.settings()).get("network.fallback"))
            if user_mode == "off":
                user_mode = None
            problem = _fallback_note(problem, user_mode)
        if problem is not None:
            self._helper.events.publish("machine.network", machine.name, problem=problem)
        await machine.save(
            interface=plugged.interface, fallback=user_mode is not None, network_problem=problem
        )
        try:
            yield VmmNetwork(mac=mac, tap_fd=plugged.fd, user_mode=user_mode)
        finally:
            if plugged.fd is not None:
                os.close(plugged.fd)

    async def tell(self, machine: Machine, channel: AgentChannel) -> None:
        """Have the agent configure the machine's device; a failure is noted."""
        await self.configure(machine, channel)
        await self.open_ports(machine)

    async def configure(self, machine: Machine, channel: AgentChannel) -> None:
        """The same, for a machine whose ports are open."""
        row = machine.row
        if row.number is None or (row.interface is None and not row.fallback):
            return
        identity = identity_of(row.id, row.number)
        _, domains = await self._helper.executors.in_files(read_resolution, RESOLV_CONF)
        search = list(domains)
        if row.fallback:
            asked = Network(
                mac=identity.mac,
                addresses=[_USER_MODE_ADDRESS.packed + b"\x18"],
                gateways=[_USER_MODE_GATEWAY.packed],
                mtu=MTU,
                resolvers=[_USER_MODE_RESOLVER.packed],
                search=search,
            )
        else:
            asked = Network(
                mac=identity.mac,
                addresses=[identity.address4.packed + b"\x20", identity.address6.packed + b"\x80"],
                gateways=[GATEWAY4.packed, GATEWAY6.packed],
                mtu=MTU,
                resolvers=[GATEWAY4.packed],
                search=[DOMAIN, *search],
            )
        try:
            await channel.network(asked)
        except VmgrError as error:
            log.warning("machine %s: its network: %s", machine.name, error)
            problem = f"the machine's own side is not set up: {error.message}"
            self._helper.events.publish("machine.network", machine.name, problem=problem)
            await machine.save(network_problem=problem)

    async def open_ports(self, machine: Machine) -> None:
        """Forward the machine's ports; a failure is told."""
        try:
            await self._helper.ports.open_all(machine)
        except VmgrError as error:
            log.warning("machine %s: its ports: %s", machine.name, error)

    async def readopt(self, machine: Machine) -> None:
        """A machine that another helper started keeps its place."""
        row = machine.row
        if row.number is not None and row.interface is not None:
            await self._helper.network.readopt(
                row.id, row.name, row.number, reach_of(row), row.interface
            )
        await self.open_ports(machine)


def _fallback_note(problem: str | None, user_mode: str | None) -> str:
    why = problem or "no network"
    if user_mode == "open":
        return (
            f"{why}; QEMU's own network is used, through which it reaches this computer's loopback"
        )
    if user_mode == "isolated":
        return f"{why}; it has no internet (vmgr config set network.fallback open gives it QEMU's)"
    return why
