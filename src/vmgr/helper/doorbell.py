"""Forwarded ports of suspended machines: whoever connects wakes the machine.

While a machine is suspended the helper holds its ports. It takes no connection: one that comes
waits in the socket's queue, where it wakes the machine, and with the socket is handed to the
switchboard, which serves it as any other.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from vmgr.errors import VmgrError

if TYPE_CHECKING:
    import socket

    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine
    from vmgr.switchboard.messages import Forward

__all__ = ["Doorbell"]

log = logging.getLogger(__name__)


class Doorbell:
    """The ports of machines that are suspended."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._held: dict[Forward, socket.socket] = {}

    def hold(self, machine: Machine) -> None:
        """Listen on a suspended machine's ports; one that cannot be had is told."""
        for forward, bound in self._helper.ports.bound(machine):
            if forward in self._held:
                bound.close()
                continue
            bound.settimeout(0)
            self._held[forward] = bound
            asyncio.get_running_loop().add_reader(bound, self._ring, machine, forward)

    def follow(self, machine: Machine) -> None:
        """A machine's status is another: hold its ports or let go of them."""
        if machine.status == "suspended":
            self.hold(machine)
        else:
            self.release(machine)

    def take(self, forward: Forward) -> socket.socket | None:
        """A socket that was held, with whoever waits in it; now the caller's."""
        if (held := self._held.pop(forward, None)) is not None:
            asyncio.get_running_loop().remove_reader(held)
        return held

    def release(self, machine: Machine) -> None:
        """A machine is not suspended any more, and its ports are not to be served."""
        for forward in [f for f in self._held if f.machine == machine.row.id]:
            if (held := self.take(forward)) is not None:
                held.close()

    def close(self) -> None:
        """Let go of all."""
        for forward in list(self._held):
            if (held := self.take(forward)) is not None:
                held.close()

    def _ring(self, machine: Machine, forward: Forward) -> None:
        held = self._held[forward]
        # Once is enough; the socket stays readable until somebody takes what is in it.
        asyncio.get_running_loop().remove_reader(held)
        log.info("machine %s: woken by port %d", machine.name, forward.host_port)
        self._helper.watchers.start(self._wake(machine), name=f"wake {machine.name}")

    async def _wake(self, machine: Machine) -> None:
        try:
            await self._helper.machines.awake(machine)
        except VmgrError as error:
            log.warning("machine %s does not wake: %s", machine.name, error)
            # Those who wait are turned away rather than left waiting.
            self.release(machine)
            if machine.status == "suspended":
                self.hold(machine)
