"""What is asked of a machine as a whole: clock, identity, holding it still, powering off."""

from __future__ import annotations

from typing import TypeVar

from vmgr.agent import messages as m

__all__ = ["MachineRequests"]

_M = TypeVar("_M", bound=m.Message)


class MachineRequests:
    """The requests of `vmgr.agent.AgentChannel` that are one question and one answer."""

    async def _ask(self, request: m.Request, kind: type[_M], deadline: float | None = None) -> _M:
        raise NotImplementedError

    async def clock(self, realtime_ns: int) -> int:
        """Set the machine's clock (Unix nanoseconds); gives how far it moved, in nanoseconds."""
        return (await self._ask(m.Clock(realtime_ns=realtime_ns), m.Clocked)).stepped_ns

    async def time(self, *, slew_ns: int | None = None) -> m.Reading:
        """Read the machine's clock; before that, begin to slew it by `slew_ns`."""
        return await self._ask(m.Time(slew_ns=slew_ns), m.Reading)

    async def configure(
        self,
        *,
        hostname: str | None = None,
        entropy: bytes | None = None,
        machine_id: str | None = None,
        realtime_ns: int | None = None,
        renew: bool = False,
        thaw: bool = False,
    ) -> m.Configured:
        """Tell a fresh machine who it is.

        Args:
            hostname: its name.
            entropy: at most 512 bytes that reseed its kernel.
            machine_id: see machine-id(5).
            realtime_ns: Unix nanoseconds; sets its clock.
            renew: replace the random seed it keeps for its next boot; remove SSH host keys.
            thaw: let processes that `freeze` held go on, when the rest is done.
        """
        request = m.Configure(
            hostname=hostname, entropy=entropy, machine_id=machine_id, realtime_ns=realtime_ns,
            renew=renew, thaw=thaw,
        )  # fmt: skip
        return await self._ask(request, m.Configured)

    async def freeze(self, *, sync: bool = True, deadline: float | None = None) -> None:
        """Hold every process but the agent and write everything to the machine's disks.

        Args:
            sync: False leaves what is in memory there, which is faster.

        Raises:
            AgentError: not all could be held; then nothing is.
        """
        await self._ask(m.Freeze(unsynced=not sync), m.Empty, deadline)

    async def thaw(self) -> None:
        """Let processes that `freeze` held go on."""
        await self._ask(m.Thaw(), m.Empty)

    async def network(self, network: m.Network) -> m.Networked:
        """Make the machine's network device what `network` says; whatever it was before is gone."""
        return await self._ask(network, m.Networked)

    async def take_calls(self, user: str | None) -> None:
        """Have programs of root's and `user`'s call us (`call` events); None: nobody's.

        Raises:
            AgentError: the machine cannot be given the door for it.
        """
        await self._ask(m.Calls(user=user), m.Empty)

    async def refuse_call(self, call: int, message: str) -> None:
        """Tell who called why nobody answers."""
        await self._ask(m.RefuseCall(call=call, message=message), m.Empty)

    async def share(
        self,
        slot: int,
        path: str,
        key: bytes,
        *,
        user: str,
        read_only: bool,
        deadline: float | None = None,
    ) -> None:
        """Mount a directory of the host at `path`; one that is mounted there has a new server.

        Args:
            key: 32 bytes, which the server has too.
            user: whom the person's files belong to in the machine.
        """
        request = m.Share(slot=slot, path=path, key=key, user=user, read_only=read_only)
        await self._ask(request, m.Empty, deadline)

    async def unshare(self, slot: int, *, deadline: float | None = None) -> None:
        """Unmount what is mounted there, also while it is used."""
        await self._ask(m.Unshare(slot=slot), m.Empty, deadline)

    async def grow(self, *, deadline: float | None = None) -> int:
        """Grow the root file system to its disk; gives its size in bytes."""
        return (await self._ask(m.Grow(), m.Grown, deadline)).bytes

    async def mount(self, serial: str, path: str, *, read_only: bool, deadline: float) -> int:
        """Mount the disk of that serial number; gives its size, or 0 where it is only read.

        Raises:
            AgentError: it cannot be; `details["errno"]` tells why.
        """
        request = m.Mount(serial=serial, path=path, read_only=read_only)
        return (await self._ask(request, m.Grown, deadline)).bytes

    async def unmount(self, serial: str, path: str, *, read_only: bool, deadline: float) -> None:
        """Unmount that disk; nothing uses it afterwards.

        Raises:
            AgentError: it cannot be; `details["errno"]` is EBUSY where something uses it.
        """
        request = m.Unmount(serial=serial, path=path, read_only=read_only)
        await self._ask(request, m.Empty, deadline)

    async def poweroff(self, *, reboot: bool = False, grace: float = 10.0) -> None:
        """Begin an orderly power-off; answered before it begins.

        Args:
            reboot: start again after it.
            grace: seconds that processes get before they are killed.
        """
        await self._ask(m.PowerOff(reboot=reboot, grace_ms=round(grace * 1000)), m.Empty)

    async def sync(self, *, deadline: float | None = None) -> None:
        """Write everything to the machine's disks."""
        await self._ask(m.Sync(), m.Empty, deadline)
