"""Forwarded ports that were asked for.

The helper binds them, since it is in this computer's network, and has them served
(`vmgr.helper.serving`). What is asked is kept in the machine's
row and opened at each start. A port that another program has is an event and a note, no reason for
a machine not to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from vmgr.api.models import PortForward
from vmgr.errors import (
    ConflictError,
    NotFoundError,
    ResourceError,
    UsageError,
    VmgrError,
)
from vmgr.helper.automatic import Automatic, Key
from vmgr.helper.serving import AGENT, Serving, bound
from vmgr.network import identity_of
from vmgr.switchboard.messages import Forward

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine

__all__ = ["Ports", "check_ports"]

_ASLEEP: Final = "the machine is suspended; a connection lets it go on"
_MOST: Final = 256  # of one machine
# In the machine, for what is reached through its agent: its loopback, and QEMU's user-mode network.
_INSIDE: Final = tuple(
    ipaddress.ip_address(address).packed for address in ("127.0.0.1", "::1", "10.0.2.15")
)

log = logging.getLogger(__name__)


class Ports:
    """The ports of all machines."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._serving = Serving(helper.network)
        self.automatic = Automatic(helper, self._serving)
        self._private: dict[str, set[Key]] = {}
        """By machine: ports on whose 127.0.0.1 alone something listens."""

    async def list(self, machine: Machine) -> list[PortForward]:
        """A machine's ports, and whether each is served now."""
        served: set[Forward] = set()
        with contextlib.suppress(VmgrError):  # the switchboard went, and all it served with it
            served = await self._serving.served(machine)
        return [
            *(
                msgspec.structs.replace(
                    port,
                    open=self._forwards(machine, port)[0] in served,
                    problem=_ASLEEP if machine.status == "suspended" else None,
                )
                for port in machine.row.ports
            ),
            *machine.automatic,
        ]

    async def connected(self) -> set[str]:
        """The ids of machines that somebody is connected to by a port."""
        return await self._serving.connected()

    def explicit(self, machine: Machine) -> set[Forward]:
        """What is served, or would be, because it was asked for."""
        return {forward for port in machine.row.ports for forward in self._forwards(machine, port)}

    async def lead(self, machine: Machine, private: set[Key]) -> None:
        """Have the ports that were asked for lead to where something listens.

        Args:
            private: what is listened on so that only a program in the machine reaches it.
        """
        changed = private ^ self._private.get(machine.row.id, set())
        if machine.row.interface is None or not changed:
            return
        async with machine.lock:
            if machine.stopped.is_set():
                return
            ports = [p for p in machine.row.ports if (p.protocol, p.guest_port) in changed]
            for port in ports:
                for forward in self._forwards(machine, port):
                    await self._serving.unserve(forward)
            self._private[machine.row.id] = private
            for port in ports:
                try:
                    await self._open(machine, port, told=False)
                except VmgrError as error:
                    log.warning("machine %s: %s", machine.name, error)

    def ended(self, machine: Machine) -> None:
        """A machine has ended."""
        self.automatic.ended(machine)
        self._private.pop(machine.row.id, None)
        self._serving.ended(machine.row.id)

    def close(self) -> None:
        """The helper ends: what it serves itself does too."""
        self._serving.close()

    async def add(self, machine: Machine, port: PortForward) -> PortForward:
        """Forward a port, now if the machine runs, and at each start.

        Raises:
            ConflictError: it is forwarded already, or another program has the port.
            UsageError: the address is none of this computer.
        """
        port = PortForward(
            host_port=port.host_port, guest_port=port.guest_port, protocol=port.protocol,
            address=port.address,
        )  # fmt: skip
        check_ports([port])
        async with machine.lock:
            if len(machine.row.ports) >= _MOST:
                raise ResourceError(f"machine {machine.name} has {_MOST} forwarded ports already")
            for other in self._helper.machines.all():
                if any(_same(port, known) for known in other.row.ports):
                    raise ConflictError(
                        f"port {port.host_port} leads to machine {other.name} already",
                        next_step=f"see: vmgr port ls {other.name}",
                    )
            is_open = not machine.stopped.is_set()
            if is_open:
                await self._open(machine, port)
            try:
                await machine.save(ports=[*machine.row.ports, port])
            except BaseException:  # what is not written down is not there
                if is_open:
                    for forward in self._forwards(machine, port):
                        await asyncio.shield(self._serving.unserve(forward))
                raise
            self._helper.doorbell.follow(machine)
        self.automatic.again(machine)  # it need not appear under another number as well
        return msgspec.structs.replace(port, open=is_open)

    async def remove(self, machine: Machine, port: PortForward) -> None:
        """Stop forwarding; connections that are open go on.

        Raises:
            NotFoundError: it is not forwarded.
        """
        async with machine.lock:
            found = [known for known in machine.row.ports if _same(port, known)]
            if not found:
                raise NotFoundError(
                    f"machine {machine.name} has no forwarded port {port.host_port}",
                    next_step=f"see: vmgr port ls {machine.name}",
                )
            kept = [known for known in machine.row.ports if known not in found]
            await machine.save(ports=kept)
            for forward in self._forwards(machine, found[0]):
                if (held := self._helper.doorbell.take(_place(forward))) is not None:
                    held.close()
                await self._serving.unserve(forward)
        self.automatic.again(machine)

    async def open_all(self, machine: Machine) -> None:
        """Open the ports of a machine that starts; failures are told."""
        if not machine.row.ports:
            return
        served = await self._serving.served(machine)
        for port in machine.row.ports:
            if self._forwards(machine, port)[0] in served:
                continue
            try:
                await self._open(machine, port)
            except VmgrError as error:
                log.warning("machine %s: %s", machine.name, error)
                self._helper.events.publish(
                    "port.failed", machine.name, port=port.host_port, problem=error.message
                )

    def bound(self, machine: Machine) -> Iterator[tuple[Forward, socket.socket]]:
        """Sockets for the ports of a machine that is suspended; failures are logged."""
        for port in machine.row.ports:
            for forward in self._forwards(machine, port):
                try:
                    yield _place(forward), bound(forward)
                except OSError as error:
                    log.warning("machine %s: %s", machine.name, _refused(forward, error))

    async def reopen(self) -> None:
        """A new switchboard has no ports yet."""
        self.automatic.restarted()
        for machine in self._helper.machines.all():
            if machine.stopped.is_set():
                continue
            try:
                await self.open_all(machine)
            except VmgrError as error:  # it went again: the next one comes here too
                log.warning("machine %s: %s", machine.name, error)

    async def _open(self, machine: Machine, port: PortForward, *, told: bool = True) -> None:
        moved = await self.automatic.give_way(port.protocol, port.host_port)
        try:
            await self._serve(machine, port)
        finally:
            for other in moved:
                self.automatic.again(other)
        if told:
            self._helper.events.publish(
                "port.opened", machine.name, address=port.address, port=port.host_port,
                guest_port=port.guest_port, protocol=port.protocol,
            )  # fmt: skip

    async def _serve(self, machine: Machine, port: PortForward) -> None:
        for number, forward in enumerate(self._forwards(machine, port)):
            try:
                sock = self._helper.doorbell.take(_place(forward)) or bound(forward)
            except OSError as error:
                if number:  # this computer has no IPv6, say
                    continue
                raise _refused(forward, error) from error
            await self._serving.serve(machine, forward, sock, _INSIDE)

    def _forwards(self, machine: Machine, port: PortForward) -> tuple[Forward, ...]:
        """What is to be served for a port; the first must be, others where they can be."""
        assert machine.row.number is not None  # noqa: S101 (given when it was made or found)
        target = AGENT
        private = self._private.get(machine.row.id, set())
        if machine.row.interface is not None and (port.protocol, port.guest_port) not in private:
            target = str(identity_of(machine.row.id, machine.row.number).address4)
        hosts = [port.address, *(["::1"] if port.address == "127.0.0.1" else [])]
        return tuple(
            Forward(
                machine=machine.row.id,
                protocol=port.protocol,
                host=host,
                host_port=port.host_port,
                target=target,
                target_port=port.guest_port,
            )
            for host in hosts
        )


def _place(forward: Forward) -> Forward:
    """Only where it is on this computer: what it leads to may be another after a sleep."""
    return msgspec.structs.replace(forward, target="")


def check_ports(ports: Sequence[PortForward]) -> None:
    """See that `ports` can be asked for.

    Raises:
        UsageError: an address is none, or two are the same.
    """
    for number, port in enumerate(ports):
        try:
            ipaddress.ip_address(port.address)
        except ValueError:
            raise UsageError(
                f"{port.address[:60]!r} is not an IP address",
                next_step="write it like 127.0.0.1:8080:80 or [::1]:8080:80",
            ) from None
        if any(_same(port, other) for other in ports[:number]):
            raise UsageError(f"port {port.host_port} is asked for twice")
    if len(ports) > _MOST:
        raise UsageError(f"a machine has at most {_MOST} forwarded ports")


def _same(one: PortForward, other: PortForward) -> bool:
    def key(port: PortForward) -> tuple[object, ...]:
        return (port.address, port.host_port, port.protocol)

    return key(one) == key(other)


def _refused(forward: Forward, error: OSError) -> VmgrError:
    where = f"port {forward.host_port} of {forward.host}"
    if isinstance(error, PermissionError):
        return UsageError(
            f"{where} is for root only on this computer",
            next_step="take one from 1024 on, or have root run: "
            f"sysctl net.ipv4.ip_unprivileged_port_start={forward.host_port}",
        )
    return ConflictError(
        f"{where} cannot be had: {error.strerror or error}",
        next_step=f"see who has it with: ss -lnp sport = :{forward.host_port}; or take another",
    )
