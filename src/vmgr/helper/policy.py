"""What machines may reach: asked, kept in their rows, changed while they run; what was denied.

Only the switchboard enforces an allow-list and host access. Where it cannot be had, both are
refused rather than left without effect.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from vmgr.api.models import Denied
from vmgr.errors import NotFoundError, UnsupportedError, UsageError
from vmgr.network import Access, Reach, canonical

if TYPE_CHECKING:
    from vmgr.api.models import CreateMachine, NetworkChange
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine
    from vmgr.helper.store import MachineRow

__all__ = ["Policies", "reach_of"]

_DENIED: Final = 32  # kinds of denials that are remembered of a machine
_HOST_PORTS: Final = 64

log = logging.getLogger(__name__)


def reach_of(row: MachineRow) -> Reach:
    """What a machine may reach."""
    allow = None if row.allow is None else tuple(row.allow)
    return Reach(
        cast("Access", row.access), allow, tuple(row.host_access), tuple(row.host_access_udp)
    )


class Policies:
    """All machines'."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    async def check(self, request: CreateMachine) -> None:
        """See that a new machine can be kept to what is asked.

        Raises:
            UsageError: it contradicts itself, or a rule is none.
            UnsupportedError: nothing would enforce it on this host.
        """
        if request.allow is not None:
            canonical(request.allow)
            if request.access == "none":
                raise UsageError(
                    "--net none reaches nothing, so --allow does not go with it",
                    next_step="leave one of them out",
                )
        _check_ports(request.host_access, request.host_access_udp)
        if request.allow is not None or request.host_access or request.host_access_udp:
            await self._need_switchboard()

    async def change(self, machine: Machine, change: NetworkChange) -> None:
        """Change what a machine may reach, at once where it runs.

        Raises:
            UsageError, NotFoundError: a rule is none, or not on the list.
            UnsupportedError: nothing would enforce it on this host.
            StateError: the switchboard does not do it.
        """
        async with machine.lock:
            row = machine.row
            after = msgspec.structs.replace(
                row,
                access=change.access or row.access,
                allow=_changed(machine.name, row.allow, change),
                host_access=row.host_access
                if change.host_access is None
                else sorted(set(change.host_access)),
                host_access_udp=row.host_access_udp
                if change.host_access_udp is None
                else sorted(set(change.host_access_udp)),
            )
            _check_ports(after.host_access, after.host_access_udp)
            reach = reach_of(after)
            live = not machine.stopped.is_set()
            if live and row.fallback and reach != reach_of(row):
                raise UnsupportedError(
                    f"machine {machine.name} runs on QEMU's own network, which reaches the same "
                    "until it is stopped",
                    next_step=f"see vmgr doctor; or stop it first with: vmgr stop {machine.name}",
                )
            if reach.needs_switchboard:
                await self._need_switchboard()
            # Written down first: should we die in between, the next helper tells the switchboard.
            await _save(machine, after)
            if live and row.interface is not None and row.number is not None:
                try:
                    await self._helper.network.change(
                        row.id, row.name, row.number, reach, row.interface
                    )
                except BaseException:
                    await asyncio.shield(_save(machine, row))
                    raise
        self._helper.events.publish(
            "network.changed", machine.name,
            access=after.access, allow=after.allow, host_access=after.host_access,
            host_access_udp=after.host_access_udp,
        )  # fmt: skip

    def denied(self, machine_id: str, data: dict[str, Any]) -> None:
        """The switchboard tells that a machine was denied something."""
        machine = next((m for m in self._helper.machines.all() if m.row.id == machine_id), None)
        if machine is None:
            return
        count = int(data.get("count", 1))
        known = msgspec.convert({**data, "count": count, "last_at": time.time()}, Denied)
        others = []
        for earlier in machine.denied:
            if _kind(earlier) == _kind(known):
                known = msgspec.structs.replace(known, count=count + earlier.count)
            else:
                others.append(earlier)
        machine.denied = (known, *others[: _DENIED - 1])

    def egress_problem(self, row: MachineRow) -> str | None:
        """Why a machine that should have internet has none."""
        return None if row.access == "none" else self._helper.network.egress_problem

    async def _need_switchboard(self) -> None:
        if not await self._helper.network.usable():
            raise UnsupportedError(
                "an allow-list and host access are enforced by vmgr's own network alone, which "
                "this host does not permit",
                next_step="see the exact fix with: vmgr doctor",
            )


async def _save(machine: Machine, row: MachineRow) -> None:
    await machine.save(
        access=row.access, allow=row.allow, host_access=row.host_access,
        host_access_udp=row.host_access_udp,
    )  # fmt: skip


def _changed(name: str, before: list[str] | None, change: NetworkChange) -> list[str] | None:
    if change.allow_any:
        if change.allow is not None or change.add:
            raise UsageError("an allow-list and none at all do not go together")
        return None
    after = before if change.allow is None else canonical(change.allow)
    if change.add:
        after = canonical([*(after or []), *change.add])
    for rule in canonical(change.remove):
        if rule not in (after or []):
            raise NotFoundError(
                f"{rule} is not on the allow-list of machine {name}",
                next_step=f"see: vmgr net show {name}",
            )
        after = [kept for kept in after or [] if kept != rule]
    return after


def _check_ports(tcp: list[int], udp: list[int]) -> None:
    if len(set(tcp)) + len(set(udp)) > _HOST_PORTS:
        raise UsageError(f"a machine reaches at most {_HOST_PORTS} ports of this computer")


def _kind(denied: Denied) -> tuple[object, ...]:
    return (denied.name, denied.address, denied.port, denied.protocol)
