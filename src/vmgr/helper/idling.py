"""Suspending machines in which nothing happens, where the settings ask for it.

Nothing happens in a machine while nobody's command is attached to it, nothing is connected to its
forwarded ports, and its VMM takes next to no CPU. Looked at a few times in the span that is asked
for, and only while there is something to look at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.errors import VmgrError
from vmgr.usage import cpu_seconds

if TYPE_CHECKING:
    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine

__all__ = ["Idling"]

_BUSY_SHARE: Final = 0.05  # of one CPU; an idle machine under emulation takes about 0.015
_LOOKS: Final = 4
_SHORTEST: Final = 0.25  # seconds between looks
_AFTER_ERROR: Final = 30.0

log = logging.getLogger(__name__)


@dataclass
class _Seen:
    """One machine when it was looked at last."""

    vmm: int
    cpu_seconds: float
    at: float
    busy_at: float


class Idling:
    """Watches for machines in which nothing happens."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._seen: dict[str, _Seen] = {}
        self._look = asyncio.Event()

    def look(self) -> None:
        """Something changed: a machine runs, or a setting is another."""
        self._look.set()

    async def run(self) -> None:
        """Go on until the helper stops."""
        while not self._helper.stopping.is_set():
            self._look.clear()
            try:
                after = float((await self._helper.settings()).get("idle.suspend_after"))
                running = [m for m in self._helper.machines.all() if _counts(m)]
                if after > 0 and running:
                    await self._look_at(running, after)
            except VmgrError as error:  # a mistake in the settings, say
                log.warning("idle machines are not looked for: %s", error)
                wait: float | None = _AFTER_ERROR
            else:
                wait = max(_SHORTEST, after / _LOOKS) if after > 0 and running else None
            try:
                async with asyncio.timeout(wait):
                    await self._look.wait()
            except TimeoutError:
                continue

    async def _look_at(self, running: list[Machine], after: float) -> None:
        connected = await self._helper.ports.connected()
        times = await self._helper.executors.in_files(
            lambda: {
                m.row.id: cpu_seconds(m.row.vmm_pid, m.row.vmm_start_time)
                for m in running
                if m.row.vmm_pid is not None
            }
        )
        now = time.monotonic()
        self._seen = {m.row.id: self._seen[m.row.id] for m in running if m.row.id in self._seen}
        for machine in running:
            used = times.get(machine.row.id)
            before = self._seen.get(machine.row.id)
            if used is None or machine.row.vmm_pid is None:
                continue
            if before is None or before.vmm != machine.row.vmm_pid:
                self._seen[machine.row.id] = _Seen(machine.row.vmm_pid, used, now, now)
                continue
            share = (used - before.cpu_seconds) / max(now - before.at, 1e-3)
            if machine.in_use or machine.row.id in connected or share > _BUSY_SHARE:
                before.busy_at = now
            before.cpu_seconds, before.at = used, now
            # What was used between two looks counts as used just now.
            before.busy_at = max(before.busy_at, machine.used_at)
            if now - before.busy_at >= after:
                await self._suspend(machine, now - before.busy_at)

    async def _suspend(self, machine: Machine, idle: float) -> None:
        if machine.lock.locked() or machine.in_use:
            return
        log.info("machine %s: nothing has happened for %.0f s", machine.name, idle)
        try:
            await self._helper.machines.suspend(machine.name)
        except VmgrError as error:
            log.warning("machine %s is not suspended: %s", machine.name, error)
            # Not again and again.
            self._seen[machine.row.id].busy_at = time.monotonic()
        else:
            self._helper.events.publish("machine.idle", machine.name, seconds=round(idle))


def _counts(machine: Machine) -> bool:
    return machine.status == "running" and not machine.row.ephemeral
