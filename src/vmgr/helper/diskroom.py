"""Machines that stand still since the host's disk is full: they go on when there is room again.

The VMM stops a machine whose write found no space, so nothing is lost and the guest sees no error.
No event of the host tells that space was freed, so while such a machine waits it is looked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

from vmgr.errors import VmgrError

if TYPE_CHECKING:
    from pathlib import Path

    from vmgr.helper.helper import Helper
    from vmgr.helper.machine import Machine
    from vmgr.vmm import Vmm

__all__ = ["watch_room"]

_ROOM: Final = 64 << 20  # bytes; with less it would stand still again at once
_PAUSE: Final = 2.0  # seconds between two looks

log = logging.getLogger(__name__)


async def watch_room(helper: Helper, machine: Machine, vmm: Vmm) -> None:
    """Let a machine go on after its disk was full, until its VMM ends."""
    ended = asyncio.create_task(vmm.wait(), name=f"end of {machine.name}?")
    try:
        while not ended.done():
            full = asyncio.create_task(vmm.out_of_space.wait(), name=f"no room for {machine.name}?")
            await asyncio.wait({ended, full}, return_when=asyncio.FIRST_COMPLETED)
            full.cancel()
            if ended.done():
                return
            helper.events.publish("machine.disk-full", machine.name)
            helper.tell(
                f"machine {machine.name} stands still: no space is left for its disk in "
                f"{machine.paths.disk.parent}; free some, and it goes on by itself"
            )
            await _until_room(helper, machine, vmm, ended)
    finally:
        ended.cancel()


async def _until_room(
    helper: Helper, machine: Machine, vmm: Vmm, ended: asyncio.Task[object]
) -> None:
    while vmm.out_of_space.is_set():
        await asyncio.wait({ended}, timeout=_PAUSE)
        if ended.done():
            return
        if not await helper.executors.in_files(_has_room, machine.paths.disk):
            continue
        try:
            await vmm.resume()
        except VmgrError as error:
            log.warning("machine %s does not go on: %s", machine.name, error)
        else:
            log.info("machine %s goes on: there is room for its disk", machine.name)


def _has_room(disk: Path) -> bool:
    try:
        there = os.statvfs(disk)
    except OSError:
        return False
    return there.f_bavail * there.f_frsize >= _ROOM
