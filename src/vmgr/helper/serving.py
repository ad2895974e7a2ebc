"""Sockets of this computer that lead into machines, and who serves each.

The switchboard serves what leads to an address of a machine, also while there is no helper. What
leads through a machine's agent (`AGENT` as the target) is served here and ends with the helper.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from vmgr.errors import AgentError, VmgrError
from vmgr.helper.relays import DatagramRelay, StreamRelay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmgr.agent import AgentChannel
    from vmgr.helper.machine import Machine
    from vmgr.network import Network
    from vmgr.switchboard.messages import Forward

__all__ = ["AGENT", "Serving", "bound"]

AGENT: Final = "agent"
_BACKLOG: Final = 512
_PATIENCE: Final = 30.0


class Serving:
    """All of them, of all machines."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._relays: dict[Forward, StreamRelay | DatagramRelay] = {}

    async def served(self, machine: Machine) -> set[Forward]:
        """What is served of a machine now."""
        here = (forward for forward in self._relays if forward.machine == machine.row.id)
        return {*await self._network.forwards(machine.row.id), *here}

    async def connected(self) -> set[str]:
        """The ids of machines that somebody is connected to by a port."""
        here = {forward.machine for forward, relay in self._relays.items() if relay.connected}
        return here | await self._network.connected()

    async def serve(
        self, machine: Machine, forward: Forward, sock: socket.socket, inside: Sequence[bytes] = ()
    ) -> None:
        """Serve a bound socket, which is this method's from here on.

        Args:
            inside: for a target of `AGENT`: addresses in the machine, tried in this order.

        Raises:
            StateError: the switchboard does not.
        """
        if forward.target != AGENT:
            with sock:
                await self._network.listen(forward, sock.fileno())
            return

        async def channel() -> AgentChannel:
            # One that woke the machine, or came while its agent was reached again, waits for that.
            if machine.channel is None and not machine.stopped.is_set():
                machine.reached.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE):
                        await machine.reached.wait()
            if machine.channel is None:
                raise AgentError(f"the agent of {machine.name} cannot be reached")
            return machine.channel

        kind = StreamRelay if forward.protocol == "tcp" else DatagramRelay
        self._relays[forward] = kind(sock, channel, inside, forward.target_port)

    async def unserve(self, forward: Forward) -> None:
        """Stop; connections that are open go on."""
        if (relay := self._relays.pop(forward, None)) is not None:
            relay.close()
        elif forward.target != AGENT:
            with contextlib.suppress(VmgrError):  # then it serves nothing anyway
                await self._network.unlisten(forward)

    def ended(self, machine_id: str) -> None:
        """A machine has ended: its connections are reset. The switchboard does so by itself."""
        for forward in [one for one in self._relays if one.machine == machine_id]:
            self._relays.pop(forward).close(reset=True)

    def close(self) -> None:
        """End all that is served here."""
        for relay in self._relays.values():
            relay.close(reset=True)
        self._relays.clear()


def bound(forward: Forward) -> socket.socket:
    """A socket at the host's end of `forward`, listening where there is something to listen for.

    Raises:
        OSError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in forward.host else socket.AF_INET
    stream = forward.protocol == "tcp"
    sock = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    try:
        if stream:
            # Connections of an earlier machine that are still closing do not hold the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((forward.host, forward.host_port))
        if stream:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
