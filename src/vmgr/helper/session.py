"""Machines that start with the person's session, and what becomes of all of them at its end.

A session is the life of the runtime directory: systemd removes it when a person's last session has
ended and at shutdown. Elsewhere the boot that the mark in it names tells. So a helper that is
started again, after a crash or for an upgrade, starts nothing that somebody has stopped meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from vmgr.api.models import StopMachine
from vmgr.errors import VmgrError
from vmgr.helper.reconcile import host_boot_id

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine

__all__ = ["begin", "end"]

_AT_ONCE: Final = 2  # each start and each saved memory keeps a CPU and the disk busy

log = logging.getLogger(__name__)


async def begin(helper: Helper) -> None:
    """Start the machines that are to start with the session, if it has just begun."""
    try:
        names = str((await helper.settings()).get("autostart.machines")).split()
    except VmgrError as error:
        log.warning("no machines are started: %s", error)
        return
    # First the mark: a start that takes the helper down is not tried by each next one.
    if not await helper.executors.in_files(_is_new, helper.paths.session_mark):
        return
    turns = asyncio.Semaphore(_AT_ONCE)

    async def start(name: str) -> None:
        async with turns:
            try:
                await helper.machines.start(name)
            except VmgrError as error:
                log.warning("machine %s is not started with the session: %s", name, error)
                helper.events.publish("machine.autostart-failed", name, reason=error.message)
                helper.tell(f"machine {name} was not started with your session: {error.message}")
            else:
                log.info("machine %s is started with the session", name)

    await asyncio.gather(*(start(name) for name in dict.fromkeys(names)))


async def end(helper: Helper) -> None:
    """Do with all machines what `shutdown.action` says. The helper is to stop after it."""
    try:
        action = str((await helper.settings()).get("shutdown.action"))
    except VmgrError as error:
        log.warning("machines are suspended, since the settings do not say what else: %s", error)
        action = "suspend"
    await helper.executors.in_files(_forget, helper.paths.session_mark)
    if action == "keep":
        return
    turns = asyncio.Semaphore(_AT_ONCE)

    async def leave(machine: Machine) -> None:
        if action == "suspend" and not machine.row.ephemeral and await _suspended(helper, machine):
            return
        # Asking takes time and no CPU, so all are asked at once.
        try:
            await helper.machines.stop(machine.name, StopMachine())
        except VmgrError as error:
            log.warning("machine %s did not stop: %s", machine.name, error)

    async def _suspended(helper: Helper, machine: Machine) -> bool:
        async with turns:
            try:
                await helper.machines.suspend(machine.name)
            except VmgrError as error:
                log.warning("machine %s is stopped, not suspended: %s", machine.name, error)
                return False
            return True

    running = [m for m in helper.machines.all() if not m.stopped.is_set() and not m.row.pooled]
    log.info("the session ends: %d machines are to %s", len(running), action)
    await asyncio.gather(*(leave(machine) for machine in running))


def _is_new(mark: Path) -> bool:
    """Whether the mark was not made in this boot; it is now."""
    boot = host_boot_id()
    try:
        if mark.read_text(encoding="ascii", errors="replace") == boot:
            return False
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s: %s", mark, error.strerror)
        return False
    mark.write_text(boot, encoding="ascii")
    return True


def _forget(mark: Path) -> None:
    mark.unlink(missing_ok=True)
