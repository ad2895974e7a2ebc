"""Capturing a running machine at one moment: memory, devices and, where asked for, its disk.

Everything in the machine is held by the freezer before it stands still, so that what comes back
from the capture does nothing before it has been told who it is and what time it is. What takes long
is done before (memory that can no longer change) or after (the disk) the machine stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmgr.errors import MachineError, UnsupportedError, VmgrError
from vmgr.saved import SavedState, Saver
from vmgr.vmm import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from vmgr.agent import AgentChannel
    from vmgr.helper.machine import Machine
    from vmgr.saved import SavedVolume
    from vmgr.vmm import Vmm

__all__ = ["Captured", "capture", "let_go_on"]

_THAW_DEADLINE: Final = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captured:
    """What was captured."""

    state: SavedState
    """Its memory's checksum is not known yet."""
    held_seconds: float
    """For how long nothing ran in the machine; until now, where it has not gone on."""


async def capture(
    machine: Machine,
    channel: AgentChannel,
    memory: int,
    devices: int,
    executor: Executor,
    *,
    disk: int | None = None,
    sync: bool,
    go_on: bool,
    volumes: Sequence[SavedVolume] = (),
) -> Captured:
    """Capture a machine that runs; the caller holds its lock.

    Args:
        channel: the way into it.
        memory: fd of an empty file for its memory.
        devices: fd of an empty file, open only for writing, for its devices.
        disk: fd of an empty qcow2 on the machine's image for a copy of its disk; complete
            on return.
        sync: write what the machine has in memory to its disk first.
        go_on: let the machine go on; else it stays paused, with all its processes held.
        volumes: those that it has plugged in.

    Raises:
        UnsupportedError: the machine's agent is too old.
        MachineError, ResourceError, StateError: it could not be captured; it goes on.
    """
    vmm = machine.vmm
    if vmm is None:
        raise MachineError(f"machine {machine.name} has no VMM")
    if "still" not in machine.greeting.features:
        raise UnsupportedError(
            f"the agent in machine {machine.name} is too old to hold it still",
            next_step=f"restart it with: vmgr restart {machine.name}",
        )
    row = machine.row
    if row.layout != LAYOUT:
        # It could be saved, and never be loaded again.
        raise UnsupportedError(
            f"machine {machine.name} was started by another version of vmgr, whose devices this "
            "one cannot restore",
            next_step=f"restart it first: vmgr restart {machine.name}",
        )
    async with contextlib.AsyncExitStack() as stack:
        copy = None
        if disk is not None:
            copy = await stack.enter_async_context(vmm.copying_disk(disk))
        saver = await stack.enter_async_context(
            Saver(vmm, row.memory_bytes, memory, devices, executor)
        )
        began = time.monotonic()
        done = False
        machine.unheld.clear()
        try:
            await channel.freeze(sync=sync)
            await vmm.pause()
            if copy is not None:
                await copy.start()
            used = await saver.save()
            keys = list(machine.row.resync_keys)
            done = True
        finally:
            if go_on or not done:
                await asyncio.shield(let_go_on(machine, vmm, channel))
        held = time.monotonic() - began
        if copy is not None:
            await copy.wait()
    return Captured(
        SavedState(
            saved_at=time.time(),
            qemu=row.qemu or "",
            machine_type=row.machine_type or "",
            accelerator=row.accelerator or "",
            kernel_digest=row.kernel_digest or "",
            kernel=row.kernel or "",
            cpus=row.cpus,
            memory_bytes=row.memory_bytes,
            boot_id=machine.greeting.boot_id,
            init=machine.greeting.init,
            resync_keys=keys,
            memory_used=used,
            volumes=list(volumes),
            share_ports=row.share_ports,
            layout=row.layout,
        ),
        held,
    )


async def let_go_on(machine: Machine, vmm: Vmm, channel: AgentChannel) -> None:
    """Let a machine that was held go on; what fails is logged, since its VMM may have ended.

    One whose agent does not hear it now is told when it is reached again (`Engine.take_up`).
    """
    try:
        # Both are tried: a VMM that did not answer in time may do what it was told all the same.
        for name, step in (("go on", vmm.resume), ("thaw", channel.thaw)):
            try:
                async with asyncio.timeout(_THAW_DEADLINE):
                    await step()
            except (VmgrError, TimeoutError) as error:
                if vmm.running:
                    log.warning("machine %s does not %s: %r", machine.name, name, error)
    finally:
        machine.unheld.set()
